"""Which protected model, if any, an image belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dicomguard.decision import Mode
from dicomguard.scoring.scorer import Scorer


@dataclass(frozen=True, slots=True)
class Protected:
    """A loaded model, the images that it is for, and whether its verdicts are enforced.

    `match`: DICOM keyword -> accepted values; every line must fit, an empty mapping fits every image.
    """

    scorer: Scorer
    match: Mapping[str, Sequence[str]]
    mode: Mode

    def accepts(self, attributes: Mapping[str, str | list[str]]) -> bool:
        """True when each keyword's value (one of them, where the attribute has several) is an accepted one."""
        return all(
            not set(accepted).isdisjoint(_values(attributes.get(keyword))) for keyword, accepted in self.match.items()
        )


def first_match(models: Iterable[Protected], attributes: Mapping[str, str | list[str]]) -> Protected | None:
    """The first model that is for such an image; None when there is none."""
    return next((model for model in models if model.accepts(attributes)), None)


def _values(value: str | list[str] | None) -> list[str]:
    if value is None:
        return []
    return [value.strip()] if isinstance(value, str) else [item.strip() for item in value]
