"""Kinds of cells for the runner's tests, in a module that worker processes can import."""

import os
import signal
from typing import Any

from dicomguard.errors import DicomguardError


def number(settings: dict[str, Any], place: Any) -> dict[str, Any]:
    runs = place.folder / "runs.txt"
    count = int(runs.read_text()) + 1 if runs.exists() else 1
    runs.write_text(str(count))
    if settings.get("until", 1) > count:
        raise DicomguardError("not yet.", advice="Run again.")
    place.tell(0.5)
    return {"value": settings["value"], "runs": count, "data": str(place.data), "device": place.device}


def total(settings: dict[str, Any], place: Any) -> dict[str, Any]:
    found = settings.get("plus", 0) + sum(need["value"] for need in place.needs.values())
    (place.folder / "total.txt").write_text(str(found))
    return {"value": found, "folders": sorted(folder.name for folder in place.folders.values())}


def dies(settings: dict[str, Any], place: Any) -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def breaks(settings: dict[str, Any], place: Any) -> dict[str, Any]:
    raise ZeroDivisionError("by nothing")


KINDS = {"number": number, "total": total, "dies": dies, "breaks": breaks}
