"""Data sets: whatever they come as, a `Collection` is what experiments use."""

from dicomguard.lab.data.collection import Collection
from dicomguard.lab.data.opening import names, open_collection

__all__ = ["Collection", "names", "open_collection"]
