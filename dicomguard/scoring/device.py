"""Where networks compute: a device is tried before anything is laid upon it."""

from __future__ import annotations

import torch

from dicomguard.errors import ConfigError


def usable(name: str) -> torch.device:
    """The device of this name, such as `cpu`, `cuda` or `cuda:1`.

    Raises:
        ConfigError: there is none of that name, or it cannot be used here.

    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # the latter from a build without CUDA
        raise ConfigError(
            f"device {name} cannot be used: {' '.join(str(error).split())[:300]}.",
            advice="Use cpu, or install what the device needs.",
        ) from error
    return device
