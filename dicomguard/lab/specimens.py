"""Clean and attacked test files of a bundle, looked at once with everything and kept, so that any rule can be applied.

Every file gets the whole ladder of noise draws, the feature distance and the guard's vote. Which draws a cascade would
have made, which components are fused and at which alpha, is decided afterwards: all rows of a table see the same noise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydicom import dcmread, dcmwrite
from pydicom.dataset import Dataset

from dicomguard.attacks.forge import forge
from dicomguard.attacks.native import native_margins
from dicomguard.attacks.suite import SUITE
from dicomguard.lab.cases import Case, batches
from dicomguard.lab.measure import Journal, source_digest, to_evidence, to_row
from dicomguard.lab.stored import read
from dicomguard.lab.whole import replacing
from dicomguard.pixels.image import Image
from dicomguard.scoring import head, noise
from dicomguard.scoring.calibration import Evidence, smallest_margin
from dicomguard.scoring.guard import Vote
from dicomguard.scoring.head import Answer
from dicomguard.scoring.scorer import Scorer

_KEY = b"benchmark"  # stands in for a site key, so that a second run draws the same noise
_BATCH = 8
Tick = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Looked:
    """One file: what was seen of it, whether the answer was right before any attack, and the guard's outcome."""

    key: str
    truth: int
    evidence: Evidence
    outcome: str | None


