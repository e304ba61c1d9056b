"""Real DICOM files of many vendors and transfer syntaxes through the whole node: none lost, none altered, no crash."""

import hashlib
from collections import Counter

import numpy as np
import pytest
from pydicom.filereader import _read_file_meta_info, read_preamble

from dicomguard.config import load
from dicomguard.decision import REFUSED
from dicomguard.replay import send
from dicomguard.study import AeTitle, Peer
from tests.system.conftest import until

pytestmark = [pytest.mark.slow, pytest.mark.data, pytest.mark.timeout(900)]


def data_set_digest(path):
    """SHA-256 of what follows the file meta information, found by pydicom and not by us."""
    with path.open("rb") as file:
        read_preamble(file, force=True)
        _read_file_meta_info(file)
        return hashlib.sha256(file.read()).hexdigest()


def test_every_real_file_is_decided_and_delivered_or_held_for_a_stated_reason(make_node, ai, data_dir, armed_bundle):
    from dicomguard.cli import compose

    node = make_node(bundles=[{"path": str(armed_bundle)}], study={"quiet_s": 1.0})
    node.start()
    sent = send([data_dir / "dicom"], Peer(AeTitle("DICOMGUARD"), "127.0.0.1", node.port), calling=AeTitle("REPLAY"))
    assert len(sent) > 400
    stored = [item for item in sent if item.is_stored]
    # What could not be sent lacks the UIDs that C-STORE needs, or is no DICOM file; each says so.
    assert all(item.error for item in sent if not item.is_stored)
    assert len(stored) > 370, Counter(item.error for item in sent)

    config = load(node.config_path, {})
    expected = {(item.sop_instance_uid, data_set_digest(item.path)) for item in stored}
    with compose.open_ledger(config, "cli") as ledger:

        def decided():
            return {(i.sop_instance_uid, i.sha256): (d, i) for d in ledger.decisions() for i in d.instances}

        assert until(node, lambda: expected <= set(decided()), within_s=600, pause_s=1), node.log_end()
        found = decided()

        def settled():
            arrived = {(uid, digest) for uid, digest in ai.digests().items()}
            return all(key in arrived or found[key][0].disposition == "quarantine" for key in expected)

        assert until(node, settled, within_s=120, pause_s=1), node.log_end()
        held = {key for key in expected if found[key][0].disposition == "quarantine"}
    # What its sender was told is refused (0xA900, 0xC...) is kept and held all the same.
    refused = {item.sop_instance_uid for item in sent if item.status is not None and not item.is_stored}
    for uid, digest in set(found) - expected:
        assert uid in refused
        assert not REFUSED.isdisjoint(found[uid, digest][1].reasons)
        assert found[uid, digest][0].disposition == "quarantine"
    for key in held:
        decision, _ = found[key]
        assert decision.reasons
        assert len(list((config.spool_dir / "quarantine" / decision.decision_id).glob("*.dcm"))) == len(
            decision.instances
        )
    reasons = Counter(reason.value for key in expected for reason in found[key][1].reasons)
    scored = sum(found[key][1].scores is not None for key in expected)
    print(f"{len(sent)} files, {len(stored)} stored, {len(expected) - len(held)} forwarded, {len(held)} held,")
    print(f"{scored} scored; reasons {dict(reasons)}")
    # Most of what is an image is decoded by the permissive codecs, and nothing that was scored is without a number.
    assert scored > 200
    assert reasons["model_fault"] == 0
    for _, instance in found.values():
        if instance.scores is not None:
            assert np.isfinite(instance.scores["worst"]["statistic"])
