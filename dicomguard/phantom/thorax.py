"""A chest-like body in three dimensions, cut into axial planes of Hounsfield units: what a CT series would show of it.

Coordinates: x from the patient's right to left and y from front to back, both -1..1 over the field of view; z in mm
from the top of the body downwards, 0 to `LENGTH_MM`. Everything varies smoothly with z, so neighbouring planes are
nearly alike, as they are in patients. A test object, not a model of disease.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dicomguard.phantom.anatomy import resize

Map = NDArray[np.float32]

LENGTH_MM = 300.0
# Anatomy is drawn on at most this many points a side; larger pictures interpolate, as a scanner's focal spot blurs.
_GRID = 256
_VESSELS = 60
# Cells in z and in the plane, and the weight of each scale of the lungs' texture.
_TEXTURE = ((10, 8, 0.7), (24, 22, 0.6), (60, 56, 0.5))


@dataclass(frozen=True, slots=True)
class Lesion:
    """One opacity: centre (x, y in half fields of view, z in mm), radius in mm, depth as the share of air it fills."""

    x: float
    y: float
    z: float
    radius_mm: float
    depth: float


@dataclass(frozen=True, slots=True)
class Vessel:
    """A straight vessel from the hilum outwards; ends in x, y (half fields of view) and z (mm), width at the root."""

    root: tuple[float, float, float]
    tip: tuple[float, float, float]
    width: float


@dataclass(frozen=True, slots=True)
class Thorax:
    """What differs between bodies. Lengths in half fields of view unless named in mm; `noise_hu` is the scanner's."""

    shift_x: float
    shift_y: float
    scale: float
    rotation: float
    girth: float
    fat: float
    lung_width: float
    lung_depth: float
    apex_mm: float
    dome_mm: float
    heart_mm: float
    heart: float
    arch_mm: float
    rib_phase: float
    rib_mm: float
    lung_hu: float
    noise_hu: float
    half_field_mm: float
    vessels: tuple[Vessel, ...]
    texture_seed: int
    lesion: Lesion | None

    def shows_opacity(self, z_mm: float) -> bool:
        """True where the plane at `z_mm` cuts the opacity with at least half of its radius."""
        return self.lesion is not None and abs(z_mm - self.lesion.z) <= 0.85 * self.lesion.radius_mm


