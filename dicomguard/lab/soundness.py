"""An honest try to falsify the guard's certificates: adaptive attacks within the budget, judged by the node itself.

Bases are clean images whose smoothed answer G is confirmed by a long vote. Each attempt ends as stored values within
the budget. Counted apart:

(a) from bases where the model f and G agreed, certificates that contradict G of the base. One that a long re-vote with
    fresh draws certifies again falsifies the guard; the others are its chance of error, and are held against
    Binomial(judged, alpha);
(b) from bases where f and G disagreed already, flips that are certified: not covered by the promise;
(c) from bases where they agreed, flips that are UNCERTIFIED and that the node's policy lets pass.

With another budget than the certificate's eps this is a control: a larger one shows that the attack works, and proves
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dicomguard.attacks.joint import TACTICS, Budget, Pair, Tactic, joint_attack
from dicomguard.lab import soundness_figures
from dicomguard.lab.majority import Answer, Terms, is_certified, majority_needs, votes
from dicomguard.lab.measure import Journal

Stored = NDArray[np.int64]
Kind = Literal["agreeing", "disagreeing", "undecided"]

_CONFIRMED = 1e-6  # the chance that a confirmed majority is none


@dataclass(frozen=True, slots=True)
class Base:
    """A clean image: `stored` (1, H, W), grey levels above the low end of the guard's fixed range."""

    key: str
    stored: Stored


@dataclass(frozen=True, slots=True)
class Judged:
    """What the node says of one file: the model's answer, the guard's outcome, and whether the policy lets it pass."""

    answer: Answer
    outcome: str
    passes: bool


Judge = Callable[[Sequence[Base], Sequence[Stored]], Sequence[Judged]]
"""The node's own procedure: the bases whose files are to hold these stored values; one `Judged` for each."""


