"""Pictures that are here already go through the same checks as those of the network."""

import hashlib
from pathlib import Path

from data_pipeline.collect.download.network.fetch import CHUNK, Body
from data_pipeline.collect.download.outcomes import Failed
from data_pipeline.collect.rows.place import Place, PlaceError


def copy_local(place: Place, file: Path, max_bytes: int) -> Body:
    """Copy a picture's bytes into ``file``.

    Raises:
        Failed: it cannot be read, or is too large. OSError: ``file`` cannot be written.
    """
    if place.size is not None and place.size > max_bytes:
        raise Failed("too large", place.size, max_bytes)
    digest, size = hashlib.sha256(), 0
    with open(file, "wb") as out:
        for part in _parts(place, max_bytes):
            size += len(part)
            if size > max_bytes:
                raise Failed("too large", size, max_bytes)
            digest.update(part)
            out.write(part)
    return Body(digest.hexdigest(), size)


def _parts(place: Place, max_bytes: int):
    left = max_bytes + 1
    try:
        with place.open() as source:
            while left and (part := source.read(min(CHUNK, left))):
                left -= len(part)
                yield part
    except PlaceError as error:
        raise Failed("no file", error.why) from error
    except OSError as error:
        raise Failed("no file", error.strerror) from error
