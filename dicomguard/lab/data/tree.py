"""Folders of DICOM files with their labels in a table; the group is the patient."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset

from dicomguard.errors import DicomguardError
from dicomguard.lab.data.inventory import some
from dicomguard.lab.data.listing import Entry, Listing, Picture
from dicomguard.lab.data.pictures import labels_of, read_table, refuse_twice, stamp
from dicomguard.lab.datasets import Example, Split
from dicomguard.pixels.reader import images

LABELS = "labels.csv"
_ABSENT_SHARE = 0.02
_FACTS = (
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "PatientID",
    "NumberOfFrames",
    "BitsStored",
    "SamplesPerPixel",
    "Modality",
)

Named = Callable[[Path, Dataset], str | None]
"""The label of a file, from its path under the root and its header; None where it does not take part."""


def labelled(root: Path, labels: Path | None = None) -> Listing:
    """DICOM files under `root`, labelled by `labels` (default `labels.csv` in it).

    Its columns: `label`, and `sop_instance_uid` or `path` (relative to `root`); `group` where the Patient ID is not
    what keeps pictures of one patient together.

    Raises:
        DicomguardError: the table cannot be used, or no file that it names is there.

    """
    table = labels or root / LABELS
    rows = read_table(table, ("label",))
    key = next((name for name in ("sop_instance_uid", "path") if name in rows[0]), None)
    if key is None:
        raise DicomguardError(
            f"{table} says neither sop_instance_uid nor path of its files.", advice="Add one of these columns."
        )
    if "split" in rows[0]:
        raise DicomguardError(
            f"{table} has a column split, which is not read for DICOM files.",
            advice="Give a folder and a table for each split apart, or drop the column: groups are then divided anew.",
        )
    refuse_twice(table, ((row[key], row[key]) for row in rows))
    wanted = {row[key]: row for row in rows}
    met: set[str] = set()

    def row_of(path: Path, header: Dataset) -> dict[str, str] | None:
        name = path.relative_to(root).as_posix() if key == "path" else str(header.get("SOPInstanceUID", ""))
        row = wanted.get(name)
        if row is not None:
            met.add(name)
        return row

    def label(path: Path, header: Dataset) -> str | None:
        row = row_of(path, header)
        return None if row is None else row["label"]

    def group(path: Path, header: Dataset) -> str | None:
        return (row_of(path, header) or {}).get("group")

    found = tree(root, label, group=group if "group" in rows[0] else None)
    missing = [name for name in wanted if name not in met]
    if not met:
        raise DicomguardError(
            f"none of the {len(wanted)} files that {table} names is under {root}.",
            advice="Paths are relative to the folder; UIDs are those of the files' SOP Instance UID.",
        )
    if len(missing) > max(1, _ABSENT_SHARE * len(wanted)):
        raise DicomguardError(
            f"{len(missing)} of the {len(wanted)} files that {table} names are not there or no DICOM: {some(missing)}.",
            advice="Correct the table or the folder: what is left would be another set.",
        )
    absent = (f"{len(missing)} files that {table.name} names and that are not there: {some(missing)}",) * bool(missing)
    return Listing(
        name=root.name,
        labels=labels_of(table, (one.example.label for one in found.entries)),
        entries=found.entries,
        source=f"DICOM files under {root.name}, labels of {table.name}.",
        maker=None,
        bits=found.bits,
        planes=found.planes,
        absent=(*found.absent, *absent),
    )


def tree(
    root: Path,
    label: Named,
    *,
    group: Named | None = None,
    pinned: Callable[[Path, Dataset], Split | None] | None = None,
) -> Listing:
    """Every DICOM file under `root` that `label` gives one, without labels of the listing yet.

    Files with several frames do not take part: a case is one picture.
    """
    entries: list[Entry] = []
    bits: list[int] = []
    planes: list[int] = []
    several: list[str] = []
    seen: set[str] = set()
    for path in sorted(path for path in root.rglob("*") if path.is_file()):
        header = _header(path)
        if header is None:
            continue
        name = label(path, header)
        uid = str(header.get("SOPInstanceUID", ""))
        if name is None or uid in seen:
            continue
        if str(header.get("NumberOfFrames") or 1).strip() != "1":
            several.append(path.name)
            continue
        seen.add(uid)
        patient = (group(path, header) if group else None) or str(header.get("PatientID") or "") or f"file {path.name}"
        entries.append(
            Entry(
                Example(path, name, patient),
                uid,
                partial(_picture, path),
                stamp(path, root),
                pinned(path, header) if pinned else None,
                partial(_dataset, path),
            )
        )
        bits.append(int(header.get("BitsStored") or 8))
        planes.append(3 if int(header.get("SamplesPerPixel") or 1) == 3 else 1)
    return Listing(
        name=root.name,
        labels=(),
        entries=entries,
        source="",
        maker=None,
        bits=max(bits, default=8),
        planes=max(planes, default=1),
        absent=(f"{len(several)} files of several frames: {some(several)}",) * bool(several),
    )


def by_series(labels: Mapping[str, str]) -> Named:
    """Labels by Series Instance UID."""
    return lambda _path, header: labels.get(str(header.get("SeriesInstanceUID", "")))


def _header(path: Path) -> Dataset | None:
    """What of the header is looked at; None where it is no DICOM file."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # values that a vendor wrote against the standard
            return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_FACTS))
    except Exception:  # noqa: BLE001 - pydicom raises anything at hostile files, and one must not hide all the others
        return None


def _dataset(path: Path) -> Dataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pydicom.dcmread(path)


def _picture(path: Path) -> Picture:
    """As the node shows it, with eight bits: for finding copies."""
    planes = np.rint(images(_dataset(path))[0].pixels * 255).astype(np.uint8)
    return planes[0] if len(planes) == 1 else np.ascontiguousarray(np.moveaxis(planes, 0, -1))
