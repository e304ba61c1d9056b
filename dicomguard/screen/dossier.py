"""The evidence of one decision as one file, for somebody without this node: what is in it, and how it is read back.

manifest.json       every other file with its SHA-256; what was left out, and why
README.txt          what this is, what it shows and what it cannot show, how to make the decision again
decision.json       the decision as it was recorded
ledger.json         its rows in the ledger with their places in the keyed chain, and the chain's head
receipts.json       who sent each instance and when, and the SHA-256 of what came
seeds.json          the noise seed of every frame that was scored; never the site key
model.json          bundle, fingerprint, enrolment, thresholds, and the site's policy
model/              the calibration or enrolment that it was decided with, where it is at hand
pictures/           what was drawn when the study was held
instances/          the instances, only when somebody asked for them: they are the patient's data
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

from pydantic import TypeAdapter

from dicomguard import __version__
from dicomguard.decision import Decision, Policy
from dicomguard.errors import LedgerError
from dicomguard.ledger.excerpt import decision_in
from dicomguard.screen.archive import MANIFEST, Archive, EvidenceError
from dicomguard.screen.archive import write as write_archive
from dicomguard.screen.compare import provenance
from dicomguard.screen.locate import Located, Lost, Whereabouts, check
from dicomguard.screen.redrawn import FrameSeed

_INSTANCES: Final = "instances/"
_STATEMENT: Final = "enrolment.json"
_ENROLMENT_FILES: Final = frozenset({_STATEMENT, "enrolment.safetensors"})
_HASHED_ID: Final = re.compile("[0-9a-f]{32}")
_Value = TypeVar("_Value")
_DECISION: Final = TypeAdapter(Decision)
_POLICY: Final = TypeAdapter(Policy)
_SEED: Final = TypeAdapter(FrameSeed)
_PLAIN_ID: Final = "patient_key: the site records the Patient ID itself"

README: Final = """\
Evidence of one decision by dicomguard {version}
Decision {decision_id}, made {decided_at}

WHAT IS HERE
{contents}
{withheld}
WHAT IT SHOWS
- decision.json, and row by row ledger.json, are what the node recorded. `covered` is the content that each row's MAC
  (HMAC-SHA256) is taken over; prev_mac and seq are its place in its writer's chain; `heads` is where that chain ended
  when this was written.
- Without the site's key no MAC can be checked, and whoever has the key could have made them. To you they are a
  commitment: the same rows, shown again by the site or found in a copy of its ledger or of its heads file that was kept
  elsewhere, must carry the same MACs. `mac_is_right` says what the node found when it wrote this file; it is the site's
  own word. Somebody trusted with the key can compute each MAC again from `covered`.
- seeds.json holds the 32 bytes from which the noise of each frame was drawn. Each is an HMAC-SHA256 under the site's
  key of what identifies the frame: SOP Instance UID, frame number, SHA-256 of the data set, fingerprint of the model
  and the purpose. These seeds reveal neither the key nor the seed of any other frame, data set or model. That the seeds
  are the key's, and were not chosen, can be checked by whoever has the key, and by nobody else.
- What can be checked without any key: that the instances have the recorded SHA-256, and that the decision, with these
  seeds and the bundle of the recorded fingerprint, comes out as it was recorded.

HOW TO MAKE THE DECISION AGAIN
    dicomguard reproduce --from THIS.zip --bundle FOLDER
FOLDER is the bundle whose fingerprint stands in model.json; whoever owns the model must give it to you. Its enrolment
is taken from model/ where it is there, from FOLDER otherwise. It needs the instances. {instances}
Numbers may lie 0.02 plus 2 % apart (--tolerance): another processor adds up in another order.

