"""Cells of attacks that know the victim, or another one, and no detector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from dicomguard.attacks.attacked import Attacked
from dicomguard.attacks.margins import CHUNK, Margins, answers_of
from dicomguard.attacks.native import native_log_odds, native_margins
from dicomguard.attacks.suite import Attack
from dicomguard.lab.attacks.suite import SUITE
from dicomguard.lab.attacks.transfer import transfer
from dicomguard.lab.benchmark.attacking import attack_files, described
from dicomguard.lab.benchmark.cell import Result
from dicomguard.lab.benchmark.kinds.opening import collection_of, scorer_of
from dicomguard.lab.benchmark.progress import added
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.datasets import Split
from dicomguard.scoring.scorer import Scorer


def attack(settings: dict[str, Any], place: Place) -> Result:
    """Attack files of `split` with `attack` until `wanted` succeeded, or `cases` were tried.

    Where the cell needs a `surrogate`, another victim, the attack is made on that one.
    """
    scorer, collection = scorer_of(place), collection_of(place)
    cases = collection.cases(Split(settings["split"]))[: settings["cases"]]
    name = settings["attack"]
    known = SUITE[name]
    found = attack_files(
        scorer,
        _on(scorer_of(place, "surrogate"), scorer, known) if "surrogate" in place.folders else known,
        cases,
        collection.bits,
        place.folder,
        name=name,
        wanted=settings["wanted"],
        sees_floats=True,
        advance=added(place.tell),
    )
    return {"fingerprint": scorer.fingerprint, **described(found)}


def _on(surrogate: Scorer, victim: Scorer, attack: Attack) -> Attack:
    """The attack made on another network, on the same presentation values, away from the victim's answers.

    Those are right. Where the surrogate is wrong from the start, away from its own would be back to the truth.
    """

    def transferred(margins: Margins, pixels: Tensor, seeds: Sequence[int], *, chunk: int = CHUNK) -> Attacked:
        answers = answers_of(native_log_odds(victim), pixels, chunk=chunk)
        return transfer(attack, native_margins(surrogate, pixels, answers=answers), margins, pixels, seeds, chunk=chunk)

    return transferred
