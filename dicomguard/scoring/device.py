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


def half_on_cpu() -> torch.autocast:
    """A context in which networks on a processor compute in bfloat16, where it multiplies that in hardware.

    Elsewhere bfloat16 is emulated, which takes ten times as long as float32, and nothing changes. For training, and for
    choosing between epochs: what is decided on must not depend on the processor.
    """
    asked: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()  # an older torch does not tell
    is_fast = bool(asked.get("avx512_bf16") or asked.get("amx_bf16"))
    return torch.autocast("cpu", torch.bfloat16, enabled=is_fast)
