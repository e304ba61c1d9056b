"""What a C-STORE response means to the sender (PS3.4 annex B.2.3, PS3.7 annex C). Pure.

| status | meaning |
|---|---|
| 0000, B000, B006, B007 | delivered; a warning is recorded |
| 0111 duplicate SOP instance | delivered |
| A7xx, 0110, 0213 | try again, without giving up |
| A9xx, 0122, 0117 | dead: waits for a person |
| Cxxx | dead after the second in a row |
| anything else | tried again a few times, then dead |
"""

from __future__ import annotations

from enum import Enum
from typing import Final


class Answer(Enum):
    """What to do with the instance now."""

    DELIVERED = "delivered"
    RETRY = "retry"
    DEAD = "dead"


_DELIVERED: Final = {
    0x0000: "",
    0xB000: "warning: coercion of data elements",
    0xB006: "warning: elements discarded",
    0xB007: "warning: data set does not match SOP class",
    0x0111: "duplicate SOP instance: it was there already",
}
_RETRY: Final = {0x0110: "processing failure", 0x0213: "resource limitation"}
_DEAD: Final = {0x0117: "invalid SOP instance", 0x0122: "SOP class not supported"}


def judge(status: int, strikes: int, max_strikes: int) -> Answer:
    """The answer to `status`, when the same kind of doubtful status came `strikes` times in a row before this one."""
    if status in _DELIVERED:
        return Answer.DELIVERED
    if is_busy(status):
        return Answer.RETRY
    if status in _DEAD or status >> 8 == 0xA9:
        return Answer.DEAD
    limit = 2 if status >> 12 == 0xC else max_strikes
    return Answer.DEAD if strikes + 1 >= limit else Answer.RETRY


def is_busy(status: int) -> bool:
    """True for a trouble of the peer's, not of the instance's: it passes, and counts no strike."""
    return status in _RETRY or status >> 8 == 0xA7


def in_words(status: int) -> str:
    """What a status says, "" for plain success. Our words: a peer's comment may hold anything."""
    known = {**_DELIVERED, **_RETRY, **_DEAD}
    if status in known:
        return known[status]
    match status >> 8:
        case 0xA7:
            return "out of resources"
        case 0xA9:
            return "data set does not match SOP class"
    return "cannot understand" if status >> 12 == 0xC else "a status that the standard does not name for C-STORE"
