"""Noise that an auditor can draw again and an attacker cannot foresee, the same on every device and in every batch.

Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") is a function of a
counter and a key: number i of stream j does not depend on what was drawn before, nor beside it. Key and upper counter
come from an HMAC over what identifies the pixels, so that no two data sets share noise and a UID alone reveals nothing.
"""

from __future__ import annotations

import functools
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = 0xFFFFFFFF
NOISE_CHECK = "noise-check"
GUARD = "guard"
_BLOCK = 8192  # counters worked on at once: their state stays in the second-level cache


def seed(site_key: bytes, sop_instance_uid: str, frame: int, sha256: str, fingerprint: str, purpose: str) -> bytes:
    """32 bytes that stand for one frame of one data set under one bundle: HMAC-SHA256 keyed by the site.

    `sha256` is the digest of the encoded data set in hexadecimal; `purpose` keeps the noise of different checks apart.
    Every field goes in with its length before it, so that no two different sets of fields run together.
    """
    mac = hmac.new(site_key, b"dicomguard noise 1", hashlib.sha256)
    for field in (sop_instance_uid, str(frame), sha256.lower(), fingerprint, purpose):
        encoded = field.encode("utf-8", "surrogateescape")
        mac.update(len(encoded).to_bytes(8, "big"))
        mac.update(encoded)
    return mac.digest()


@dataclass(frozen=True, slots=True)
class Seeds:
    """The noise of one frame: one seed for each purpose, so that the checks' draws are independent."""

    noise_check: bytes
    guard: bytes


def seeds(site_key: bytes, sop_instance_uid: str, frame: int, sha256: str, fingerprint: str) -> Seeds:
    """All seeds of one frame; see `seed`."""
    fields = site_key, sop_instance_uid, frame, sha256, fingerprint
    return Seeds(seed(*fields, NOISE_CHECK), seed(*fields, GUARD))


def philox(counters: NDArray[np.uint32], key: tuple[int, int]) -> NDArray[np.uint32]:
    """Philox4x32-10. `counters`: uint32 (n, 4), word 0 first; returns uint32 of the same shape."""
    a, b, c, d = (counters[:, word].astype(np.uint64) for word in range(4))
    k0, k1 = key
    low = np.uint64(_LOW)
    shift = np.uint64(32)
    m0, m1 = (np.uint64(multiplier) for multiplier in _MULTIPLIERS)
    for _ in range(10):
        p0 = a * m0
        p1 = c * m1
        a, b, c, d = (p1 >> shift) ^ b ^ np.uint64(k0), p1 & low, (p0 >> shift) ^ d ^ np.uint64(k1), p0 & low
        k0 = (k0 + _WEYL[0]) & _LOW
        k1 = (k1 + _WEYL[1]) & _LOW
    return np.stack([a, b, c, d], 1).astype(np.uint32)


def _split(seed_bytes: bytes) -> tuple[tuple[int, int], tuple[int, int]]:
    if len(seed_bytes) < 16:
        raise ValueError("a noise seed has at least 16 bytes")
    words = [int.from_bytes(seed_bytes[i : i + 4], "little") for i in range(0, 16, 4)]
    return (words[0], words[1]), (words[2], words[3])


