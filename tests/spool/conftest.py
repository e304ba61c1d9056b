import hashlib
from dataclasses import replace

import pytest

from dicomguard.spool.store import Spool
from dicomguard.study import Receipt, Uid, utc_now


@pytest.fixture
def spool(tmp_path):
    made = Spool(tmp_path / "spool")
    made.create()
    return made


@pytest.fixture
def put(spool):
    """Receive an instance as the receiver does."""
    incoming = spool.incoming(reserve_bytes=0)

    def receive(sop="1.2.3.4", study="1.2.3", data=b"data", fault="", **said):
        part = incoming.begin(
            sop_class_uid="1.2.840.10008.5.1.4.1.1.1.1",
            sop_instance_uid=sop,
            transfer_syntax_uid="1.2.840.10008.1.2.1",
            calling_ae="CT1",
        )
        part.write(data)
        return part.commit(replace(receipt(sop, study, fault), **said))

    return receive


def receipt(sop="1.2.3.4", study="1.2.3", fault=""):
    return Receipt(
        received_at=utc_now(),
        calling_ae="CT1",
        called_ae="DICOMGUARD",
        address="10.0.0.1",
        association_id="a1",
        sop_class_uid=Uid("1.2.840.10008.5.1.4.1.1.1.1"),
        sop_instance_uid=Uid(sop),
        transfer_syntax_uid=Uid("1.2.840.10008.1.2.1"),
        study_instance_uid=Uid(study),
        series_instance_uid=Uid(f"{study}.1"),
        sha256="",
        size_bytes=0,
        fault=fault,
    )


def digest(data):
    return hashlib.sha256(data).hexdigest()


def everything(spool):
    """Every instance file past `incoming/`: its folder's name and its path."""
    for place in ("claimed", "store", "quarantine", "rejected", "failed", "outbound", "undeliverable"):
        for path in sorted((spool.root / place).rglob("*.dcm")):
            yield place, path
