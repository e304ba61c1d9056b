"""How large a benchmark is: minutes for a check that all of it runs, a night on two cores, a day on a card."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TypeVar

from dicomguard.errors import ConfigError

_T = TypeVar("_T")


_VICTIMS: Final = ("noise-consistency", "adaptive", "natural", "certified")


@dataclass(frozen=True, slots=True)
class Reduction:
    """What is smaller than in the papers, and in which suites; in all where none is named."""

    words: str
    suites: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes of a run. `None` stands for all there are.

    `seeds`: every victim is trained with each. `victims`, `joel_victim`: families, by their names in
    `victims.grid`; `epochs`, `pictures`: of their training, at most, `hardening_epochs` where it is adversarial.
    `training`, `calibration`, `test`: clean files. `wanted`: how many successes of each attack, `further`: of those
    beyond the papers'; `tried`: files that are attacked at most; `choosing`: successes on the validation split, by
    which the paper's noise level is chosen. `adaptive`: files for each adaptive attack and budget, on victims of
    `adaptive_sets`. `fewer`: families of a suite that is not about all of them. `shifted`: clean files for each
    natural change. `joel_pictures`: that the detectors of Joel et al. 2023 are taught and tested on, in the data
    sets `joel_whole` by other attacks and budgets and with one leak open, too; `small_detectors`: small networks
    and few epochs for those. `guard_epochs`, `guard_steps`: of a certified guard, at least so many steps. `enrols`:
    whether victims are enrolled as a site would, guard included. `whole_grids`: every budget instead of some.
    `is_check`: one data set, a few attacks and budgets, to see that everything runs. `reductions`: what the tables
    say of all this.
    """

    name: str
    seeds: tuple[int, ...]
    victims: tuple[str, ...]
    joel_victim: str
    training: int | None
    calibration: int | None
    test: int | None
    wanted: int
    further: int
    tried: int | None
    choosing: int
    epochs: int | None
    hardening_epochs: int | None
    pictures: int | None
    adaptive: int
    adaptive_sets: tuple[str, ...]
    fewer: Mapping[str, tuple[str, ...]]
    shifted: int | None
    joel_pictures: int | None
    joel_whole: tuple[str, ...]
    small_detectors: bool
    guard_epochs: int
    guard_steps: int
    enrols: bool
    whole_grids: bool
    is_check: bool
    reductions: tuple[Reduction, ...]

    def reduced(self, suite: str) -> list[str]:
        """What the tables of a suite say of its size."""
        return [one.words for one in self.reductions if not one.suites or suite in one.suites]

    def families(self, suite: str) -> tuple[str, ...]:
        """The victims of a suite."""
        return self.fewer.get(suite, self.victims)

    def some(self, everything: _T, few: _T) -> _T:
        """What a run of this profile takes: everything, or a few where it only checks."""
        return few if self.is_check else everything


