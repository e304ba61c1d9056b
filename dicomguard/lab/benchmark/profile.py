"""How large a benchmark is: minutes for a check that all of it runs, a night on two cores, a day on a card."""

from __future__ import annotations

from dataclasses import dataclass

from dicomguard.errors import DicomguardError


@dataclass(frozen=True, slots=True)
class Profile:
    """Sizes of a run. `None` stands for all there are.

    `victims`, `joel_victim`: families, by their names in `victims.grid`; `epochs`, `pictures`: of their training, at
    most. `calibration`, `test`: clean files. `wanted`: successes of each attack; `tried`: files that are attacked at
    most; `choosing`: successes on the validation split, by which the paper's noise level is chosen. `adaptive`: files
    for each adaptive attack and budget. `shifted`: clean files for each natural change. `joel_pictures`: that the
    detectors of Joel et al. 2023 are taught and tested on; `small_detectors`: small networks and few epochs for those.
    `guard_epochs`, `guard_steps`: of a certified guard, at least so many steps. `enrols`: whether victims are enrolled
    as a site would, guard included. `reductions`: what the tables say of all this.
    """

    name: str
    victims: tuple[str, ...]
    joel_victim: str
    calibration: int | None
    test: int | None
    wanted: int
    tried: int | None
    choosing: int
    epochs: int | None
    pictures: int | None
    adaptive: int
    shifted: int | None
    joel_pictures: int | None
    small_detectors: bool
    guard_epochs: int
    guard_steps: int
    enrols: bool
    reductions: tuple[str, ...]


SMOKE = Profile(
    name="smoke",
    victims=("resnet_small",),
    joel_victim="vgg11_small",
    calibration=130,
    test=30,
    wanted=8,
    tried=24,
    choosing=6,
    epochs=4,
    pictures=600,
    adaptive=2,
    shifted=16,
    joel_pictures=48,
    small_detectors=True,
    guard_epochs=1,
    guard_steps=40,
    enrols=False,
    reductions=("A check that everything runs: victims of four epochs, a handful of files. Its figures mean nothing.",),
)
CPU = Profile(
    name="cpu",
    victims=("efficientnet_lite0", "resnet_small", "vit_small"),
    joel_victim="vgg11_small",
    calibration=400,
    test=300,
    wanted=100,
    tried=None,
    choosing=24,
    epochs=None,
    pictures=None,
    adaptive=40,
    shifted=200,
    joel_pictures=600,
    small_detectors=True,
    guard_epochs=24,
    guard_steps=400,
    enrols=True,
    reductions=(
        (
            "Victims that two cores can train in a night: EfficientNet-Lite0 (ImageNet weights) at 224 pixels, a"
            " residual net and a vision transformer at 128 pixels from random weights, instead of ResNet-50 V2,"
            " InceptionV3 and ViT-B/16 with ImageNet weights."
        ),
        "At most 100 successes of each attack, 400 clean files for calibration and 300 for test.",
    ),
)
FULL = Profile(
    name="full",
    victims=("resnet50v2", "inception_v3", "vit_b_16"),
    joel_victim="vgg16",
    calibration=None,
    test=None,
    wanted=1000,
    tried=None,
    choosing=100,
    epochs=None,
    pictures=None,
    adaptive=200,
    shifted=None,
    joel_pictures=None,
    small_detectors=False,
    guard_epochs=24,
    guard_steps=400,
    enrols=True,
    reductions=(),
)
PROFILES = {profile.name: profile for profile in (SMOKE, CPU, FULL)}


def named(name: str) -> Profile:
    """The profile of that name.

    Raises:
        DicomguardError: there is none.

    """
    if name not in PROFILES:
        raise DicomguardError(f"there is no profile {name}.", advice=f"Take one of {', '.join(PROFILES)}.")
    return PROFILES[name]
