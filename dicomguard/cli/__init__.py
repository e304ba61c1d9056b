"""The command line: the only place where the configuration is loaded and the parts are put together.

Every command imports what it needs when it runs: `receive` must never pay for torch.
"""

import os

# Before torch is imported anywhere. Its OpenMP threads would otherwise spin while they wait for each other: on a host
# that also receives and delivers, an image then took six times as long to score as with threads that sleep.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dicomguard.cli.app import main

__all__ = ["main"]