SMOKE = Profile(
    name="smoke",
    seeds=(0,),
    victims=("resnet_small",),
    joel_victim="vgg11_small",
    training=80,
    calibration=130,
    test=30,
    wanted=8,
    further=4,
    tried=24,
    choosing=6,
    epochs=4,
    hardening_epochs=4,
    pictures=300,
    adaptive=2,
    adaptive_sets=("chest_xray",),
    fewer={},
    shifted=8,
    joel_pictures=32,
    joel_whole=(),
    small_detectors=True,
    guard_epochs=1,
    guard_steps=40,
    enrols=False,
    whole_grids=False,
    is_check=True,
    reductions=(
        Reduction(
            "A check that everything runs: victims of four epochs, a handful of files. Its figures mean nothing."
        ),
    ),
)
CPU = Profile(
    name="cpu",
    seeds=(0,),
    victims=("efficientnet_lite0", "resnet_small", "vit_small"),
    joel_victim="vgg11_small",
    training=600,
    calibration=400,
    test=300,
    wanted=60,
    further=20,
    tried=None,
    choosing=24,
    epochs=None,
    hardening_epochs=12,
    pictures=None,
    adaptive=20,
    adaptive_sets=("chest_xray",),
    fewer={
        "adaptive": ("resnet_small",),
        "natural": ("efficientnet_lite0",),
        "certified": ("resnet_small",),
    },
    shifted=60,
    joel_pictures=600,
    joel_whole=("brain_mri",),
    small_detectors=True,
    guard_epochs=12,
    guard_steps=400,
    enrols=True,
    whole_grids=False,
    is_check=False,
    reductions=(
        Reduction(
            "EfficientNet-Lite0 (ImageNet weights) at 160 pixels, a residual net and a vision transformer at 128 pixels"
            " from random weights, which two cores can train, instead of ResNet-50 V2, InceptionV3 and ViT-B/16 with"
            " ImageNet weights. One seed.",
            _VICTIMS,
        ),
        Reduction(
            "An attack stops once 60 files succeeded (20 of FGSM, BIM and APGD at .008, Carlini-Wagner, Square and what"
            " is transferred), Square after 500 queries a file; at most 400 clean files for calibration, 300 for test."
            " Mahalanobis, nearest neighbours and MGM learn from 600 training files at most; the paper's level is"
            " chosen on 24 validation files of either attack. Of five budgets PGD at .004, .008 and .016, FGSM and BIM"
            " at .008; of six kappas Carlini-Wagner's 0 and 5.",
            ("noise-consistency",),
        ),
        Reduction(
            "One victim, VGG-11 at 64 pixels from random weights; small networks stand in for the detectors', see"
            " there; at most 600 pictures of each data set, all of them attacked; six budgets of twelve; other"
            " teachers than the paper's, and one leak open at a time, on brain MRI alone; 12 epochs of adversarial"
            " training. One seed.",
            ("joel2023",),
        ),
        Reduction(
            "Chest radiographs and the residual net alone (who attacks the vision transformer, whose attacked pictures"
            " noise hardly tells from clean ones, need know of no check), the first 20 files, those that are answered"
            " rightly, for each attack and budget. Four attacks were made at all seven budgets, EOT with 32 draws,"
            " orthogonal ones on ours, the best of ten and those who see the verdict at .016 alone, the others at .008"
            " and .016; the best of ten knows the paper's check, not ours. Steps: 60 of EOT and of what attacks the"
            " guard with each of four tactics, 80 of orthogonal ones; 200 queries of who sees the verdict.",
            ("adaptive",),
        ),
        Reduction(
            "EfficientNet-Lite0 alone, at most 60 clean files for each change, 400 for calibration.", ("natural",)
        ),
        Reduction("Guards are taught for 12 epochs; the shipped ones for 24.", _VICTIMS),
        Reduction("The residual net alone, at most 300 clean files, three budgets of five.", ("certified",)),
    ),
)
FULL = Profile(
    name="full",
    seeds=(0, 1, 2),
    victims=("resnet50v2", "inception_v3", "vit_b_16"),
    joel_victim="vgg16",
    training=None,
    calibration=None,
    test=None,
    wanted=1000,
    further=200,
    tried=None,
    choosing=100,
    epochs=None,
    hardening_epochs=None,
    pictures=None,
    adaptive=200,
    adaptive_sets=("chest_xray", "brain_mri"),
    fewer={},
    shifted=None,
    joel_pictures=None,
    joel_whole=("brain_mri", "lung_ct", "breast_us"),
    small_detectors=False,
    guard_epochs=24,
    guard_steps=400,
    enrols=True,
    whole_grids=True,
    is_check=False,
    reductions=(
        Reduction(
            "An attack of the paper's Table 2, and PGD from .004 on, stops once 1,000 files succeeded, others at 200.",
            ("noise-consistency",),
        ),
        Reduction(
            "The first 200 files, those that are answered rightly, for each attack and budget. Four attacks were made"
            " at all seven budgets, EOT with 32 draws, orthogonal ones on ours, the best of ten and those who see the"
            " verdict at .016 alone, the others at .008 and .016; the best of ten knows the paper's check, not ours.",
            ("adaptive",),
        ),
    ),
)
PROFILES = {profile.name: profile for profile in (SMOKE, CPU, FULL)}


def named(name: str) -> Profile:
    """The profile of that name.

    Raises:
        ConfigError: there is none.

    """
    if name not in PROFILES:
        raise ConfigError(f"there is no profile {name}.", advice=f"Take one of {', '.join(PROFILES)}.")
    return PROFILES[name]
