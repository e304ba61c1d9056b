"""What the receiver accepts: every storage SOP class with every transfer syntax whose data set comes over the wire.

The limit of 128 contexts is the requestor's (odd one-byte context IDs, PS3.8 section 9.3.2.2); an acceptor has none.
"""

from __future__ import annotations

from collections.abc import Iterable

from pydicom._uid_dict import UID_dictionary
from pynetdicom.sop_class import (
    _NON_PATIENT_OBJECT_CLASSES,  # the only tables of SOP classes by service (PS3.4 Annex B and GG) there are
    _STORAGE_CLASSES,
)

from dicomguard.receive.offer import Offer

# Left out, because the pixel data is somewhere else or is a live stream: JPIP (PS3.5 A.6, A.8, A.4.11) and the SMPTE
# ST 2110 syntaxes of DICOM-RTV (PS3.22).
_ELSEWHERE = ("1.2.840.10008.1.2.4.94", "1.2.840.10008.1.2.4.95", "1.2.840.10008.1.2.4.204", "1.2.840.10008.1.2.4.205")
_LIVE = "1.2.840.10008.1.2.7."
# RFC 2557 MIME and XML encoding never were syntaxes of a data set on an association.
_NO_DATA_SET = ("1.2.840.10008.1.2.6.1", "1.2.840.10008.1.2.6.2")
# GE's implicit little endian with big endian pixel data, still sent by old scanners and archives.
_PRIVATE_SYNTAXES = ("1.2.840.113619.5.2",)


def transfer_syntaxes() -> frozenset[str]:
    """Every transfer syntax that is kept as received, retired ones included (PS3.6 table A-1)."""
    standard = {uid for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"}
    left_out = {uid for uid in standard if uid in _ELSEWHERE or uid in _NO_DATA_SET or uid.startswith(_LIVE)}
    return frozenset(standard - left_out) | frozenset(_PRIVATE_SYNTAXES)


def storage_classes() -> frozenset[str]:
    """The standard storage SOP classes of objects with a patient and a study, retired ones included (PS3.4 Annex B)."""
    named = {
        uid
        for uid, (name, kind, *_) in UID_dictionary.items()
        if kind == "SOP Class" and "Storage" in name and uid.startswith("1.2.840.10008.5.1.4.1.1.")
    }
    return frozenset(named | {str(uid) for uid in _STORAGE_CLASSES.values()}) - non_patient_classes()


def non_patient_classes() -> frozenset[str]:
    """Palettes, protocols, implant templates and the like: stored in the same way, but part of no study (PS3.4 GG)."""
    return frozenset(str(uid) for uid in _NON_PATIENT_OBJECT_CLASSES.values())


def standard_offer(private_sop_classes: Iterable[str] = ()) -> Offer:
    """All of the above, and the site's private storage classes."""
    return Offer(storage_classes() | frozenset(private_sop_classes), non_patient_classes(), transfer_syntaxes())
