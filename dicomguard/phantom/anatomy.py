"""What lies in the beam: a chest-like body as a map of attenuation along each ray.

Coordinates: u to the right of the picture, v downwards, both -1..1 over the picture. Attenuation is in units of 1/e
along the ray (0 = air, about 4 behind the spine), so the primary beam behind it is exp(-attenuation).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Map = NDArray[np.float32]

# Anatomy is smooth, and is drawn on at most this many points a side; the picture interpolates between them, which is
# also the blur of the focal spot and the scintillator.
_GRID = 512


@dataclass(frozen=True, slots=True)
class Lesion:
    """One opacity: centre and radius in units of half the picture, depth as the share of the lung's air it fills."""

    u: float
    v: float
    radius: float
    aspect: float
    depth: float
    texture_seed: int


@dataclass(frozen=True, slots=True)
class Anatomy:
    """What differs between phantoms. Lengths in units of half the picture, attenuations in 1/e, angles in radians."""

    shift_u: float
    shift_v: float
    scale: float
    rotation: float
    thickness: float
    lung_depth: float
    lung_width: float
    lung_top: float
    diaphragm: float
    heart_width: float
    heart_tilt: float
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    dose: float
    texture_seed: int
    lesion: Lesion | None


def draw(body: np.random.Generator, exposure: np.random.Generator, *, opacity: bool) -> Anatomy:
    """Draw a phantom: `body` decides what it is, `exposure` how it stands in the beam this time."""
    lesion = None
    between = body.uniform
    texture_seed, lesion_seed = (int(n) for n in body.integers(0, 2**31, size=2))
    shape = {
        "thickness": between(2.5, 3.2),
        "lung_depth": between(1.5, 1.9),
        "lung_width": between(0.30, 0.35),
        "lung_top": between(-0.72, -0.64),
        "diaphragm": between(0.44, 0.58),
        "heart_width": between(0.26, 0.34),
        "heart_tilt": between(0.3, 0.6),
        "rib_spacing": between(0.145, 0.17),
        "rib_phase": between(0.0, 1.0),
        "rib_slope": between(0.20, 0.34),
    }
    if opacity:
        side = 1.0 if between(0.0, 1.0) < 0.5 else -1.0
        lesion = Lesion(
            # Clear of the heart, which would hide it.
            side * between(0.36, 0.46) + 0.02,
            between(-0.34, 0.22),
            between(0.13, 0.21),
            between(0.75, 1.3),
            between(0.28, 0.60),
            lesion_seed,
        )
    at = exposure.uniform
    return Anatomy(
        shift_u=at(-0.04, 0.04),
        shift_v=at(-0.04, 0.04),
        scale=at(0.94, 1.04),
        rotation=at(-0.05, 0.05),
        dose=float(np.exp(at(np.log(1.2e4), np.log(4e4)))),
        texture_seed=texture_seed,
        lesion=lesion,
        **shape,
    )


def attenuation(body: Anatomy, rows: int, columns: int) -> Map:
    """Attenuation of the primary beam per pixel: float32, shape (rows, columns), units of 1/e."""
    height, width = min(rows, _GRID), min(columns, _GRID)
    y, x = np.meshgrid(_centres(height) - body.shift_v, _centres(width) - body.shift_u, indexing="ij")
    cos, sin = math.cos(body.rotation) / body.scale, math.sin(body.rotation) / body.scale
    u: Map = np.asarray(x * cos + y * sin, dtype=np.float32)
    v: Map = np.asarray(y * cos - x * sin, dtype=np.float32)
    side = np.abs(u)

    total = np.float32(body.thickness) * _trunk(side, v)
    lungs = _lungs(body, u, side, v) * (1.0 - 0.85 * _heart(body, u, v))
    texture = _texture(body.texture_seed, height, width)
    air = lungs * np.float32(body.lung_depth)
    if body.lesion is not None:
        air = air * (1 - _lesion(body.lesion, u, v))
    total = total - air * (1 + np.float32(0.05) * texture)
    total = total + _vessels(body, u, v) * lungs + _middle(u, side, v) + _bones(body, side, v)
    return resize(np.maximum(total, np.float32(0)), rows, columns)