class Specimens:
    """One bundle with its enrolment, one bit depth, one work folder."""

    def __init__(self, scorer: Scorer, bits: int, work: Path, tick: Tick) -> None:
        self.scorer = scorer
        self.bits = bits
        self._work = work
        self._tick = tick
        self._journals: dict[str, Journal] = {}

    def journal(self, kind: str) -> Journal:
        """The results of one kind (`clean`, or an attack's name).

        They belong to this very bundle, enrolment and path of computation; those of an attack to its source, too.
        """
        if kind not in self._journals:
            name = kind.replace(" ", "-").replace(".", "")
            path = self._work / f"{self.scorer.name}-{self.bits}-{name}.jsonl"
            made_by = [self.scorer.fingerprint, str(self.scorer.enrolment_sha256), self.scorer.path]
            if kind != "clean":
                made_by.append(source_digest("attacks"))
            self._journals[kind] = Journal(path, "/".join(made_by))
        return self._journals[kind]

    def look_at_clean(self, cases: Sequence[Case]) -> None:
        """Look at every clean file that is not in the journal yet."""
        journal = self.journal("clean")
        for group in batches([case for case in cases if case.key not in journal], _BATCH):
            self._put("clean", group, [case.make(self.bits) for case in group])
            for _ in group:
                self._tick("clean files")

    def attack(self, name: str, cases: Sequence[Case], wanted: int) -> None:
        """Attack files whose answer is right, until `wanted` still have another answer once they are stored."""
        journal = self.journal(name)
        flipped = sum(journal[case.key]["flipped"] for case in cases if case.key in journal)
        for group in batches([case for case in cases if case.key not in journal], _BATCH):
            if flipped >= wanted:
                return
            flipped += self._attack(name, group)

    def _attack(self, name: str, group: Sequence[Case]) -> int:
        sources = [case.make(self.bits) for case in group]
        images = [read(source)[0] for source in sources]
        answers = self._answers(images)
        right = [i for i, case in enumerate(group) if answers[i] == (case.truth,)]
        for i in set(range(len(group))) - set(right):
            self.journal(name).put(group[i].key, {"tried": False, "flipped": False})
        if not right:
            return 0
        forged = self._forged(name, [(group[i].key, sources[i], images[i]) for i in right])
        after = self._answers([read(dataset)[0] for dataset, _ in forged])
        hit = [row for row, i in enumerate(right) if after[row] != answers[i]]
        for row in set(range(len(right))) - set(hit):
            kept = {"tried": True, "flipped": False, "flipped_unrounded": forged[row][1]}
            self.journal(name).put(group[right[row]].key, kept)
        self._put(name, [group[right[row]] for row in hit], [forged[row][0] for row in hit])
        for _ in hit:
            self._tick(name)
        return len(hit)

    def _forged(self, name: str, targets: Sequence[tuple[str, Dataset, Image]]) -> list[tuple[Dataset, bool]]:
        """Each target attacked and stored as a file, and whether it had flipped before that.

        Files are kept: an attack costs minutes and knows the bundle alone, so that another enrolment meets the same.
        """
        made_by = hashlib.sha256(f"{self.scorer.fingerprint}/{source_digest('attacks')}".encode()).hexdigest()[:16]
        folder = self._work / "forged" / f"{self.scorer.name}-{self.bits}-{made_by}" / name.replace(" ", "-")
        folder.mkdir(parents=True, exist_ok=True)
        names = [hashlib.sha256(key.encode()).hexdigest()[:32] for key, _, _ in targets]
        missing = [i for i, stem in enumerate(names) if not any(folder.glob(f"{stem}.*.dcm"))]
        if missing:
            pixels = torch.stack([torch.from_numpy(targets[i][2].pixels) for i in missing])
            seeds = [int.from_bytes(hashlib.sha256(targets[i][0].encode()).digest()[:4], "big") for i in missing]
            attacked = SUITE[name](native_margins(self.scorer, pixels), pixels, seeds)
            for row, i in enumerate(missing):
                _, source, image = targets[i]
                words = f"{name}, adversarial test object"
                path = folder / f"{names[i]}.{'flipped' if attacked.flipped[row] else 'kept'}.dcm"
                with replacing(path) as partial:
                    dcmwrite(
                        partial,
                        forge(source, image, attacked.pixels[row].numpy(), description=words),
                        enforce_file_format=True,
                    )
        paths = [next(folder.glob(f"{stem}.*.dcm")) for stem in names]
        return [(dcmread(path), path.name.endswith(".flipped.dcm")) for path in paths]

    def _answers(self, images: Sequence[Image]) -> list[Answer]:
        return [head.answer(odds) for odds in self.scorer.answer(self.scorer.prepare(images).pixels).log_odds]

    def _put(self, kind: str, cases: Sequence[Case], datasets: Sequence[Dataset]) -> None:
        if not cases:
            return
        opened = [read(dataset) for dataset in datasets]
        seeds = [
            noise.seeds(_KEY, str(dataset.SOPInstanceUID), 0, digest, self.scorer.fingerprint)
            for dataset, (_, digest) in zip(datasets, opened, strict=True)
        ]
        batch = self.scorer.prepare([image for image, _ in opened])
        evidence, votes = self.scorer.look(batch, seeds, self.scorer.noise.ladder())
        for case, one, vote in zip(cases, evidence, votes, strict=True):
            facts = {"tried": True, "flipped": kind != "clean", "truth": case.truth, **_vote(vote)}
            self.journal(kind).put(case.key, {**facts, **to_row(one)})

    def found(self, kind: str, cases: Sequence[Case]) -> list[Looked]:
        """What was looked at of one kind, in the order of `cases`: clean files, or attacked ones that flipped."""
        journal = self.journal(kind)
        rows = [(case, journal[case.key]) for case in cases if case.key in journal and _is_seen(journal[case.key])]
        ladder = self.scorer.noise.ladder()
        return [Looked(case.key, case.truth, to_evidence(row, ladder), row["outcome"]) for case, row in rows]

    def tried(self, kind: str, cases: Sequence[Case]) -> tuple[int, int]:
        """How many files were attacked, and how many flipped before they were rounded to stored bits."""
        journal = self.journal(kind)
        rows = [journal[case.key] for case in cases if case.key in journal and journal[case.key]["tried"]]
        return len(rows), sum(row["flipped"] or row.get("flipped_unrounded", False) for row in rows)


def _vote(vote: Vote | None) -> dict[str, Any]:
    if vote is None:
        return {"outcome": None}
    return {"outcome": vote.outcome.value, "votes": vote.votes, "draws": vote.draws}


def _is_seen(row: dict[str, Any]) -> bool:
    return "clean" in row


def margin_of(looked: Looked) -> float:
    """How far the answer is from another one."""
    return smallest_margin(looked.evidence.seen)
