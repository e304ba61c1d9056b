"""The command line: the only place where the configuration is loaded and the parts are put together.

Every command imports what it needs when it runs: `receive` must never pay for torch.
"""

from dicomguard.cli.app import main

__all__ = ["main"]
