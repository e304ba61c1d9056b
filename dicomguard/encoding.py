"""What the receiver's walk over a head and the decoder's over a data set must agree on (PS3.5 sections 6.2 and 7.1).

Where the two told data sets apart by tables of their own, an instance could be filed as one and judged as another.
"""

from __future__ import annotations

from typing import Final

LONG_VRS: Final = frozenset((b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV"))
"""With 32 bits of length, behind two bytes that are reserved."""
SHORT_VRS: Final = frozenset(
    (b"AE", b"AS", b"AT", b"CS", b"DA", b"DS", b"DT", b"FD", b"FL", b"IS", b"LO", b"LT", b"PN", b"SH", b"SL", b"SS")
) | frozenset((b"ST", b"TM", b"UI", b"UL", b"US"))
"""With 16 bits of length. There are no others."""
FIRST_GROUP: Final = 0x0004
"""Below it are commands and a file's own head, which readers of files take for just that (PS3.5 section 7.1)."""


def looks_explicit(raw: bytes) -> bool:
    """Two capital letters where a VR would stand. Implicit encoding has the lower half of a length there."""
    return raw.isalpha() and raw.isupper()
