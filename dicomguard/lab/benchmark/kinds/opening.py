"""What a cell's victim and its pictures are."""

from __future__ import annotations

from dicomguard.errors import DicomguardError
from dicomguard.lab.benchmark.runner import Place
from dicomguard.lab.benchmark.sets import opened_set
from dicomguard.lab.data import Collection
from dicomguard.scoring.scorer import Scorer

BUNDLE = "bundle"  # the folder of a victim's cell that holds it


def scorer_of(place: Place, role: str = "victim") -> Scorer:
    """The victim of a cell, with its enrolment where it has one.

    Raises:
        DicomguardError: it was enrolled on another device, so that it would not use the one that was asked for.

    """
    scorer = Scorer.load(place.folders[role] / BUNDLE, device=place.device)
    if not scorer.is_on(place.device):
        raise DicomguardError(
            f"{scorer.name} was enrolled elsewhere and would compute on {scorer.device.type}, not {place.device}.",
            advice="Delete the folder of its 'enrolled' cell; the next run enrols it again.",
        )
    return scorer


def collection_of(place: Place, role: str = "victim") -> Collection:
    """The data set that a victim was trained on."""
    settings = place.needs[role]["settings"]
    return opened_set(settings["data_set"], place.data, settings["side"], place.inventory)
