"""CT series of a synthetic chest: any number of them, with the correlation between slices that real series have."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from dicomguard.phantom import thorax
from dicomguard.phantom.ct_header import Geometry, ct_header
from dicomguard.phantom.tomograph import Noise, store


class Tomography:
    """One body in the scanner: `slices` planes from head to feet, any of which can be made alone."""

    def __init__(self, seed: int, *, slices: int, rows: int, columns: int, opacity: bool) -> None:
        if not (1 <= slices <= 4096 and 64 <= rows <= 1024 and 64 <= columns <= 1024):
            raise ValueError(
                f"A series of {slices} slices of {rows} x {columns} is not made; "
                "1 to 4096 slices with 64 to 1024 pixels on each side are."
            )
        self.body = thorax.draw(np.random.default_rng([seed, 11]), opacity=opacity)
        self.slices, self.rows, self.columns = slices, rows, columns
        self.increment_mm = thorax.LENGTH_MM / slices
        self._planes = thorax.Planes(self.body, rows, columns)
        self._noise = Noise([seed, 12], rows, columns)

    def z_mm(self, index: int) -> float:
        """Distance of slice `index` (from 0) from the top of the body."""
        return (index + 0.5) * self.increment_mm

    def shows_opacity(self, index: int) -> bool:
        """The truth about slice `index`: does its plane cut well through the opacity."""
        return self.body.shows_opacity(self.z_mm(index))

    def stored(self, index: int) -> NDArray[np.uint16]:
        """Stored values of slice `index`, 12 bits, shape (rows, columns); Hounsfield units are 1024 less."""
        return store(self._planes.at(self.z_mm(index)) + np.float32(self.body.noise_hu) * self._noise.at(index))


def series(seed: int, *, slices: int, rows: int = 512, columns: int = 512, opacity: bool = False) -> Iterator[Dataset]:
    """One CT series of one study, slice by slice, as valid CT Image Storage instances with `file_meta`.

    Explicit VR Little Endian, 12 bits stored, Hounsfield units by rescale, lung window. The same arguments give the
    same data sets. `opacity` puts a soft-edged consolidation into one lung; most slices do not cut it. Raises
    ValueError, with the first slice, where the size is out of range.
    """
    scan = Tomography(seed, slices=slices, rows=rows, columns=columns, opacity=opacity)
    name = f"CT/{seed}/{int(opacity)}/{slices}x{rows}x{columns}"
    for index in range(slices):
        geometry = Geometry(index + 1, scan.increment_mm, 2 * scan.body.half_field_mm, rows, columns)
        dataset = ct_header(name, f"{seed}", geometry, opacity=opacity)
        dataset.PixelData = scan.stored(index).astype("<u2").tobytes()
        dataset["PixelData"].VR = "OW"
        yield dataset