def _uniform_numpy(seed_bytes: bytes, streams: Sequence[int], count: int) -> NDArray[np.float32]:
    key, (word2, word3) = _split(seed_bytes)
    blocks = -(-count // 4)
    out = np.empty((len(streams), blocks, 4), np.float32)
    for row, stream in enumerate(streams):
        for start in range(0, blocks, _BLOCK):
            stop = min(start + _BLOCK, blocks)
            counters = np.empty((stop - start, 4), np.uint32)
            counters[:, 0] = np.arange(start, stop, dtype=np.uint32)
            counters[:, 1] = stream
            counters[:, 2] = word2
            counters[:, 3] = word3
            # 24 bits fit a float32 exactly, so 2u - 1 is exact too and every device agrees to the last bit.
            out[row, start:stop] = (philox(counters, key) >> np.uint32(8)).astype(np.float32)
    out *= np.float32(2.0**-23)
    out -= np.float32(1.0)
    return out.reshape(len(streams), blocks * 4)[:, :count]


def _multiply(x: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a 32 x 32 bit product, in int64 without ever passing 2**63."""
    upper, lower = multiplier >> 16, multiplier & 0xFFFF
    part = x * lower  # < 2**48
    middle = x * upper + (part >> 16)  # < 2**49
    return middle >> 16, ((middle & 0xFFFF) << 16) | (part & 0xFFFF)


def _rounds(a: Tensor, b: Tensor, c: Tensor, d: Tensor, k0: Tensor, k1: Tensor) -> Tensor:
    """Philox4x32-10 on words that broadcast to (rows, blocks), to uniform numbers (rows, blocks, 4) in [-1, 1)."""
    for _ in range(10):
        high0, low0 = _multiply(a, _MULTIPLIERS[0])
        high1, low1 = _multiply(c, _MULTIPLIERS[1])
        a, b, c, d = high1 ^ b ^ k0, low1, high0 ^ d ^ k1, low0
        k0 = (k0 + _WEYL[0]) & _LOW
        k1 = (k1 + _WEYL[1]) & _LOW
    return (torch.stack([a, b, c, d], -1) >> 8).float() * 2.0**-23 - 1.0


@functools.cache
def _fast_rounds() -> Callable[..., Tensor]:
    """`_rounds` as one kernel: its hundred steps would each go through the card's memory."""
    return torch.compile(_rounds, dynamic=True)


def _uniform_torch(
    seeds_bytes: Sequence[bytes], streams: Sequence[int], count: int, device: torch.device, *, compiled: bool = False
) -> Tensor:
    words = [(*key, *counter, stream) for key, counter in map(_split, seeds_bytes) for stream in streams]
    k0, k1, c, d, b = torch.tensor(words, device=device).T.unsqueeze(-1)
    a = torch.arange(-(-count // 4), device=device).expand(len(words), -1)
    drawn = (_fast_rounds() if compiled else _rounds)(a, b, c, d, k0, k1)
    return drawn.reshape(len(words), -1)[:, :count]


def uniform(
    seeds_bytes: Sequence[bytes], streams: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """Uniform float32 in [-1, 1), shape (len(seeds_bytes), len(streams), *shape). Each stream is a sequence of its own.

    Bit for bit the same on every device: numpy on the CPU, where it is fastest, int64 tensors elsewhere.
    """
    count = int(np.prod(shape))
    device = torch.device(device)
    if device.type == "cpu":
        drawn = torch.from_numpy(np.stack([_uniform_numpy(seed, streams, count) for seed in seeds_bytes]))
    else:
        drawn = _uniform_torch(seeds_bytes, streams, count, device, compiled=device.type == "cuda")
    return drawn.reshape(len(seeds_bytes), len(streams), *shape)


def normal(
    seed_bytes: bytes, streams: Sequence[int], shape: tuple[int, ...], device: torch.device | str = "cpu"
) -> Tensor:
    """Standard normal float32, shape (len(streams), *shape), from pairs of uniform numbers (Box, Muller 1958).

    The uniform numbers are the same bit for bit on every device, the logarithm and the cosine up to their last bits.
    """
    count = int(np.prod(shape))
    half = -(-count // 2)
    (drawn,) = uniform([seed_bytes], streams, (2, half), device)
    # To [0, 1) first, which is exact; then off zero by half a step, so that the logarithm is finite: radii up to 5.9.
    # In one sum of 0.5 + 2**-25 float32 would lose the half step, and -1 would become infinity.
    radius = drawn[:, 0].add(1).mul_(0.5).add_(2.0**-25).log_().mul_(-2).sqrt_()
    angle = drawn[:, 1].mul(torch.pi)
    pairs = torch.stack([radius * angle.cos(), radius * angle.sin()], 1).reshape(len(streams), 2 * half)
    return pairs[:, :count].reshape(len(streams), *shape)
