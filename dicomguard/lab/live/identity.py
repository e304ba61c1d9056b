"""New identities for the instances of a study, the same for all that belongs together.

A forged study is one that nobody has sent before: another Study, Series and SOP Instance UID, another frame of
reference, and every reference of one of its instances to another follows. UIDs are of the 2.25 kind (PS3.5 B.2) and
derived from what is forged, so that the same set forged again is the same set.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import Final

from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.uid import UID

from dicomguard.pixels.header import Header

_NAMESPACE: Final = uuid.UUID("d2f0b1d5-6a2b-5f8e-8f3a-41c7c0a9e6b4")
# Known to everybody (PS3.6 table A-2): a frame of reference of an atlas is the same in every study.
_WELL_KNOWN: Final = "1.2.840.10008."
_FRAMES: Final = frozenset({"FrameOfReferenceUID", "ReferencedFrameOfReferenceUID"})


class Identity:
    """What the instances of one study are called in one forged copy of it. `kind` tells copies apart."""

    def __init__(self, kind: str, instances: Iterable[Header]) -> None:
        """`instances`: those of the study that are forged, so that their references to each other can follow."""
        self._kind = kind
        self._new: dict[str, str] = {}
        for header in instances:
            self._new[header.study_instance_uid] = self._named("study", header.study_instance_uid)
            self._new[header.series_instance_uid] = self._named("series", header.series_instance_uid)
            # What the same UID stood for in another folder is another instance.
            name = f"{header.sop_instance_uid}/{header.sha256}"
            self._new[header.sop_instance_uid] = self._named("instance", name)
        self._new.pop("", None)

    def of(self, uid: str) -> str:
        """The new UID of a study, a series or an instance of this study."""
        return self._new[uid]

    def give(self, dataset: Dataset) -> None:
        """Put the new UIDs into a data set and its file meta information, in place."""
        dataset.walk(self._replace)
        dataset.file_meta.MediaStorageSOPInstanceUID = UID(str(dataset.SOPInstanceUID))

    def _replace(self, _: Dataset, element: DataElement) -> None:
        if element.VR != "UI" or not element.value:
            return
        if isinstance(element.value, MultiValue):
            element.value = [self._after(element.keyword, str(uid)) for uid in element.value]
        else:
            element.value = self._after(element.keyword, str(element.value))

    def _after(self, keyword: str, uid: str) -> UID:
        if keyword in _FRAMES and not uid.startswith(_WELL_KNOWN):
            return UID(self._named("frame of reference", uid))
        return UID(self._new.get(uid, uid))

    def _named(self, level: str, uid: str) -> str:
        return f"2.25.{uuid.uuid5(_NAMESPACE, f'{self._kind}/{level}/{uid}').int}"


def refer_to_source(dataset: Dataset, source: Header) -> None:
    """Set what `forge` wrote into Source Image Sequence to the file that all frames came from (PS3.3 C.12.4.1)."""
    for item in dataset.get("SourceImageSequence", []):
        item.ReferencedSOPClassUID = UID(source.sop_class_uid)
        item.ReferencedSOPInstanceUID = UID(source.sop_instance_uid)


def mark_as_copy(dataset: Dataset, description: str) -> None:
    """Say in a copy with the source's very pixels who made it (Contributing Equipment Sequence, PS3.3 C.12.1)."""
    purpose = Dataset()
    purpose.CodeValue, purpose.CodingSchemeDesignator = "109103", "DCM"
    purpose.CodeMeaning = "Modifying Equipment"
    item = Dataset()
    item.PurposeOfReferenceCodeSequence = Sequence([purpose])
    item.Manufacturer = "dicomguard"
    item.ContributionDescription = description
    dataset.ContributingEquipmentSequence = Sequence([*dataset.get("ContributingEquipmentSequence", []), item])
