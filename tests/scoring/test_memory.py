from __future__ import annotations

import ctypes
import sys

import pytest

from dicomguard.scoring import memory


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the allocator setting is glibc's")
def test_large_buffers_are_kept_and_calling_twice_is_harmless() -> None:
    has_mallopt = hasattr(ctypes.CDLL(None), "mallopt")
    assert memory.keep_buffers() is has_mallopt
    assert memory.keep_buffers() is has_mallopt


def test_without_glibc_it_says_so_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: object())
    assert memory.keep_buffers() is False