def draw(rng: np.random.Generator, *, opacity: bool) -> Thorax:
    """Draw a body. The opacity is drawn last and always, so that the body is the same with and without it."""
    at = rng.uniform
    body = {
        "shift_x": at(-0.04, 0.04),
        "shift_y": at(-0.04, 0.04),
        "scale": at(0.92, 1.04),
        "rotation": at(-0.06, 0.06),
        "girth": at(0.54, 0.64),
        "fat": at(0.03, 0.08),
        "lung_width": at(0.27, 0.31),
        "lung_depth": at(0.36, 0.42),
        "apex_mm": at(18, 36),
        "dome_mm": at(205, 240),
        "heart_mm": at(175, 195),
        "heart": at(0.24, 0.31),
        "arch_mm": at(85, 105),
        "rib_phase": at(0, 1),
        "rib_mm": at(24, 30),
        "lung_hu": at(-880, -820),
        "noise_hu": float(np.exp(at(np.log(9), np.log(26)))),
        "half_field_mm": at(175, 200),
    }
    texture_seed = int(rng.integers(0, 2**31))
    vessels = tuple(_vessel(rng, side) for side in (-1.0, 1.0) for _ in range(_VESSELS // 2))
    lesion = Lesion(
        (-1.0 if at(0, 1) < 0.5 else 1.0) * at(0.36, 0.48), at(-0.14, 0.20), at(80, 185), at(14, 30), at(0.35, 0.75)
    )
    return Thorax(**body, vessels=vessels, texture_seed=texture_seed, lesion=lesion if opacity else None)


def _vessel(rng: np.random.Generator, side: float) -> Vessel:
    at = rng.uniform
    root = (side * at(0.14, 0.22), at(-0.05, 0.10), at(120, 165))
    tip = (side * at(0.22, 0.62), at(-0.30, 0.36), at(45, 235))
    return Vessel(root, tip, at(0.012, 0.026))


class Planes:
    """The axial planes of one body on a grid of `rows` x `columns`."""

    def __init__(self, body: Thorax, rows: int, columns: int) -> None:
        self._body = body
        self._size = rows, columns
        height, width = min(rows, _GRID), min(columns, _GRID)
        y, x = np.meshgrid(_centres(height) - body.shift_y, _centres(width) - body.shift_x, indexing="ij")
        cos, sin = math.cos(body.rotation) / body.scale, math.sin(body.rotation) / body.scale
        self._x: Map = np.asarray(x * cos + y * sin, dtype=np.float32)
        self._y: Map = np.asarray(y * cos - x * sin, dtype=np.float32)
        self._side = np.abs(self._x)
        self._angle = np.abs(np.arctan2(self._x, self._y)).astype(np.float32)  # 0 behind, pi in front
        self._flat = self._side ** np.float32(2.4), np.abs(self._y) ** np.float32(2.4)  # a body is no ellipse
        rng = np.random.default_rng([body.texture_seed, 5])
        self._texture = [
            (weight, rng.standard_normal((deep + 1, cells, cells), dtype=np.float32))
            for deep, cells, weight in _TEXTURE
        ]

    def at(self, z_mm: float) -> Map:
        """Hounsfield units without noise, float32, shape (rows, columns), of the plane at `z_mm`."""
        body = self._body
        # Shoulders widen the top, the belly the bottom.
        wide = 0.80 + 0.14 * _at(z_mm, 45, -14) + 0.02 * _at(z_mm, 230, 20)
        deep = body.girth * (0.86 + 0.14 * _at(z_mm, 70, 25))
        outline = (self._flat[0] / np.float32(wide**2.4) + self._flat[1] / np.float32(deep**2.4)) ** np.float32(1 / 2.4)
        hu = np.full_like(outline, -1000.0)
        _blend(hu, -95.0, _step(1 - outline, 0.010))
        _blend(hu, 48.0, _step(1 - body.fat - outline, 0.014))
        lungs, cage = self._lungs(z_mm, deep)
        texture = self._textured(z_mm)
        _blend(hu, self._air(z_mm, texture), lungs)
        self._middle(hu, z_mm)
        self._bones(hu, z_mm, cage, deep)
        return resize(np.asarray(hu, dtype=np.float32), *self._size)

    def _lungs(self, z: float, deep: float) -> tuple[Map, Map]:
        """Air in both lungs, 0..1, without heart and domes; and a radius that is 1 on the rib cage."""
        body = self._body
        grown = math.sqrt(max(1 - max((body.apex_mm + 75 - z) / 75, 0.0) ** 2, 0.0)) if z > body.apex_mm else 0.0
        half = body.lung_width * max(grown, 0.02)
        centre = 0.20 + half * 0.72
        tall = body.lung_depth * deep / 0.60 * max(grown, 0.02)
        radius = np.sqrt(((self._side - centre) / half) ** 2 + ((self._y - 0.03) / tall) ** 2)
        air = _step(1 - radius, 0.03) if grown else np.zeros_like(radius)
        # The domes of the diaphragm: the right one (on the left of the picture) stands higher.
        distance = (self._side - 0.36) ** 2 + (self._y + 0.02) ** 2
        dome = body.dome_mm + 8.0 * np.sign(self._x) + 420.0 * distance
        air = air * _step(dome - np.float32(z), 3.0) * (1 - self._heart(z))
        cage = np.sqrt((self._side / 0.70) ** 2 + ((self._y - 0.01) / (deep * 0.80)) ** 2)
        return np.asarray(air, np.float32), np.asarray(cage, np.float32)

    def _heart(self, z: float) -> Map:
        body = self._body
        extent = 1 - ((z - body.heart_mm) / 58.0) ** 2
        if extent <= 0:
            return np.zeros_like(self._x)
        size = body.heart * math.sqrt(extent)
        u, v = self._x - 0.10, self._y + 0.14
        turned, across = u * 0.82 - v * 0.57, u * 0.57 + v * 0.82
        return _step(1 - np.sqrt((turned / (1.2 * size)) ** 2 + (across / (0.85 * size)) ** 2), 0.03)

    def _air(self, z: float, texture: Map) -> Map:
        """Hounsfield units inside the lungs: denser towards the back, textured, with vessels and the opacity."""
        body = self._body
        hu = body.lung_hu + 45 * self._y + 22 * texture
        for vessel in body.vessels:
            self._add_vessel(hu, vessel, z)
        lesion = body.lesion
        if lesion is not None and abs(z - lesion.z) < 1.6 * lesion.radius_mm:
            size = lesion.radius_mm / body.half_field_mm
            flat = ((self._x - lesion.x) / size) ** 2 + ((self._y - lesion.y) / size) ** 2
            radius = np.sqrt(flat + ((z - lesion.z) / lesion.radius_mm) ** 2)
            filled = np.float32(lesion.depth) * _step(1 - radius + 0.16 * texture, 0.12)
            hu = hu + filled * (30 - hu) * (1 + 0.06 * texture)
        return np.asarray(np.minimum(hu, 60), np.float32)

    def _add_vessel(self, hu: Map, vessel: Vessel, z: float) -> None:
        (x0, y0, z0), (x1, y1, z1) = vessel.root, vessel.tip
        along = (z - z0) / (z1 - z0 if abs(z1 - z0) > 8 else math.copysign(8, z1 - z0))
        if not -0.05 < along < 1.05:
            return
        fade = min(1.0, 8 * (1.05 - along), 20 * (along + 0.05))
        width = vessel.width * (1 - 0.7 * along)
        # A plane 3 mm thick cuts an oblique vessel lengthwise.
        slope = 3.0 / max(abs(z1 - z0), 8)
        dx, dy = (x1 - x0) * slope, (y1 - y0) * slope
        length = math.hypot(dx, dy) / 2 + width
        cx, cy = x0 + along * (x1 - x0), y0 + along * (y1 - y0)
        rows, columns = self._window(cy, cx, 2.2 * length)
        u, v = self._x[rows, columns] - cx, self._y[rows, columns] - cy
        scale = max(math.hypot(dx, dy), 1e-6)
        forward, across = (u * dx + v * dy) / scale, (v * dx - u * dy) / scale
        hu[rows, columns] += np.float32(780 * fade) * np.exp(-((forward / length) ** 2) - (across / width) ** 2)

    def _window(self, y: float, x: float, half: float) -> tuple[slice, slice]:
        """Rows and columns around a point of the body, in grid points (positioning turned by a few degrees only)."""
        body, (height, width) = self._body, self._x.shape
        cos, sin = math.cos(body.rotation) * body.scale, math.sin(body.rotation) * body.scale
        px, py = x * cos - y * sin + body.shift_x, y * cos + x * sin + body.shift_y
        return _span(py, half, height), _span(px, half, width)

    def _textured(self, z: float) -> Map:
        total = np.zeros_like(self._x)
        for weight, cells in self._texture:
            position = z / LENGTH_MM * (len(cells) - 1)
            low = min(max(int(position), 0), len(cells) - 2)
            share = np.float32(min(max(position - low, 0.0), 1.0))
            # Divided by the blend's own spread, or the texture would fade between the planes of cells.
            plane = (cells[low] * (1 - share) + cells[low + 1] * share) / np.sqrt(share**2 + (1 - share) ** 2)
            total += np.float32(weight) * resize(plane, *total.shape)
        return total

    def _middle(self, hu: Map, z: float) -> None:
        """Fat around the great vessels, aorta and its arch, trachea and main bronchi, oesophagus, liver's shade."""
        body, x, y = self._body, self._x, self._y
        heart = self._heart(z)
        _blend(hu, 42.0, heart)
        _blend(hu, -60.0, 0.55 * _disc(x, y, 0.0, -0.16, 0.13, 0.10) * (1 - heart) * _at(z, 60, 12))
        _blend(hu, 52.0, _disc(x, y, 0.09, 0.20, 0.055, 0.055) * _at(z, body.arch_mm, 3))
        _blend(hu, 52.0, _disc(x, y, -0.03, -0.10, 0.075, 0.07) * _at(z, body.arch_mm, 3) * (1 - _at(z, 190, 5)))
        arch = _at(z, body.arch_mm - 8, 3) * (1 - _at(z, body.arch_mm + 9, 3))
        _blend(hu, 52.0, _disc(x, y, 0.04, 0.04, 0.075, 0.19) * arch)
        fork = body.arch_mm + 40
        _blend(hu, -970.0, _disc(x, y, 0.0, 0.07, 0.042, 0.046) * (1 - _at(z, fork, 2)))
        spread = 0.045 + max(z - fork, 0) * 0.0042
        bronchi = _at(z, fork, 2) * (1 - _at(z, fork + 38, 4))
        for sign in (-1.0, 1.0):
            _blend(hu, -960.0, _disc(x, y, sign * spread, 0.08, 0.038, 0.034) * bronchi)
        _blend(hu, 30.0, _disc(x, y, 0.02, 0.16, 0.03, 0.022))
        _blend(hu, -600.0, 0.7 * _disc(x, y, 0.30, -0.20, 0.12, 0.08) * _at(z, body.dome_mm + 32, 5))

    def _bones(self, hu: Map, z: float, cage: Map, deep: float) -> None:
        """Vertebrae with their discs and canal, ribs that fall forwards, sternum, shoulder blades."""
        body, x, y, side = self._body, self._x, self._y, self._side
        back = deep * 0.60
        disc_gap = 0.5 + 0.5 * math.cos(2 * math.pi * (z / 23.0 + body.rib_phase))
        _blend(hu, 190.0 + 160.0 * disc_gap, _disc(x, y, 0.0, back - 0.04, 0.105, 0.085))
        _blend(hu, 420.0, _disc(x, y, 0.0, back + 0.12, 0.11, 0.05) * disc_gap)
        _blend(hu, 25.0, _disc(x, y, 0.0, back + 0.075, 0.042, 0.036))
        phase = (z - 42.0 * self._angle) / body.rib_mm + body.rib_phase
        level = (phase - np.round(phase)) * np.float32(body.rib_mm)
        within = np.exp(-_fourth(level / 5.0) - _fourth((cage - 1.03) / 0.042))
        present = _at(z, 25, 5) * _step(self._angle - 0.25, 0.05) * _step(2.75 - self._angle, 0.08)
        _blend(hu, 430.0, np.asarray(within * present, np.float32))
        sternum = _at(z, 75, 6) * (1 - _at(z, 205, 6))
        _blend(hu, 230.0, _disc(x, y, 0.0, -deep * 0.80, 0.10, 0.030) * sternum)
        blades = _at(z, 30, 8) * (1 - _at(z, 150, 10))
        blade = (y - (deep * 0.62 - 0.42 * (side - 0.42))) / 0.020
        _blend(hu, 330.0, np.exp(-_fourth(blade) - _fourth((side - 0.50) / 0.14)) * np.float32(blades))


def _span(centre: float, half: float, size: int) -> slice:
    low = int((centre - half + 1) / 2 * size)
    high = int((centre + half + 1) / 2 * size) + 1
    return slice(max(low, 0), max(min(high, size), 0))


def _centres(count: int) -> Map:
    return np.asarray((np.arange(count, dtype=np.float32) + 0.5) * np.float32(2.0 / count) - 1.0, dtype=np.float32)


def _step(x: NDArray[Any], width: float) -> Map:
    """0 to 1 around x = 0, over about four times `width`."""
    return np.asarray(0.5 + 0.5 * np.tanh(x * np.float32(0.5 / width)), dtype=np.float32)


def _fourth(x: NDArray[Any]) -> Map:
    squared = x * x  # twenty times faster than x**4
    return np.asarray(squared * squared, dtype=np.float32)


def _at(z: float, edge: float, width: float) -> float:
    """0 to 1 around z = `edge` mm; a negative width turns it round."""
    return 0.5 + 0.5 * math.tanh(0.5 * (z - edge) / width)


def _disc(x: Map, y: Map, cx: float, cy: float, rx: float, ry: float) -> Map:
    """An ellipse with a soft edge, 0..1."""
    squared = ((x - np.float32(cx)) / np.float32(rx)) ** 2 + ((y - np.float32(cy)) / np.float32(ry)) ** 2
    return _step(1 - squared, 0.12)


def _blend(hu: Map, value: Map | float, share: Map) -> None:
    """Replace `share` of what is there, in place."""
    hu += share * (value - hu)
