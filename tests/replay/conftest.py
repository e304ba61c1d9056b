from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "scu"))

from loopback import make_scp, part10, scripted  # the peers that these tests talk to

__all__ = ["make_scp", "part10", "scripted"]
