"""A data set as experiments use it: four splits of cases, and everything a report has to say about them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from dicomguard.lab.cases import Case
from dicomguard.lab.datasets import Split


@dataclass(frozen=True, slots=True)
class Collection:
    """Labelled pictures, divided by group.

    `labels`: the answer of a case is the place of its label here. `source`: what to cite. `stands_in_for`: the data set
    of a paper that this one is used in place of. `limits`: sentences for reports, on what the figures cannot show.
    `bits`: stored bits of the pictures' files; `planes`: 1 in gray, 3 in RGB. `salt`: what the hash that divided the
    groups was salted with. `left_out`: what does not take part, in words, with numbers and names. `content`: SHA-256
    over every picture's samples.
    """

    name: str
    labels: tuple[str, ...]
    source: str
    bits: int
    parts: Mapping[Split, tuple[Case, ...]]
    planes: int = 1
    stands_in_for: str | None = None
    limits: tuple[str, ...] = ()
    salt: str = ""
    left_out: tuple[str, ...] = ()
    content: str = ""

    def cases(self, split: Split) -> list[Case]:
        """The cases of one split, in an order that says nothing about them: any beginning is a fair draw.

        In the validation split the labels take turns, because what is chosen there is often chosen on a few dozen.
        """
        return list(self.parts[split])

    def counts(self) -> dict[str, dict[str, int]]:
        """Cases by split and label."""
        return {
            split.value: {
                label: sum(case.truth == place for case in self.parts[split]) for place, label in enumerate(self.labels)
            }
            for split in Split
        }