class Soundness:
    """One model, guard and node. Resumable: every vote and every attempt is kept under the work folder."""

    def __init__(
        self,
        pair: Pair,
        judge: Judge,
        terms: Terms,
        budget: Budget,
        *,
        work: Path,
        fingerprint: str,
        tactics: Sequence[Tactic] = TACTICS,
        device: str = "cpu",
        tick: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`fingerprint`: of all that `pair` and `judge` are made of; results under another one are not reused."""
        self._pair = pair
        self._judge = judge
        self._terms = terms
        self._budget = budget
        self._tactics = tuple(tactics)
        self._device = torch.device(device)
        self._tick = tick
        # A control attacks the same bases: their votes do not depend on how far an attack may go.
        voted = fingerprint, terms, budget.levels
        self._bases = Journal(work / "soundness-bases.jsonl", _sha256(repr(voted)))
        self._attempts = Journal(work / "soundness-attempts.jsonl", _sha256(repr((voted, budget, self._tactics))))
        self._seen: dict[str, None] = {}  # keys in order, each once
        self._made: dict[str, None] = {}

    def confirm(self, bases: Sequence[Base]) -> dict[str, Kind]:
        """Let the node judge each clean image and count its long vote; returns what became of each key."""
        for base in bases:
            if base.key not in self._bases:
                self._bases.put(base.key, self._confirmed(base))
            self._seen[base.key] = None
            self._tick("bases")
        return {base.key: self._bases[base.key]["kind"] for base in bases}

    def of_kind(self, bases: Sequence[Base], kind: Kind) -> list[Base]:
        """The confirmed bases of one kind, that with the smallest share of votes for G first: an attacker's choice."""
        chosen = [base for base in bases if base.key in self._bases and self._bases[base.key]["kind"] == kind]
        return sorted(chosen, key=lambda base: (self._bases[base.key]["share"], base.key))

    def attack(self, bases: Sequence[Base], attempts: int, *, batch: int = 16, shard: tuple[int, int] = (0, 1)) -> None:
        """Make `attempts` attempts in all, spread evenly over confirmed bases; those in the journal count.

        `shard` (i, n): only every nth of them from i on. Several processes of one thread each may share a work folder;
        a later one without a shard finds their attempts and reports.

        Raises:
            DicomguardError: the budget is less than one grey level.

        """
        numbers = range(shard[0], attempts if bases else 0, shard[1])
        planned = [_Attempt(bases[number % len(bases)], number // len(bases)) for number in numbers]
        pending = [attempt for attempt in planned if attempt.key not in self._attempts]
        by_shape: dict[tuple[int, ...], list[_Attempt]] = {}
        for attempt in pending:
            by_shape.setdefault(attempt.base.stored.shape, []).append(attempt)
        for attempt in planned:
            self._made[attempt.key] = None
            if attempt.key in self._attempts:
                self._tick("attempts")
        for alike in by_shape.values():
            for start in range(0, len(alike), batch):
                self._run(alike[start : start + batch])

    def report(self) -> dict[str, Any]:
        """What was found on the bases and in the attempts that this object was given, with exact intervals."""
        bases = [self._bases[key] for key in self._seen]
        attempts = [self._attempts[key] for key in self._made if key in self._attempts]
        return soundness_figures.report(bases, attempts, self._terms, self._budget)

    def _confirmed(self, base: Base) -> dict[str, Any]:
        (judged,) = self._judge([base], [base.stored])
        enough = majority_needs(self._terms.draws, _CONFIRMED)
        counted = self._vote(base, base.stored, "confirm", enough)
        majority, count = next(iter(counted.items()))
        kind: Kind = "undecided"
        if count >= enough:
            kind = "agreeing" if majority == judged.answer else "disagreeing"
        return {"kind": kind, "majority": majority, "share": count / sum(counted.values()), **asdict(judged)}

    def _vote(self, base: Base, stored: Stored, purpose: str, enough: int | None = None) -> dict[Answer, int]:
        seed = _seed(f"{purpose}/{base.key}/{hashlib.sha256(stored.tobytes()).hexdigest()}")
        sigma, draws = self._pair.sigma, self._terms.draws
        return votes(self._pair.guard, self._planes(stored), sigma=sigma, draws=draws, seed=seed, enough=enough)

    def _planes(self, stored: Stored) -> Tensor:
        return self._pair.planes(self._tensor([stored]) / self._budget.levels)[0]

    def _tensor(self, stored: Sequence[Stored]) -> Tensor:
        return torch.from_numpy(np.stack(stored)).to(self._device)

    def _run(self, attempts: Sequence[_Attempt]) -> None:
        clean = self._tensor([attempt.base.stored for attempt in attempts])
        tactics = [attempt.tactic(self._tactics) for attempt in attempts]
        targets = torch.tensor(self._targets(attempts, clean), device=self._device)
        found = joint_attack(
            self._pair, clean, targets, tactics, [_seed(attempt.key) for attempt in attempts], self._budget
        )
        files = [np.asarray(one) for one in found.stored.cpu().numpy()]
        hits = [index for index, hit in enumerate(found.flipped.tolist()) if hit]
        verdicts = self._judge([attempts[i].base for i in hits], [files[i] for i in hits]) if hits else []
        judged = dict(zip(hits, verdicts, strict=True))
        for index, attempt in enumerate(attempts):
            row = {
                "base": attempt.base.key,
                "tactic": self._tactics.index(tactics[index]),
                "change": int(np.abs(files[index] - attempt.base.stored).max()),
                "vote": float(found.vote[index]),
                **self._outcome(attempt.base, files[index], judged.get(index)),
            }
            self._attempts.put(attempt.key, row)
            self._tick("attempts")

    def _outcome(self, base: Base, stored: Stored, judged: Judged | None) -> dict[str, Any]:
        """`contradicts`: certified against G of the base; `again`: and certified by a long vote, freshly drawn."""
        clean = self._bases[base.key]
        if judged is None:
            return {"kind": clean["kind"], "judged": False, "flipped": False, "contradicts": False, "again": False}
        assert int(np.abs(stored - base.stored).max()) <= self._budget.grey_levels
        contradicts = (
            clean["kind"] != "undecided" and judged.outcome == "CERTIFIED" and judged.answer != tuple(clean["majority"])
        )
        return {
            "kind": clean["kind"],
            "judged": True,
            "flipped": judged.answer != tuple(clean["answer"]),
            "outcome": judged.outcome,
            "passes": judged.passes,
            "contradicts": contradicts,
            "again": contradicts and self._certifies(base, stored, judged.answer),
        }

    def _certifies(self, base: Base, stored: Stored, answer: Answer) -> bool:
        terms = self._terms
        shape = tuple(self._planes(stored).shape)
        counted = self._vote(base, stored, "vote again")
        return is_certified(counted, answer, shape, eps=terms.eps, sigma=self._pair.sigma, alpha=terms.alpha)

    def _targets(self, attempts: Sequence[_Attempt], clean: Tensor) -> list[Answer]:
        """Another answer for each: G's own where it disagrees, else the nearest for the model, then the next."""
        with torch.no_grad():
            log_odds = self._pair.model(clean / self._budget.levels).float().cpu()
        found = []
        for attempt, own in zip(attempts, log_odds, strict=True):
            row = self._bases[attempt.base.key]
            choices = _others(own, tuple(row["answer"]))
            which = attempt.number // len(self._tactics) % len(choices)
            found.append(tuple(row["majority"]) if row["kind"] == "disagreeing" else choices[which])
        return found


@dataclass(frozen=True, slots=True)
class _Attempt:
    """The `number`th on one base; it depends on nothing else, so a longer run goes on with a shorter one's."""

    base: Base
    number: int

    @property
    def key(self) -> str:
        return f"{self.base.key}#{self.number}"

    def tactic(self, tactics: Sequence[Tactic]) -> Tactic:
        """Every base begins at another tactic and then goes round."""
        return tactics[(self.number + _seed(self.base.key)) % len(tactics)]


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _seed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")


def _others(log_odds: Tensor, answer: Answer) -> list[Answer]:
    """Answers that differ in one question, the nearest for the model first. `log_odds` (questions, classes)."""
    gaps = {}
    for question, own in enumerate(answer):
        for other in set(range(log_odds.shape[1])) - {own}:
            changed = (*answer[:question], other, *answer[question + 1 :])
            gaps[changed] = float(log_odds[question, own] - log_odds[question, other])
    return sorted(gaps, key=lambda changed: gaps[changed])
