"""What all detectors that learn from clean files alone have in common, and what each of them sees."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from dicomguard.enrol.ranks import auroc
from dicomguard.errors import DicomguardError
from dicomguard.lab.detectors import squeezing, stages
from dicomguard.lab.detectors.confidence import Confidence
from dicomguard.lab.detectors.gaussian import ShrunkGaussian
from dicomguard.lab.detectors.guard import GuardShare
from dicomguard.lab.detectors.judge import flags, threshold
from dicomguard.lab.detectors.knn import NearestNeighbours
from dicomguard.lab.detectors.mahalanobis import Mahalanobis
from dicomguard.lab.detectors.mgm import UnimodalGaussian
from dicomguard.lab.detectors.noise_check import Fixed, FixedLevel, Kind, NoiseCheck, Reading
from dicomguard.lab.detectors.ours import Ours
from dicomguard.lab.detectors.sight import Detector, Sight
from dicomguard.lab.detectors.squeezing import FeatureSqueezing
from tests.lab.detectors.made import SETTINGS, sight


def toy(pixels: Tensor) -> NDArray[np.float64]:
    """Log-odds that see the contrast of neighbouring pixels."""
    steps = (pixels[..., 1:] - pixels[..., :-1]).abs().mean((1, 2, 3)).double().numpy()
    odds = np.zeros((len(pixels), 1, 2))
    odds[:, 0, 1] = 20 * (steps - 0.25)
    return odds


def pooled(pixels: Tensor) -> list[NDArray[np.float64]]:
    """Three layers: each the mean of some rows."""
    rows = pixels.mean((1, 3)).double().numpy()
    return [rows[:, :3], rows[:, 3:6], rows[:, 5:]]


MAKERS: dict[str, Callable[[], Detector]] = {
    "ours": lambda: Ours(SETTINGS),
    "ours without guard": lambda: Ours(SETTINGS, with_guard=False, cascade=False, floor=False),
    "guard": GuardShare,
    "confidence": Confidence,
    "noisy margin": lambda: FixedLevel(Fixed.MARGIN),
    "kNN": lambda: NearestNeighbours(5),
    "MGM": UnimodalGaussian,
    "Mahalanobis": lambda: Mahalanobis(pooled),
    "relative": lambda: Mahalanobis(pooled, relative=True),
    "squeezing": lambda: FeatureSqueezing(toy),
}


@pytest.fixture(scope="module", params=MAKERS)
def fitted(request: pytest.FixtureRequest) -> Detector:
    detector = MAKERS[request.param]()
    detector.fit(sight(1, 120, guard=0.95))
    return detector


def test_a_score_does_not_depend_on_the_others(fitted: Detector) -> None:
    some = sight(2, 9, guard=0.9)
    together = fitted.scores(some)
    assert together.shape == (9,)
    assert together.dtype == np.float64
    assert not np.isnan(together).any()
    for i in (0, 4, 8):
        assert fitted.scores(some.only([i])) == pytest.approx(together[[i]], rel=1e-5, abs=1e-6)
    assert np.allclose(fitted.scores(some.only(np.arange(9)[::-1])), together[::-1], rtol=1e-5, atol=1e-6)
    assert fitted.scores(some.only([])).shape == (0,)


def test_fitting_again_with_the_same_seed_is_the_same(fitted: Detector, request: pytest.FixtureRequest) -> None:
    again = MAKERS[request.node.callspec.params["fitted"]]()
    again.fit(sight(1, 120, guard=0.95))
    some = sight(2, 9, guard=0.9)
    assert np.array_equal(again.scores(some), fitted.scores(some))
    assert again.name == fitted.name


def test_a_threshold_on_other_clean_files_keeps_its_promise(fitted: Detector) -> None:
    bar = threshold(fitted.scores(sight(3, 199, guard=0.95)), 0.1)
    fresh = sight(4, 300, guard=0.95)
    assert flags(fitted.scores(fresh), bar).mean() < 0.19


def test_names_differ() -> None:
    assert len({make().name for make in MAKERS.values()}) == len(MAKERS)


FEATURES = ["ours without guard", "kNN", "MGM", "Mahalanobis", "relative"]


@pytest.mark.parametrize("name", FEATURES)
def test_too_few_files_and_numbers_that_are_none_are_refused_with_advice(name: str) -> None:
    with pytest.raises(DicomguardError, match="clean files to be fitted on, not 4") as caught:
        MAKERS[name]().fit(sight(1, 4))
    assert caught.value.advice
    broken = sight(1, 120)
    broken.features[7, 2] = np.nan
    with pytest.raises(DicomguardError, match=r"1 of 120 clean files .* at place 7") as caught:
        MAKERS[name]().fit(broken)
    assert caught.value.advice


@pytest.mark.parametrize("name", ["kNN", "MGM", "ours without guard"])
def test_a_file_without_numbers_is_as_suspicious_as_can_be(name: str) -> None:
    detector = MAKERS[name]()
    detector.fit(sight(1, 120))
    broken = sight(2, 5)
    broken.features[3] = np.nan
    assert np.isinf(detector.scores(broken)).tolist() == [False, False, False, True, False]


@pytest.mark.parametrize("name", ["kNN", "MGM"])
def test_a_victim_without_features_has_no_feature_detectors(name: str) -> None:
    some = sight(1, 60)
    bare = Sight(some.pixels, some.log_odds, some.features[:, :0], some.evidence)
    with pytest.raises(DicomguardError, match="no linear layer"):
        MAKERS[name]().fit(bare)


@pytest.mark.parametrize("name", ["kNN", "MGM", "ours without guard"])
def test_far_features_are_seen(name: str) -> None:
    detector = MAKERS[name]()
    detector.fit(sight(1, 120, width=20))
    area = auroc(detector.scores(sight(2, 60, width=20)), detector.scores(sight(3, 60, width=20, shift=3)))
    assert area is not None
    assert area > 0.95


@pytest.mark.parametrize("name", [name for name in MAKERS if name != "guard"])
def test_nobody_reads_a_detector_that_was_not_fitted(name: str) -> None:
    detector = MAKERS[name]()
    if name in FEATURES or name == "ours":
        with pytest.raises(ValueError, match="not fitted"):
            detector.scores(sight(1, 2, guard=0.9))
    else:
        assert len(detector.scores(sight(1, 2))) == 2


def test_confidence_is_the_margin_of_the_victims_answer() -> None:
    some = sight(1, 6)
    assert np.allclose(Confidence().scores(some), -np.abs(some.log_odds[:, 0, 1]))


def test_a_file_that_gets_no_vote_is_infinitely_suspicious() -> None:
    some = sight(1, 4, guard=0.9)
    evidence = (*some.evidence[:3], replace(some.evidence[3], guard_share=math.nan))
    voted = Sight(some.pixels, some.log_odds, some.features, evidence)
    scores = GuardShare().scores(voted)
    assert np.isinf(scores).tolist() == [False, False, False, True]
    assert scores[0] == 1 - some.evidence[0].guard_share
    ours = Ours(SETTINGS)
    ours.fit(sight(2, 60, guard=0.95))
    assert np.isinf(ours.scores(voted)[3])
    for detector in (GuardShare(), Ours(SETTINGS)):
        with pytest.raises(DicomguardError, match="without a guard"):
            detector.fit(sight(1, 60))


def test_files_without_a_vote_are_no_reference_for_ours() -> None:
    some = sight(2, 60, guard=0.95)
    unvoted = tuple(replace(one, guard_share=math.nan) if i < 20 else one for i, one in enumerate(some.evidence))
    ours = Ours(SETTINGS)
    ours.fit(Sight(some.pixels, some.log_odds, some.features, unvoted))
    assert ours.calibration is not None
    assert ours.calibration.images[0] == 40
    without = Ours(SETTINGS, with_guard=False)
    without.fit(Sight(some.pixels, some.log_odds, some.features, unvoted))
    assert without.calibration is not None
    assert without.calibration.images[0] == 60
    assert np.isfinite(without.scores(Sight(some.pixels, some.log_odds, some.features, unvoted))).mean() > 0.9


def test_ours_is_the_statistic_of_its_calibration() -> None:
    ours = Ours(SETTINGS, floor=False)
    ours.fit(sight(2, 80, guard=0.95, distances=True))
    some = sight(3, 10, guard=0.9, distances=True)
    assert ours.calibration is not None
    expected = [ours.calibration.statistic_of(one)[0] for one in some.evidence]
    assert np.array_equal(ours.scores(some), expected)


def test_the_guard_adds_what_the_victim_cannot_see() -> None:
    clean, attacked = sight(3, 80, guard=0.95), sight(4, 80, guard=0.2)
    whole, without = Ours(SETTINGS), Ours(SETTINGS, with_guard=False)
    for detector, least, most in ((whole, 0.97, 1), (without, 0.3, 0.7)):
        detector.fit(sight(2, 120, guard=0.95))
        area = auroc(detector.scores(clean), detector.scores(attacked))
        assert area is not None
        assert least <= area <= most


def test_the_margin_floor_holds_what_sits_on_the_border() -> None:
    ours, without = Ours(SETTINGS, with_guard=False), Ours(SETTINGS, with_guard=False, floor=False)
    border = sight(4, 20, margin=0.01)
    for detector in (ours, without):
        detector.fit(sight(2, 120))
    assert np.isinf(ours.scores(border)).all()
    assert np.isfinite(without.scores(border)).all()


def test_a_class_without_clean_files_is_named() -> None:
    some = sight(1, 120)
    odds = some.log_odds.copy()
    odds[:, 0, 1] = np.abs(odds[:, 0, 1])
    one_class = Sight(some.pixels, odds, some.features, some.evidence)
    with pytest.raises(DicomguardError, match="answers class 0 of question 0 for 0") as caught:
        Mahalanobis(pooled).fit(one_class)
    assert "every class" in caught.value.advice


def test_shrinking_is_ledoit_and_wolfs() -> None:
    from sklearn.covariance import LedoitWolf

    rng = np.random.default_rng(1)
    for shape in ((30, 50), (200, 5)):
        rows = rng.normal(size=shape) @ rng.normal(size=(shape[1], shape[1]))
        theirs = LedoitWolf(assume_centered=True).fit(rows)
        fresh = rng.normal(size=(7, shape[1]))
        assert np.allclose(ShrunkGaussian.fit(rows).distances(fresh), theirs.mahalanobis(fresh), rtol=1e-6)


def test_mahalanobis_measures_the_distance_to_the_answered_class() -> None:
    rng = np.random.default_rng(2)
    some = sight(1, 200)
    classes = np.where(some.answers[:, 0] == 1, 3.0, -3.0)
    table = {id(some.pixels): rng.normal(size=(200, 4)) + classes[:, None]}
    detector = Mahalanobis(lambda pixels: [table[id(pixels)]])
    detector.fit(some)
    near, far = sight(2, 60), sight(3, 60)
    own = np.where(near.answers[:, 0] == 1, 3.0, -3.0)
    table[id(near.pixels)] = rng.normal(size=(60, 4)) + own[:, None]
    table[id(far.pixels)] = rng.normal(size=(60, 4)) - own[:, None]  # at the other class, where it would be near
    area = auroc(detector.scores(near), detector.scores(far))
    assert area == 1
    # Standardised on clean files of which each is measured by Gaussians that do not know it.
    assert abs(detector.scores(near).mean()) < 0.4
    assert 0.7 < detector.scores(near).std() < 1.4
    table[id(near.pixels)][5, 1] = np.nan
    assert np.isinf(detector.scores(near)[5])
    table[id(some.pixels)][0, 0] = np.inf
    with pytest.raises(DicomguardError, match="a layer's features"):
        detector.fit(some)


NETWORKS = [
    ("EfficientNetLite0", {"num_classes": 1}, (112, 192, 320), 3, 32),
    ("torchvision.models.resnet18", {"num_classes": 1}, (128, 256, 512), 3, 32),
    ("torchvision.models.resnet50", {"num_classes": 1}, (512, 1024, 2048), 3, 32),
    ("torchvision.models.vgg11", {"num_classes": 1}, (256, 512, 512), 3, 32),
    ("torchvision.models.vgg16", {"num_classes": 1}, (256, 512, 512), 3, 32),
    ("torchvision.models.densenet121", {"num_classes": 1}, (512, 1024, 1024), 3, 32),
    (
        "torchvision.models.inception_v3",
        {"num_classes": 1, "aux_logits": False, "init_weights": False},
        (288, 768, 2048), 3, 96,
    ),
    ("torchvision.models.vit_b_32", {"num_classes": 1, "image_size": 64}, (768, 768, 768), 3, 64),
    (
        "monai.networks.nets.ViT",
        {
            "in_channels": 3, "img_size": [32, 32], "patch_size": [16, 16], "hidden_size": 24, "mlp_dim": 32,
            "num_layers": 4, "num_heads": 2, "classification": True, "num_classes": 1, "spatial_dims": 2,
        },
        (24, 24, 24), 3, 32,
    ),
    (
        "monai.networks.nets.DenseNet121",
        {"spatial_dims": 2, "in_channels": 3, "out_channels": 1},
        (512, 1024, 1024), 3, 32,
    ),
    ("torchvision.models.squeezenet1_1", {"num_classes": 1}, (384, 512, 512), 3, 64),
    ("torchvision.models.mobilenet_v3_small", {"num_classes": 1}, (96, 96, 576), 3, 32),
    (
        "monai.networks.nets.EfficientNetBN",
        {"model_name": "efficientnet-b0", "spatial_dims": 2, "in_channels": 3, "num_classes": 1},
        None, 3, 64,
    ),
    (
        "monai.networks.nets.SEResNet50",
        {"spatial_dims": 2, "in_channels": 3, "num_classes": 1},
        (512, 1024, 2048), 3, 64,
    ),
    ("timm.resnetv2_50", {"num_classes": 1}, (512, 1024, 2048), 3, 32),
]  # fmt: skip


@pytest.mark.parametrize(("name", "arguments", "widths", "planes", "side"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_the_ends_of_the_last_three_stages(
    name: str, arguments: dict[str, object], widths: tuple[int, ...] | None, planes: int, side: int
) -> None:
    from dicomguard.scoring import networks

    if name.startswith("timm."):
        pytest.importorskip("timm", reason="timm is an extra")
    if name.endswith("ViT"):
        pytest.importorskip("einops", reason="MONAI's ViT needs einops")
    network = networks.build(name, arguments)  # type: ignore[arg-type] # what JSON knows
    found = stages.layers(network)
    assert len(found) == 3
    pixels = torch.rand(3, planes, side, side)
    seen = stages.watched(found, network, chunk=2)(pixels)
    assert all(len(one) == 3 and np.isfinite(one).all() for one in seen)
    if widths is not None:
        assert tuple(one.shape[1] for one in seen) == widths
    alone = stages.watched(found, network)(pixels[1:2])
    assert all(np.allclose(one, whole[1:2], atol=1e-3) for one, whole in zip(alone, seen, strict=True))
    assert not any(module._forward_hooks for module in network.modules())


class Plain(nn.Module):
    def __init__(self, layers: int) -> None:
        super().__init__()
        self.body = nn.Sequential(*(nn.Linear(4, 4) for _ in range(layers)))
        self.spare = nn.Linear(4, 4)
        self.last = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.body(x.flatten(1)))


def test_of_an_unknown_network_the_last_three_with_weights_and_else_a_clear_error() -> None:
    network = Plain(3)
    assert stages.layers(network) == [network.body[1], network.body[2], network.spare]
    with pytest.raises(DicomguardError, match="does not run exactly once"):
        stages.watched(stages.layers(network), network)(torch.rand(2, 1, 2, 2))
    seen = stages.watched(list(network.body), network)(torch.rand(2, 1, 2, 2))
    assert [one.shape for one in seen] == [(2, 4)] * 3
    swin = type("SwinTransformer", (nn.Module,), {})()
    with pytest.raises(DicomguardError, match="planes last"):
        stages.layers(swin)
    with pytest.raises(DicomguardError, match="no three layers"):
        stages.layers(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1)))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(12))
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        tokens = x.flatten(2).transpose(1, 2).expand(-1, -1, 4)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0]), [tokens]


def test_a_transformers_depth_is_cut_in_four_and_its_tokens_averaged() -> None:
    network = Transformer()
    found = stages.layers(network)
    assert found == [network.blocks[5], network.blocks[8], network.blocks[11]]
    pixels = torch.rand(2, 1, 3, 3)
    with torch.no_grad():
        last = network(pixels)[1][0].mean(1)
    assert np.allclose(stages.watched(found, network)(pixels)[2], last.numpy())
    assert np.allclose(stages.watched([network], network)(pixels)[0], network(pixels)[0].detach().numpy())


def test_bits_and_medians_by_hand() -> None:
    assert torch.equal(squeezing.bit_depth(torch.tensor([0.0, 0.3, 0.6, 1.0]), 1), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    spot = torch.zeros(1, 1, 5, 5)
    spot[0, 0, 2, 2] = 1
    assert not squeezing.median(spot, 3).any()
    assert not squeezing.median(spot, 2).any()
    assert torch.equal(squeezing.median(torch.full((2, 3, 4, 4), 0.5), 3), torch.full((2, 3, 4, 4), 0.5))


@pytest.mark.parametrize("name", squeezing.SQUEEZERS)
@pytest.mark.parametrize("planes", [1, 3])
def test_squeezers_keep_shape_range_and_neighbours_apart(name: str, planes: int) -> None:
    some = sight(1, 4, side=16).pixels.expand(-1, planes, -1, -1).contiguous()
    squeeze = squeezing.SQUEEZERS[name]
    found = squeeze(some)
    assert found.shape == some.shape
    assert found.dtype == torch.float32
    assert 0 <= float(found.min()) <= float(found.max()) <= 1 + 1e-6
    assert torch.allclose(squeeze(some[2:3]), found[2:3], atol=1e-6)
    flat = torch.full((1, planes, 16, 16), 31 * 8 / 255)
    assert torch.allclose(squeeze(flat), flat, atol=0.02)


def test_non_local_means_smooths_noise_and_keeps_edges() -> None:
    torch.manual_seed(0)
    edge = torch.full((1, 1, 32, 32), 0.2)
    edge[..., 16:] = 0.8
    noisy = edge + 0.01 * torch.randn_like(edge)
    smooth = squeezing.non_local_means(noisy)
    assert float((smooth - edge).abs().mean()) < 0.5 * float((noisy - edge).abs().mean())
    assert float((smooth[..., 15] - 0.2).abs().max()) < 0.05


def test_squeezing_sees_an_answer_that_hangs_on_detail() -> None:
    torch.manual_seed(1)
    smooth = torch.rand(30, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    board = torch.from_numpy((np.indices((16, 16)).sum(0) % 2 * 2.0 - 1).astype(np.float32))
    detector = FeatureSqueezing(toy, ("median 3x3",))

    def seen(pixels: Tensor) -> Sight:
        base = sight(1, len(pixels))
        return Sight(pixels, toy(pixels), base.features, base.evidence)

    clean = seen(0.2 + 0.6 * smooth[:15])
    attacked = seen((0.2 + 0.6 * smooth[15:]) + 0.1 * board)
    area = auroc(detector.scores(clean), detector.scores(attacked))
    assert area is not None
    assert area > 0.95
    shifted = toy(squeezing.median(clean.pixels, 3))[:, 0, 1]
    by_hand = 2 * np.abs(1 / (1 + np.exp(-shifted)) - 1 / (1 + np.exp(-toy(clean.pixels)[:, 0, 1])))
    assert np.allclose(detector.scores(clean), by_hand)
    assert np.all(FeatureSqueezing(toy).scores(clean) >= FeatureSqueezing(toy, ("median 2x2",)).scores(clean))
    with pytest.raises(DicomguardError, match="no squeezer 'wavelet'"):
        FeatureSqueezing(toy, ("wavelet",))


def test_the_layers_of_a_bundles_victim_are_seen_while_it_answers(tmp_path_factory: pytest.TempPathFactory) -> None:
    from dicomguard.lab.detectors.sight import look
    from dicomguard.scoring.scorer import Scorer
    from tests.scoring.small import gray_image, small_seeds, write_small

    scorer = Scorer.load(write_small(tmp_path_factory.mktemp("victim"), size=16, repeats=1))
    some = look(scorer, [gray_image(n) for n in range(4)], small_seeds(4))
    layers = stages.victim_layers(scorer)
    assert [one.shape for one in layers(some.pixels)] == [(4, 112), (4, 192), (4, 320)]
    assert np.allclose(layers(some.pixels[2:3])[1], layers(some.pixels)[1][2:3], atol=1e-4)
    squeeze = FeatureSqueezing(lambda pixels: scorer.answer(pixels).log_odds)
    assert np.isfinite(squeeze.scores(some)).all()


def many_classes(seed: int, count: int, questions: int, classes: int) -> Sight:
    """Every question with its own answer, log-odds that noise shakes a little."""
    rng = np.random.default_rng(seed)
    base = sight(seed, count)
    odds = rng.normal(0, 1, (count, questions, classes))
    answers = (np.arange(count)[:, None] + np.arange(questions)) % classes
    np.put_along_axis(odds, answers[..., None], 6 + rng.gamma(2, 1, (count, questions, 1)), -1)
    noisy = odds[:, None] + rng.normal(0, 0.3, (count, len(base.draws), questions, classes))
    evidence = tuple(
        replace(one, seen=replace(one.seen, clean=odds[i], noisy=noisy[i])) for i, one in enumerate(base.evidence)
    )
    return Sight(base.pixels, odds, base.features, evidence)


@pytest.mark.parametrize("shape", [(1, 3), (3, 2)], ids=["three classes", "three questions"])
@pytest.mark.parametrize("name", [name for name in MAKERS if name not in {"ours", "guard", "squeezing"}])
def test_heads_of_many_classes_and_of_many_questions(name: str, shape: tuple[int, int]) -> None:
    detector = MAKERS[name]()
    detector.fit(many_classes(1, 150, *shape))
    scores = detector.scores(many_classes(2, 20, *shape))
    assert scores.shape == (20,)
    assert np.isfinite(scores).mean() > 0.9
    checks = NoiseCheck(), NoiseCheck(Reading(Kind.ABS))
    for check in checks:
        check.fit(many_classes(1, 150, *shape), many_classes(3, 20, *shape))
        assert np.isfinite(check.scores(many_classes(2, 20, *shape))).all()
