"""Attack test files of a victim and look at what is left of them: the floats, and the file that they become.

Only what the victim answers rightly is attacked. A success is a changed answer on the file, after rounding to stored
bits; the share that had changed before is kept beside it, and so is what each looked like to the detectors.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dicomguard.attacks.forge import forge
from dicomguard.attacks.native import native_margins
from dicomguard.attacks.rounded import unrounded
from dicomguard.attacks.suite import Attack
from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.files import Files, Opened, load_files, looked, opened, seed_of
from dicomguard.lab.benchmark.progress import Advance
from dicomguard.lab.cases import Case, batches
from dicomguard.lab.whole import write_json
from dicomguard.scoring import head
from dicomguard.scoring.scorer import Scorer

_BATCH = 8


@dataclass(frozen=True, slots=True)
class Attempt:
    """One file that was attacked.

    `flipped`: the floats have another answer; `succeeded`: the file has. `linf`, `l2`: of the floats, in fractions of
    the presentation range (L2 over all pixels); `linf_stored`: of the file. `seconds`: of the attack, its share of the
    batch's.
    """

    key: str
    flipped: bool
    succeeded: bool
    linf: float
    l2: float
    linf_stored: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Attacked:
    """All attempts of one attack; `floats`: what flipped, as floats, if that was looked at; `files`: what succeeded."""

    attempts: tuple[Attempt, ...]
    floats: Files | None
    files: Files | None

    @property
    def left(self) -> Files | None:
        """What succeeded, as files; the floats that flipped where none of them did so as a file."""
        return self.floats if self.files is None else self.files

    @property
    def knows_floats(self) -> bool:
        """Whether all that flipped was looked at before rounding."""
        return self.floats is not None or not any(one.flipped for one in self.attempts)


def load_left(folders: Iterable[Path]) -> Files | None:
    """What is left of several attacks, see `Attacked.left`: one file after another; None where nothing is."""
    return _joined([load_attacked(folder).left for folder in folders])


def described(one: Attacked) -> dict[str, Any]:
    """Success rates with their denominators, sizes and seconds of an attack."""
    linf = np.array([a.linf for a in one.attempts if a.flipped])
    l2 = np.array([a.l2 for a in one.attempts if a.flipped])
    return {
        "tried": len(one.attempts),
        "flipped": sum(a.flipped for a in one.attempts),
        "succeeded": sum(a.succeeded for a in one.attempts),
        "survived": sum(a.succeeded and a.flipped for a in one.attempts),
        "linf_median": float(np.median(linf)) if len(linf) else None,
        "l2_median": float(np.median(l2)) if len(l2) else None,
        "seconds_an_image": float(np.mean([a.seconds for a in one.attempts])) if one.attempts else None,
    }


def attack_files(
    scorer: Scorer,
    attack: Attack,
    cases: Sequence[Case],
    bits: int,
    work: Path,
    *,
    name: str,
    wanted: int | None,
    sees_floats: bool,
    advance: Advance,
) -> Attacked:
    """Attack cases in their order until `wanted` succeeded or none is left. Goes on where it was interrupted in `work`.

    `sees_floats`: what flipped is looked at before rounding, too.

    Raises:
        DicomguardError: there are no cases, or the attack meets numbers that are not finite.

    """
    if not cases:
        raise DicomguardError(f"{name}: there are no files to attack.", advice="Check the data set and its splits.")
    parts: list[Attacked] = []
    count = 0
    for place, group in enumerate(batches(cases, _BATCH)):
        if wanted is not None and count >= wanted:
            break
        part = _kept(work, place)
        if part is None:
            part = _attack(scorer, attack, group, bits, name, sees_floats=sees_floats)
            _keep(work, place, part)
        parts.append(part)
        fresh = sum(one.succeeded for one in part.attempts)
        count += fresh
        advance(max(len(group) / len(cases), 0.0 if wanted is None else fresh / wanted))
    return together(parts)


def forged(source: Opened, pixels: NDArray[np.float32], name: str, fingerprint: str) -> Opened:
    """The file that an attack called `name` leaves of presentation pixels (C, H, W); the same bytes each time."""
    words = f"{name}, adversarial test object"
    return opened(source.case, forge(source.dataset, source.image, pixels, description=words), fingerprint)


def together(parts: Sequence[Attacked]) -> Attacked:
    """All parts as one."""
    return Attacked(
        tuple(one for part in parts for one in part.attempts),
        _joined([part.floats for part in parts]),
        _joined([part.files for part in parts]),
    )


def _joined(found: Sequence[Files | None]) -> Files | None:
    filled = [one for one in found if one is not None]
    return Files.joined(filled) if filled else None


def _attack(
    scorer: Scorer, attack: Attack, cases: Sequence[Case], bits: int, name: str, *, sees_floats: bool
) -> Attacked:
    clean = [opened(case, case.make(bits), scorer.fingerprint) for case in cases]
    answered = [(one, answer) for one, answer in zip(clean, _answers(scorer, clean), strict=True)]
    targets = [one for one, answer in answered if answer[0] == one.case.truth]
    before = [answer for one, answer in answered if answer[0] == one.case.truth]
    if not targets:
        return Attacked((), None, None)
    pixels = torch.stack([torch.from_numpy(one.image.pixels) for one in targets])
    started = time.perf_counter()
    found = attack(native_margins(scorer, pixels), pixels, [seed_of(one.case.key, name) for one in targets])
    seconds = (time.perf_counter() - started) / len(targets)
    moved = found.pixels.detach().cpu().numpy().astype(np.float32)
    # A detector that sees floats draws its noise as for the clean file: there are no other bytes.
    floats = [replace(one, image=unrounded(one.image, new)) for one, new in zip(targets, moved, strict=True)]
    stored = [forged(one, new, name, scorer.fingerprint) for one, new in zip(targets, moved, strict=True)]
    flipped = [now != was for now, was in zip(_answers(scorer, floats), before, strict=True)]
    succeeded = [now != was for now, was in zip(_answers(scorer, stored), before, strict=True)]
    attempts = []
    for row, one in enumerate(targets):
        change = moved[row] - one.image.pixels
        attempts.append(
            Attempt(
                one.case.key,
                flipped[row],
                succeeded[row],
                float(np.abs(change).max()),
                float(np.sqrt((change.astype(np.float64) ** 2).sum())),
                float(np.abs(stored[row].image.pixels - one.image.pixels).max()),
                round(seconds, 4),
            )
        )
    return Attacked(
        tuple(attempts),
        _looked(scorer, floats, flipped) if sees_floats else None,
        _looked(scorer, stored, succeeded),
    )


def _answers(scorer: Scorer, files: Sequence[Opened]) -> list[tuple[int, ...]]:
    odds = scorer.answer(scorer.prepare([one.image for one in files]).pixels).log_odds
    return [head.answer(row) for row in odds]


def _looked(scorer: Scorer, files: Sequence[Opened], which: Sequence[bool]) -> Files | None:
    chosen = [one for one, hit in zip(files, which, strict=True) if hit]
    return looked(scorer, chosen) if chosen else None


def _keep(work: Path, place: int, part: Attacked) -> None:
    for kind, files in (("floats", part.floats), ("files", part.files)):
        if files is not None:
            files.save(work, f"{place:04d}-{kind}")
    # Last, because it says that the others are there.
    facts = {
        "attempts": [asdict(one) for one in part.attempts],
        "floats": part.floats is not None,
        "files": part.files is not None,
    }
    write_json(work / f"{place:04d}-attempts.json", facts, indent=None)


def _kept(work: Path, place: int) -> Attacked | None:
    path = work / f"{place:04d}-attempts.json"
    if not path.exists():
        return None
    facts = json.loads(path.read_text())
    found = [load_files(work, f"{place:04d}-{kind}") if facts[kind] else None for kind in ("floats", "files")]
    return Attacked(tuple(Attempt(**one) for one in facts["attempts"]), *found)


def load_attacked(work: Path) -> Attacked:
    """What `attack_files` left in its folder."""
    places = sorted(int(path.name[:4]) for path in work.glob("????-attempts.json"))
    return together([part for place in places if (part := _kept(work, place)) is not None])
