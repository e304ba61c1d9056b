"""Why a target was missed or a claim does not hold: one sentence for each id, in a file beside the results."""

from __future__ import annotations

from pathlib import Path

import yaml

from dicomguard.errors import DicomguardError


def read(path: Path) -> dict[str, str]:
    """Sentences by id; none where the file is absent.

    Raises:
        DicomguardError: it cannot be read as such.

    """
    try:
        found = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DicomguardError(f"{path} cannot be read: {error}.", advice="Write one 'id: sentence' a line.") from error
    if not isinstance(found or {}, dict):
        raise DicomguardError(f"{path} is no list of reasons by id.", advice="Write one 'id: sentence' a line.")
    return {str(key): str(value) for key, value in (found or {}).items()}
