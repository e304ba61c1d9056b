"""Synthetic chest-like QA phantoms as valid CR, DX and CT instances: the demo, canaries and tests need no patient data.

What a phantom shows is drawn from its seed alone: the same arguments give the same data set, byte for byte, on one
version of NumPy. It is a test object, not a model of disease; no statement about patients follows from it.
"""

from __future__ import annotations

import numpy as np
from pydicom.dataset import Dataset

from dicomguard.phantom.anatomy import Anatomy, attenuation, draw
from dicomguard.phantom.detector import expose
from dicomguard.phantom.header import Modality, chest_header
from dicomguard.phantom.tomography import Tomography, series

__all__ = ["Anatomy", "Modality", "Tomography", "make", "series", "study"]


def make(
    seed: int,
    *,
    opacity: bool,
    rows: int = 1024,
    columns: int = 1024,
    modality: Modality = "DX",
    instance: int = 1,
) -> Dataset:
    """One frontal chest phantom, uncompressed, 12 bits stored, MONOCHROME2, with `file_meta`.

    `opacity` adds a soft-edged consolidation to one lung. `instance` numbers the images of one study from 1: the body
    and its disease stay the same, positioning, exposure and noise differ a little. Explicit VR Little Endian; stored to
    presentation values is affine and covers all 12 bits. Raises ValueError where the size is below 64 or above 16384.
    """
    if not (64 <= rows <= 16384 and 64 <= columns <= 16384):
        raise ValueError(f"A phantom of {rows} x {columns} pixels is not made; 64 to 16384 on each side are.")
    body = draw(np.random.default_rng([seed, 1]), np.random.default_rng([seed, 2, instance]), opacity=opacity)
    rng = np.random.default_rng([seed, 3, instance])
    stored = expose(attenuation(body, rows, columns), body.dose, rng)
    dataset = chest_header(
        name=f"{modality}/{seed}/{int(opacity)}/{rows}x{columns}",
        label=f"{seed}",
        modality=modality,
        opacity=opacity,
        instance=instance,
        rows=rows,
        columns=columns,
    )
    dataset.PixelData = stored.astype("<u2").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def study(
    seed: int,
    *,
    opacity: bool,
    images: int = 1,
    rows: int = 1024,
    columns: int = 1024,
    modality: Modality = "DX",
) -> list[Dataset]:
    """One study of one series with `images` exposures of the same phantom, as `make` gives them."""
    return [
        make(seed, opacity=opacity, rows=rows, columns=columns, modality=modality, instance=number)
        for number in range(1, images + 1)
    ]
