"""The truth about a set of files, one JSON object a line: written whole or not at all, read with care.

A manifest lies beside the folder that it describes; paths in it are relative to it. What `dicomguard replay` adds to a
copy of it (`status`, `is_stored`, `error`) is read as well.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Final, Literal, Self

from dicomguard.errors import DicomguardError
from dicomguard.lab import whole

NAME: Final = "manifest.jsonl"
Truth = Literal["clean", "attacked"]


@dataclass(frozen=True, slots=True)
class Row:
    """One file. `path` None: it was made and not kept, because its attack died in rounding.

    `answer_clean`, `answer_before_rounding`, `answer_after_rounding`: what the bundle says of the source, of the
    attacked pixels, and of the file as the node reads it; of several frames those of the first that flipped.
    `flipped`: the file has another answer than its source, `flipped_frames` of its `frames` have. `eps`: the strength
    at which the attack flipped it (of several frames the largest), `moved` the largest change that is in the file,
    both in presentation values (0 to 1). `sha256` is that of the encoded data set, as the node records it.
    """

    sop_instance_uid: str
    truth: Truth
    path: str | None = None
    study_instance_uid: str = ""
    series_instance_uid: str = ""
    source_sop_instance_uid: str = ""
    source_study_instance_uid: str = ""
    attack: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    eps: float | None = None
    moved: float | None = None
    seed: int | None = None
    answer_clean: str | None = None
    answer_before_rounding: str | None = None
    answer_after_rounding: str | None = None
    flipped_before_rounding: bool | None = None
    flipped: bool | None = None
    frames: int = 1
    flipped_frames: int | None = None
    bundle: str | None = None
    fingerprint: str | None = None
    sha256: str | None = None
    is_stored: bool | None = None
    error: str = ""

    @property
    def is_sent(self) -> bool:
        """True for what lies in the set; what is not there cannot arrive."""
        return self.path is not None

    @property
    def is_attack(self) -> bool:
        """True for an attack that worked; one whose manifest does not say so is taken at its word."""
        return self.truth == "attacked" and self.flipped is not False

    def to_json(self) -> dict[str, Any]:
        """A plain mapping, without what only a replay knows."""
        found = asdict(self)
        if self.is_stored is None:
            del found["is_stored"], found["error"]
        return found

    @classmethod
    def from_json(cls, data: Any) -> Self:
        """From one line; keys that nobody here knows are passed over. Raises ValueError naming what is wrong."""
        if not isinstance(data, dict):
            raise ValueError("it is no JSON object")  # noqa: TRY004 - one kind of error for a wrong line
        uid = data.get("sop_instance_uid") or data.get("uid")
        if not isinstance(uid, str) or not uid:
            raise ValueError("it has no sop_instance_uid")
        if data.get("truth") not in ("clean", "attacked"):
            raise ValueError("its truth is neither clean nor attacked")
        odd = [name for name in ("path", "attack", "sha256") if not isinstance(data.get(name), str | None)]
        if odd:
            raise ValueError(f"its {odd[0]} is no text")
        # Lines of other hands say where a file lies or leave it out; that it was not kept, only `path: null` says.
        known = {each.name for each in fields(cls)}
        return cls(**{"path": "", **{k: v for k, v in data.items() if k in known}, "sop_instance_uid": uid})


def read(path: Path) -> list[Row]:
    """Every line. Raises DicomguardError naming the line that is wrong."""
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DicomguardError(
            f"The manifest {path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}.",
            advice="Name the manifest.jsonl that 'dicomguard lab forge' wrote.",
        ) from error
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append(Row.from_json(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DicomguardError(
                f"Line {number} of the manifest {path} cannot be used: {error}.",
                advice="Each line is a JSON object with sop_instance_uid and truth (clean or attacked).",
            ) from error
    if not rows:
        raise DicomguardError(f"The manifest {path} lists nothing.", advice="Forge something first.")
    repeated = _first_repeated([row.sop_instance_uid for row in rows])
    if repeated is not None:
        raise DicomguardError(f"The manifest {path} lists {repeated} twice.", advice="One line for each file.")
    return rows


def write(path: Path, rows: Iterable[Row]) -> None:
    """Replace the manifest in one step, after its last byte is on the disk. Raises DicomguardError."""
    whole.write_text(path, "".join(json.dumps(row.to_json(), separators=(",", ":")) + "\n" for row in rows))


def _first_repeated(uids: Sequence[str]) -> str | None:
    seen: set[str] = set()
    for uid in uids:
        if uid in seen:
            return uid
        seen.add(uid)
    return None