def _centres(count: int) -> Map:
    return np.asarray((np.arange(count, dtype=np.float32) + 0.5) * np.float32(2.0 / count) - 1.0, dtype=np.float32)


def _step(x: Map, width: float) -> Map:
    """0 to 1 around x = 0, over about four times `width`."""
    return np.asarray(0.5 + 0.5 * np.tanh(x * np.float32(0.5 / width)), dtype=np.float32)


def _trunk(side: Map, v: Map) -> Map:
    """Neck, shoulders, chest and upper arms' side: thickness 0..1."""
    shoulders = _step(v + 0.76, 0.045)
    half = 0.24 + 0.66 * shoulders - 0.08 * _step(v - 0.2, 0.15)
    across = np.clip(1.0 - (side / half) ** 4, 0.0, None)
    return np.asarray(np.sqrt(across) * (0.72 + 0.28 * _step(v + 0.55, 0.12)), dtype=np.float32)


def _lungs(body: Anatomy, u: Map, side: Map, v: Map) -> Map:
    """Air in both lungs, 0..1; the right lung is on the left of the picture and its dome stands higher."""
    top, bottom = body.lung_top, 0.78
    middle, half = (top + bottom) / 2, (bottom - top) / 2
    taper = 1.0 - 0.34 * np.clip((0.0 - v) / 0.7, 0.0, 1.0) ** 2
    centre = 0.43 - 0.07 * np.clip(-v, 0.0, 1.0)
    r = ((side - centre) / (body.lung_width * taper)) ** 2 + ((v - middle) / half) ** 4
    air = np.sqrt(np.clip(1.0 - r, 0.0, None)) * 0.75 + 0.25 * _step((1.0 - r).astype(np.float32), 0.06)
    dome = body.diaphragm + 0.035 * np.sign(u) + 1.1 * (side - 0.36) ** 2
    return np.asarray(air * _step((dome - v).astype(np.float32), 0.008), dtype=np.float32)


def _heart(body: Anatomy, u: Map, v: Map) -> Map:
    """Heart and aortic arch, 0..1: what they fill holds no air."""
    cos, sin = math.cos(body.heart_tilt), math.sin(body.heart_tilt)
    hu, hv = u - 0.11, v - (body.diaphragm - 0.16)
    ru, rv = hu * cos + hv * sin, hv * cos - hu * sin
    r = (ru / (body.heart_width * 1.15)) ** 2 + (rv / 0.27) ** 2
    heart = np.sqrt(np.clip(1.0 - r, 0.0, None)) * 0.7 + 0.3 * _step((1.0 - r).astype(np.float32), 0.05)
    arch = np.exp(-(((u - 0.10) / 0.11) ** 4) - ((v + 0.28) / 0.10) ** 4)
    return np.asarray(np.clip(heart + 0.8 * arch, 0.0, 1.0), dtype=np.float32)


def _middle(u: Map, side: Map, v: Map) -> Map:
    """Spine with its discs, great vessels, trachea and hila."""
    spine = np.exp(-((side / 0.095) ** 4)) * (0.55 + 0.09 * np.cos(v * np.float32(2 * np.pi / 0.15)))
    great = 0.30 * np.exp(-(((u - 0.03) / 0.15) ** 4) - ((v + 0.10) / 0.40) ** 4)
    trachea = -0.40 * np.exp(-((u / 0.035) ** 2)) * _step((-0.22 - v).astype(np.float32), 0.03)
    hila = 0.22 * np.exp(-(((side - 0.20) / 0.075) ** 2) - ((v + 0.03) / 0.13) ** 2)
    return np.asarray(spine + great + trachea + hila, dtype=np.float32)


def _band(distance: Map, half_width: float) -> Map:
    """A bone across its axis: a shell of cortex around a weaker core."""
    r = distance / half_width
    return np.asarray(np.exp(-(r**6)) * (0.55 + 0.45 * np.clip(r * r, 0.0, 1.0)), dtype=np.float32)


