"""What the screener needs to know about an instance before it looks at a pixel."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from dicomguard.study import Uid

# Frames that are asked for in one go: many of a CT, one of a scanned slide. The size is that in memory, as float32.
FRAMES_AT_ONCE: Final = 16
BYTES_AT_ONCE: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Header:
    """One data set's identity, and what bundles are matched by.

    UIDs are "" where the data set has none. `attributes` holds, for each keyword that was asked for and is present, its
    value as text, or a list of texts where it has several. `is_image` is True where there is pixel data; `frames` is 0
    otherwise. `sha256` and `size_bytes` are those of the data set as it lies in the file.
    """

    sop_class_uid: Uid
    sop_instance_uid: Uid
    study_instance_uid: Uid
    series_instance_uid: Uid
    transfer_syntax_uid: Uid
    patient_id: str
    attributes: dict[str, str | list[str]]
    is_image: bool
    frames: int
    rows: int
    columns: int
    samples: int
    bits_stored: int
    photometric_interpretation: str
    sha256: str
    size_bytes: int

    @property
    def frame_bytes(self) -> int:
        """Size of one frame's presentation values in memory; a palette makes three planes of one."""
        planes = 3 if self.photometric_interpretation == "PALETTE COLOR" else self.samples
        return self.rows * self.columns * planes * 4

    @property
    def frames_at_once(self) -> int:
        """How many frames may be asked for together: whatever their size, at least one."""
        return max(1, min(FRAMES_AT_ONCE, BYTES_AT_ONCE // max(1, self.frame_bytes)))

    def parts(self) -> Iterator[tuple[int, int]]:
        """All frames in portions of `frames_at_once`: the first of each, and how many."""
        for start in range(0, self.frames, self.frames_at_once):
            yield start, min(self.frames_at_once, self.frames - start)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Header:
        """The inverse of `dataclasses.asdict`. Raises TypeError for missing or unknown fields."""
        return cls(**data)
