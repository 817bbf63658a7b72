"""Reads images in any form into an upright sRGB array.

    load_image("me.heic")                     a path, or pathlib's
    load_image(open("me.jpg", "rb"))          a binary file object, or bytes
    load_image(Image.open("me.jpg"))          a PIL image of any mode
    load_image(array)                         uint8, or float in 0..1; [h, w] or [h, w, 1 | 3 | 4]

EXIF's orientation, colour profiles, transparency (on white) and depths over 8 bits are respected in
all of them; of an animation only the first frame is read, with a warning. load_mask reads the same.
"""

import errno
import functools
import logging
import os
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from data_pipeline.pictures import colours
from data_pipeline.pictures.arrays import image_from_array, mask_from_array
from data_pipeline.pictures.formats import ImageFault, binary, check_size, open_file

log = logging.getLogger(__name__)

# Scaling an extreme strip's short side to the training size would make its long side huge.
MAX_ASPECT = 16
KINDS = "a path, a binary file object, bytes, a PIL image or an array"
MANY = {"GIF": "an animation: its first frame", "TIFF": "several pages: the first"}
MANY |= {name: MANY["GIF"] for name in ("PNG", "WEBP", "AVIF")}
MANY["HEIF"] = "several pictures: the main one"


class ImageError(ValueError):
    """An image that cannot be read; the message names it."""


def load_image(picture: Any, name: str = "") -> np.ndarray:
    """uint8 RGB [h, w, 3], upright, in sRGB, transparency on white.

    Args:
        picture: see above. name: of the image in messages; by default the path of a file.

    Raises:
        ImageError: it cannot be read, is too large, or too narrow a strip.
    """
    name = _name(picture, name)
    with _faults(name), _opened(picture, image_from_array, name) as image:
        check_aspect(*(image.shape[1::-1] if isinstance(image, np.ndarray) else image.size))
        if isinstance(image, np.ndarray):
            return image
        return colours.to_rgb(image, _warner(picture, name))


def load_mask(picture: Any, name: str = "") -> np.ndarray:
    """float32 [h, w] in 0..1: white is 1, black and transparent are 0.

    Its values are not colours, so colour profiles are ignored.

    Args:
        picture: as for load_image; arrays may also be bool.

    Raises:
        ImageError: it cannot be read, or is too large.
    """
    name = _name(picture, name)
    with _faults(name), _opened(picture, mask_from_array, name) as mask:
        if isinstance(mask, np.ndarray):
            return mask
        return colours.to_grey(mask, _warner(picture, name))


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of the upright image, from the file's header (a turned TIFF is decoded).

    Raises:
        ImageError: the header cannot be read, or load_image would refuse this size.
    """
    with _faults(str(path)), open_file(path) as image:
        check_aspect(*image.size)
        width, height = image.size
        turned = colours.orientation(image, _warner(path, str(path))) > 4
        if turned and image.format == "TIFF":
            # Recent versions of Pillow turn its size already; decoded it is always right.
            return ImageOps.exif_transpose(image).size[::-1]
    return (width, height) if turned else (height, width)


def check_aspect(width: int, height: int) -> None:
    """ImageFault for a strip."""
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise ImageFault(
            f"{width}x{height} pixels are too narrow a strip: cut it to at most {MAX_ASPECT}:1"
        )


@contextmanager
def _opened(picture, from_array, name: str):
    """A PIL image, or the result of ``from_array`` for an array."""
    if isinstance(picture, Image.Image):
        check_size(*picture.size)
        yield picture
    elif hasattr(picture, "__array__"):
        yield from_array(picture)
    elif isinstance(picture, (str, os.PathLike, bytes, bytearray, memoryview)) or hasattr(
        picture, "read"
    ):
        with open_file(binary(picture)) as image:
            if image.format in MANY and getattr(image, "is_animated", False):
                _warner(picture, name)(f"{MANY[image.format]} is taken")
            yield image
    else:
        raise ImageFault(f"{type(picture).__name__}: give {KINDS}")


@contextmanager
def _faults(name: str):
    """Turns every way in which an image cannot be read into an ImageError that names it."""
    try:
        yield
    except ImageFault as error:
        raise ImageError(f"{name}: {error}") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such image file") from error
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder, not an image file: name an image in it") from error
    except PermissionError as error:
        raise ImageError(f"{name}: not readable: change its permissions") from error
    except Exception as error:  # decoders raise almost anything for damaged files
        reason = str(error).partition("\n")[0] or type(error).__name__
        remedy = "open it again" if "closed" in reason else "copy or save it again"
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            remedy = "give it a shorter name"
        raise ImageError(f"{name}: cannot be decoded as an image ({reason}: {remedy})") from error


def _name(picture, name: str) -> str:
    """Its name in messages: what the caller says, and the file."""
    if isinstance(picture, (str, os.PathLike)):
        file = os.fspath(picture)
    else:
        file = getattr(picture, "filename", "") or getattr(picture, "name", "")
    file = file if isinstance(file, str) else ""
    if name and file and file != str(name):
        return f"{name} ({file})"
    return str(name) or file or "the picture"


def _warner(picture, name: str):
    """A function that warns about an image, once per file."""
    if not isinstance(picture, (str, os.PathLike)):
        return functools.partial(log.warning, "%s: %s", name)
    try:
        changed = os.stat(picture).st_mtime_ns
    except OSError:
        changed = 0
    return functools.partial(_warn_once, name, changed)


@functools.lru_cache(4096)
def _warn_once(name: str, changed: int, said: str) -> None:
    del changed  # another time means another image
    log.warning("%s: %s", name, said)