def _bones(body: Anatomy, side: Map, v: Map) -> Map:
    """Ribs (behind: falling outwards, in front: falling inwards), clavicles and the cage's edge."""
    spacing = body.rib_spacing
    inside = _step((0.80 - side - 0.25 * np.clip(-0.25 - v, 0, 1)).astype(np.float32), 0.02)
    extent = inside * _step(v + 0.74, 0.03) * _step((0.62 - v).astype(np.float32), 0.05)
    bow = (side - 0.12).clip(0.0)
    behind = (v - body.rib_slope * bow * (2.4 - 2.2 * bow) + 0.12 * bow * v) / spacing + body.rib_phase
    behind = (behind - np.round(behind)) * spacing
    front = (v - 0.95 * (0.75 - side) ** 2 + 0.1) / (1.12 * spacing) + body.rib_phase + 0.4
    front = (front - np.round(front)) * (1.12 * spacing)
    total = 0.34 * _band(behind.astype(np.float32), 0.036) * _step(side - 0.10, 0.02) * extent
    total += 0.15 * _band(front.astype(np.float32), 0.040) * _step(side - 0.26, 0.03) * extent
    clavicle = v + 0.60 + 0.16 * (side - 0.1) - 0.10 * np.sin((side - 0.1) * 4.0)
    total += (
        0.55
        * _band(clavicle.astype(np.float32), 0.032)
        * _step(side - 0.09, 0.02)
        * _step((0.72 - side).astype(np.float32), 0.02)
    )
    return np.asarray(total, dtype=np.float32)


def _vessels(body: Anatomy, u: Map, v: Map) -> Map:
    """Vessels that fan out from the hila and thin towards the edge of the lung."""
    rng = np.random.default_rng([body.texture_seed, 7])
    total = np.zeros_like(u)
    half = u.shape[1] // 2
    for columns, sign in ((slice(0, half), -1.0), (slice(half, None), 1.0)):
        x, y = sign * u[:, columns] - 0.18, v[:, columns] + 0.02
        r = np.sqrt(x * x + y * y) + 1e-3
        angle = np.arctan2(y, x)
        fade = (np.exp(-r / 0.30) * _step((r - 0.11).astype(np.float32), 0.03)).astype(np.float32)
        for direction in np.linspace(-1.45, 1.45, 9) + rng.normal(0.0, 0.09, 9):
            bend = float(direction) + rng.normal(0.0, 0.35) * r
            width = 0.016 * np.exp(-r / 0.5) + 0.003
            total[:, columns] += fade * np.exp(-(((angle - bend) * r / width) ** 2))
    return np.asarray(0.42 * total, dtype=np.float32)


def _texture(seed: int, height: int, width: int) -> Map:
    """Smooth random structure of several sizes, about -2..2."""
    rng = np.random.default_rng([seed, 5])
    total = np.zeros((height, width), dtype=np.float32)
    for cells, weight in ((6, 0.7), (14, 0.6), (34, 0.5), (80, 0.35)):
        total += weight * resize(rng.standard_normal((cells, cells), dtype=np.float32), height, width)
    return total


def _lesion(lesion: Lesion, u: Map, v: Map) -> Map:
    """A consolidation: patchy, with a soft and irregular edge. The share of air that it fills, 0..1."""
    r = np.sqrt(((u - lesion.u) * lesion.aspect) ** 2 + ((v - lesion.v) / lesion.aspect) ** 2) / lesion.radius
    patchy = _texture(lesion.texture_seed, *u.shape)
    edge = _step(np.asarray(1.0 - r + 0.18 * patchy, dtype=np.float32), 0.14)
    return np.asarray(np.clip(lesion.depth * edge * (1.0 + 0.10 * patchy), 0.0, 1.0), dtype=np.float32)


def resize(values: Map, rows: int, columns: int) -> Map:
    """Bilinear interpolation between the centres of cells."""
    for axis, size in ((0, rows), (1, columns)):
        have = values.shape[axis]
        if have == size:
            continue
        position = np.clip((np.arange(size) + 0.5) * (have / size) - 0.5, 0, have - 1)
        low = np.minimum(position.astype(np.intp), max(have - 2, 0))
        share = (position - low).astype(np.float32)
        share = share[:, None] if axis == 0 else share[None, :]
        values = values.take(low, axis) * (1 - share) + values.take(np.minimum(low + 1, have - 1), axis) * share
    return values
