"""From a name or a path to a `Collection`."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import PIL.Image
from pydicom.dataset import Dataset

from dicomguard.errors import ConfigError
from dicomguard.lab.cases import Case
from dicomguard.lab.data import arrays, named, papers, pictures, tree
from dicomguard.lab.data.catalogue import need
from dicomguard.lab.data.collection import Collection
from dicomguard.lab.data.division import LEAST, divide
from dicomguard.lab.data.inventory import take
from dicomguard.lab.data.listing import Entry, Listing, Maker, Picture
from dicomguard.lab.instances import (
    computed_radiograph,
    computed_tomograph,
    magnetic_resonance,
    ophthalmic_photograph,
    ultrasound,
)

# What pictures of an unknown source become when their modality is named, and how many bits they get.
MODALITIES: dict[str, tuple[Maker, int]] = {
    "CR": (computed_radiograph, 12),
    "CT": (computed_tomograph, 12),
    "MR": (magnetic_resonance, 12),
    "OP": (ophthalmic_photograph, 8),
    "US": (ultrasound, 8),
}


def names() -> list[str]:
    """The sets that have a name of their own."""
    return [*named.KNOWN, *papers.PAPERS]


def open_collection(
    name_or_path: str,
    data: Path,
    *,
    side: int | None = None,
    modality: str | None = None,
    labels: Path | None = None,
    cache: Path | None = None,
    least: int = LEAST,
    advance: Callable[[float], None] = lambda _share: None,
) -> Collection:
    """A set of `names()` that lies under `data`; or a path, as it is or under `data`.

    A path may be a folder with a folder of pictures for each class, a CSV (path, label, group, and split if the splits
    are given), a MedMNIST archive (.npz), or a folder of DICOM files with a labels.csv (or `labels`).

    Args:
        name_or_path: what to open.
        data: the folder that holds it.
        side: store the pictures at `side` x `side` pixels, averaged over areas; pictures only.
        modality: what pictures of a path become: CR, CT, MR, OP or US; secondary captures where nothing is said.
        labels: the table of a folder of DICOM files, where it is not its labels.csv.
        cache: a folder that keeps what was learnt by reading every picture once.
        least: how many pictures every class must have in every split.
        advance: told of shares of the reading as they are done.

    Raises:
        DicomguardError: it is not there (the advice says where to get it), cannot be read, leaks, or lacks pictures.
        ConfigError: nothing is called so, or pictures cannot be made as was asked.

    """
    listing = _listing(name_or_path, data, modality, labels)
    if side is not None and any(entry.dataset is not None for entry in listing.entries):
        raise ConfigError(
            f"{listing.name} holds DICOM files, which are taken as they are: they cannot be stored with {side} pixels.",
            advice="Leave the side out; a victim scales what it is given by itself.",
        )
    if side is not None and not 8 <= side <= 4096:
        raise ConfigError(f"pictures of {side} x {side} pixels are not made.", advice="Give 8 to 4096.")
    inventory = take(listing.entries, cache, advance)
    divided = divide(listing, inventory, least=least)
    places = {label: place for place, label in enumerate(listing.labels)}
    shrunk = () if side is None else (f"The pictures were stored with {side} x {side} pixels.",)
    left = tuple(f"Left out: {words}." for words in divided.left_out)
    return Collection(
        name=listing.name,
        labels=listing.labels,
        source=listing.source,
        bits=listing.bits,
        parts={
            split: tuple(_case(entry, listing, places, side) for entry in part) for split, part in divided.parts.items()
        },
        planes=listing.planes,
        stands_in_for=listing.stands_in_for,
        limits=(*listing.limits, *shrunk, *left),
        salt=divided.salt,
        left_out=divided.left_out,
        content=hashlib.sha256("\n".join(sorted(inventory.digests)).encode()).hexdigest(),
    )


def _listing(name: str, data: Path, modality: str | None, labels: Path | None) -> Listing:
    need(data)
    if name in named.KNOWN:
        return named.listing(name, data)
    if name in papers.PAPERS:
        return papers.listing(name, data)
    if modality is not None and modality not in MODALITIES:
        raise ConfigError(f"pictures are not made {modality}.", advice=f"Say one of {', '.join(MODALITIES)}.")
    maker, bits = MODALITIES.get(modality or "", (None, 8))
    path = next((place for place in (Path(name), data / name) if place.exists()), None)
    if path is None:
        raise ConfigError(
            f"{name} is no data set that is known here, and no path.",
            advice=f"Known are {', '.join(names())}; 'dicomguard lab datasets' says more.",
        )
    if path.suffix == ".csv":
        found = pictures.table(path, maker=maker, bits=bits)
    elif path.suffix == ".npz":
        found = dataclasses.replace(arrays.archive(path, maker=maker), bits=bits)
    elif path.is_dir() and (labels is not None or (path / tree.LABELS).exists()):
        return tree.labelled(path, labels)
    elif path.is_dir():
        found = pictures.folders(path, maker=maker, bits=bits)
    else:
        raise ConfigError(
            f"{path} is neither a folder nor a table nor an archive.", advice="Give a folder, a .csv or a .npz."
        )
    if modality == "OP":
        return dataclasses.replace(found, planes=3)
    if modality is not None and found.planes == 3:
        raise ConfigError(f"{path} holds colour pictures, which {modality} has not.", advice="Leave it out.")
    return found


def _case(entry: Entry, listing: Listing, places: dict[str, int], side: int | None) -> Case:
    key = entry.key if side is None else f"{entry.key}@{side}"
    make = partial(_instance, entry, listing.maker, listing.planes, side, key)
    return Case(key, places[entry.example.label], entry.example.group, make)


def _instance(entry: Entry, maker: Maker | None, planes: int, side: int | None, key: str, bits: int) -> Dataset:
    """The DICOM file as it is, whatever `bits`; or the picture as an instance with that many stored."""
    if entry.dataset is not None:
        return entry.dataset()
    assert maker is not None
    picture = entry.read()
    if planes == 3 and picture.ndim == 2:
        picture = np.repeat(picture[..., None], 3, -1)
    return maker(picture if side is None else shrunk(picture, side), bits=bits, name=key)


def shrunk(picture: Picture, side: int) -> Picture:
    """Shape (H, W) or (H, W, 3) to `side` x `side` pixels, each the mean of what it covers."""
    # In float, because Pillow's two passes over bytes would round twice.
    planes = np.atleast_3d(picture).astype(np.float32)
    small = [
        PIL.Image.fromarray(planes[..., place]).resize((side, side), PIL.Image.Resampling.BOX)
        for place in range(planes.shape[-1])
    ]
    found: Picture = np.rint(np.stack([np.asarray(one) for one in small], -1)).astype(np.uint8)
    return found if picture.ndim == 3 else found.squeeze(-1)
