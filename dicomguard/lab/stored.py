"""What a node would read of an instance in memory: through the bytes of a file, as it reads a received one."""

from __future__ import annotations

import io

from pydicom import dcmwrite
from pydicom.dataset import Dataset

from dicomguard.pixels import reader, source
from dicomguard.pixels.image import Image
from dicomguard.pixels.limits import Limits


def read(dataset: Dataset) -> tuple[Image, str]:
    """The first frame and the SHA-256 of the encoded data set."""
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset, enforce_file_format=True)
    data = buffer.getvalue()
    limits = Limits()
    opened = reader.open_data_set(data, *source.locate(data), limits)
    return next(iter(reader.frames(opened, 0, 1, limits))), opened.source.sha256
