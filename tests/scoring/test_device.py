from __future__ import annotations

import pytest
import torch

from dicomguard.scoring.device import half_on_cpu


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ({"avx2": True, "avx512_bf16": False, "amx_bf16": False}, torch.float32),
        ({"avx512_f": True}, torch.float32),
        ({"avx512_bf16": True, "amx_bf16": False}, torch.bfloat16),
        ({"avx512_bf16": False, "amx_bf16": True}, torch.bfloat16),
    ],
)
def test_training_uses_bfloat16_only_where_the_processor_multiplies_it(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, object], expected: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: told)
    with half_on_cpu():
        assert torch.nn.Linear(2, 2)(torch.ones(1, 2)).dtype == expected
