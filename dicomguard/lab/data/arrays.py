"""MedMNIST archives (`.npz`), read without pickle.

Yang et al., MedMNIST v2, Scientific Data 2023;10:41 (doi 10.1038/s41597-022-01721-8); https://medmnist.com. Keys
`train_images`, `train_labels`, `val_...`, `test_...`; images (N, H, W) or (N, H, W, 3) of bytes, labels (N, 1).
"""

from __future__ import annotations

import zipfile
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dicomguard.errors import DicomguardError
from dicomguard.lab.data.listing import Entry, Listing, Maker, Picture
from dicomguard.lab.data.pictures import NO_PATIENTS, stamp
from dicomguard.lab.datasets import Example, Split
from dicomguard.lab.instances import secondary_capture

_PARTS = ("train", "val", "test")
_MOST_CLASSES = 64


def archive(path: Path, *, maker: Maker | None = None, labels: tuple[str, ...] | None = None) -> Listing:
    """Pictures of the official test part are test pictures; the other two parts are divided anew.

    Raises:
        DicomguardError: it is no such archive; single-label pictures of one or three planes are what is taken.

    """
    advice = "Give an archive of 2D pictures with one label each, as https://medmnist.com offers them."
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            found = {f"{part}_{kind}": held[f"{part}_{kind}"] for part in _PARTS for kind in ("images", "labels")}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, EOFError) as error:
        raise DicomguardError(f"{path} cannot be read as a MedMNIST archive: {error}.", advice=advice) from error
    entries: list[Entry] = []
    classes = _classes(path, found, advice)
    planes = 1
    for part in _PARTS:
        images, truth = found[f"{part}_images"], found[f"{part}_labels"].reshape(-1)
        if images.dtype != np.uint8 or len(images) != len(truth) or not _is_flat(images):
            raise DicomguardError(
                f"{path}: {part}_images is {images.dtype} of shape {images.shape} for {len(truth)} labels.",
                advice=advice,
            )
        planes = 3 if images.ndim == 4 else 1
        for place, label in enumerate(truth.tolist()):
            name = f"{part}_{place}"
            entries.append(
                Entry(
                    Example(path / name, str(label) if labels is None else labels[label], name),
                    f"{path.stem}/{name}",
                    partial(_picture, images, place),
                    stamp(path, path.parent),
                    Split.TEST if part == "test" else None,
                )
            )
    named = labels or tuple(str(one) for one in range(classes))
    if len(named) != classes:
        raise DicomguardError(f"{path} has {classes} classes, and {len(named)} names were given.")
    return Listing(
        name=path.stem,
        labels=named,
        entries=entries,
        source=f"{path.name}: Yang et al., MedMNIST v2, Scientific Data 2023;10:41 (doi 10.1038/s41597-022-01721-8).",
        maker=maker or secondary_capture,
        bits=8,
        planes=planes,
        limits=(NO_PATIENTS, "The pictures were scaled down when the archive was made."),
    )


def _is_flat(images: NDArray[np.generic]) -> bool:
    return images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)


def _classes(path: Path, found: dict[str, NDArray[np.generic]], advice: str) -> int:
    labels = [found[f"{part}_labels"] for part in _PARTS]
    for one in labels:
        if one.dtype.kind not in "iu" or one.size != len(one) or not one.size:
            raise DicomguardError(f"{path}: labels of shape {one.shape} are not one for each picture.", advice=advice)
    whole = np.concatenate([one.reshape(-1).astype(np.int64) for one in labels])
    if whole.min() < 0 or not 1 <= whole.max() < _MOST_CLASSES:
        raise DicomguardError(f"{path}: labels from {whole.min()} to {whole.max()} name no classes.", advice=advice)
    return int(whole.max()) + 1


def _picture(images: NDArray[np.uint8], place: int) -> Picture:
    picture: Picture = images[place]
    return picture