WHOM IT IS ABOUT
UIDs are here as they were sent: whoever has the archive they came from can tell the patient. receipts.json names AE
titles and network addresses, ledger.json the persons who ruled and what they wrote. Pictures named *.saliency.png show
the image itself, with whatever text was burned into it. Files in instances/ are the patient's data, whole.
"""


@dataclass(frozen=True, slots=True)
class Contents:
    """What goes into the file. `models`, `pictures`: file name -> content. `excerpt`: of the ledger.

    `has_hashed_ids`: the site records a keyed hash of the Patient ID, not the ID itself.
    """

    decision: Decision
    excerpt: Mapping[str, Any]
    found: Sequence[Whereabouts]
    seeds: Sequence[FrameSeed]
    policy: Policy
    models: Mapping[str, bytes]
    pictures: Mapping[str, bytes]
    with_instances: bool
    has_hashed_ids: bool


@dataclass(frozen=True, slots=True)
class Dossier:
    """The same, read back. `found`: the instances that were in it, unpacked and checked against the decision.

    `enrolments`: folders that the enrolments in it were unpacked to. `edited`: rows of the ledger whose MAC was not
    right when it was written, by the site's own word.
    """

    decision: Decision
    found: tuple[Whereabouts, ...]
    seeds: tuple[FrameSeed, ...]
    policy: Policy
    enrolments: tuple[Path, ...]
    has_instances: bool
    edited: tuple[str, ...]


def write(path: Path, contents: Contents, record: Callable[[str], None]) -> str:
    """Write the file; returns its SHA-256. The same ledger, spool and choices give the same bytes.

    `record` is called with the SHA-256 before there is a file at `path`.
    Raises EvidenceError where it exists already or cannot be written; then nothing is left behind.
    """
    files: dict[str, bytes | Path] = {}
    withheld: list[str] = []
    decision, excerpt = contents.decision.to_json(), json.loads(json.dumps(contents.excerpt))
    if not contents.with_instances and _may_be_plain(contents.decision.patient_key, contents.has_hashed_ids):
        withheld.append(f"{_PLAIN_ID}; the MAC of the decision's row covers it")
        decision["patient_key"] = None
        for row in excerpt["rows"]:
            row["covered"]["row"].pop("patient_key", None)
    located = [one for one in contents.found if isinstance(one, Located)]
    if contents.with_instances:
        files |= {
            _instance_name(n): one.instance.path for n, one in enumerate(contents.found) if isinstance(one, Located)
        }
    else:
        withheld.append("instances: the patient's data; 'evidence export --with-instances' puts them in")
    withheld += [_absence(one) for one in contents.found if not isinstance(one, Located)]
    files |= {f"model/{name}": content for name, content in contents.models.items()}
    files |= {f"pictures/{name}": content for name, content in contents.pictures.items()}
    files |= {
        "decision.json": _json(decision),
        "ledger.json": _json(excerpt),
        "receipts.json": _json([one.instance.receipt.to_json() for one in located]),
        "seeds.json": _json([seed.to_json() for seed in contents.seeds]),
        "model.json": _json(_model(contents)),
    }
    files["README.txt"] = _readme(contents.decision, [*files, MANIFEST], withheld, contents.with_instances)
    about = {"decision_id": contents.decision.decision_id, "dicomguard": __version__, "withheld": withheld}
    return write_archive(path, about, files, record)


def read(archive: Archive, folder: Path) -> Dossier:
    """Check every file, and unpack the instances into `folder` under names of our own. Raises EvidenceError."""
    archive.check()
    try:
        decision = _exactly(_DECISION, archive.json("decision.json"), Decision.to_json)
        excerpt = archive.json("ledger.json")
        in_ledger = decision_in(excerpt, decision.decision_id)
        edited = tuple(f"{row['table']} seq {row['seq']}" for row in excerpt["rows"] if row["mac_is_right"] is not True)
        seeds = tuple(_exactly(_SEED, entry, FrameSeed.to_json) for entry in archive.json("seeds.json"))
        policy = _exactly(_POLICY, archive.json("model.json")["policy"], asdict)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, LedgerError) as error:
        raise EvidenceError(
            f"{archive.path} holds a decision that cannot be read ({type(error).__name__}).",
            advice="Use the version of dicomguard that wrote it; the manifest names it.",
        ) from error
    if decision.decision_id != archive.manifest.get("decision_id"):
        raise EvidenceError(f"{archive.path} holds another decision than its manifest says.")
    if _json(decision.to_json()) != _json(in_ledger.to_json()):
        raise EvidenceError(
            f"{archive.path} holds another decision than the row of the ledger that is in it.",
            advice="Nothing that 'evidence export' writes does: find out who changed it.",
        )
    by_name = {_instance_name(number): recorded for number, recorded in enumerate(decision.instances)}
    there = {name for name in archive.names if name.startswith(_INSTANCES)}
    if not by_name or there - {*by_name}:
        raise EvidenceError(
            f"{archive.path} holds a decision on no instance, or instances that its decision does not name.",
            advice="Nothing that 'evidence export' writes does: find out who changed it.",
        )
    found: list[Whereabouts] = []
    for number, (name, recorded) in enumerate(by_name.items()):
        found.append(Lost(recorded, None))
        if name in there:
            target = folder / f"{number:06d}.dcm"
            archive.extract(name, target)
            found[-1] = check(target, decision, recorded, place=name) or found[-1]
    return Dossier(decision, tuple(found), seeds, policy, _unpack_models(archive, folder), bool(there), edited)


def _unpack_models(archive: Archive, folder: Path) -> tuple[Path, ...]:
    """Each folder below model/ to one of our own. Only names of an enrolment are taken, whatever else is there."""
    unpacked: dict[str, Path] = {}
    for name in archive.names:
        top, _, rest = name.partition("/")
        group, _, file = rest.partition("/")
        if top == "model" and file in _ENROLMENT_FILES:
            target = unpacked.setdefault(group, folder / f"enrolment-{len(unpacked)}")
            target.mkdir(exist_ok=True)
            if file == _STATEMENT:
                archive.json(name)  # whoever loads it need not fear what it is made of
            archive.extract(name, target / file)
    return tuple(unpacked.values())


def _may_be_plain(patient_key: str | None, has_hashed_ids: bool) -> bool:
    """True unless the site hashes and what is recorded is such a hash: an ID may have the form of one."""
    if patient_key is None:
        return False
    # A site that hashes now may have recorded this one before it did.
    return not (has_hashed_ids and _HASHED_ID.fullmatch(patient_key))


def _instance_name(number: int) -> str:
    return f"{_INSTANCES}{number + 1:06d}.dcm"


def _absence(one: Whereabouts) -> str:
    uid = one.recorded.sop_instance_uid
    if isinstance(one, Lost):
        if one.removal is None:
            return f"instance {uid}: not found, and no removal is on record"
        return f"instance {uid}: removed {one.removal.at.isoformat(timespec='seconds')} ({one.removal.kind})"
    assert not isinstance(one, Located)
    return f"instance {uid}: ALTERED since it was recorded: {one.why}"


def _model(contents: Contents) -> dict[str, Any]:
    models: dict[str, dict[str, Any]] = {}
    for instance in contents.decision.instances:
        if instance.fingerprint is not None:
            known = models.setdefault(
                instance.fingerprint, {"bundle": instance.bundle, "fingerprint": instance.fingerprint}
            )
            known |= provenance(instance.scores)
    return {"models": list(models.values()), "policy": asdict(contents.policy)}


def _readme(decision: Decision, names: Sequence[str], withheld: Sequence[str], with_instances: bool) -> bytes:
    listed = sorted(name for name in names if "/" not in name)
    folders = sorted({name.partition("/")[0] + "/" for name in names if "/" in name})
    return README.format(
        version=__version__,
        decision_id=decision.decision_id,
        decided_at=decision.decided_at.isoformat(timespec="seconds"),
        contents="\n".join(f"- {name}" for name in [*listed, *folders]),
        withheld="".join(f"- not here: {what}\n" for what in withheld),
        instances="They are in instances/." if with_instances else "This file has none: ask for one with instances.",
    ).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, indent=1, sort_keys=True, allow_nan=True).encode()


def _exactly(kind: TypeAdapter[_Value], data: Any, to_plain: Callable[[_Value], Any]) -> _Value:
    """The value that was written as `data`. Raises ValueError where it would have been written in another way."""
    value = kind.validate_python(data)
    if _json(to_plain(value)) != _json(data):
        raise ValueError("not as it would have been written")
    return value
