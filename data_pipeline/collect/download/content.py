"""Makes a plain picture of a downloaded file: upright sRGB without transparency and metadata.

What a file is, its first bytes say, never its name or its server. JPEG, PNG, WebP and AVIF are
read; of an animation the first frame. PNG stays PNG; the others become JPEG.
"""

import os
import re
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, UnidentifiedImageError, features

from data_pipeline.collect.download.outcomes import Failed
from data_pipeline.pictures import colours
from data_pipeline.pictures.formats import ImageFault

HEAD = 32  # bytes that tell what a file is
OTHERS = (
    (b"GIF8", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"%PDF", "PDF"),
    (b"PK\x03\x04", "an archive"),
    (b"\x1f\x8b", "an archive"),
    (b"\xff\x0a", "JPEG XL"),
)
MOST_SAID = 200  # characters of a decoder's message


@dataclass(frozen=True)
class Decoded:
    """A picture that was written: upright pixels, bytes of the file, its ending."""

    width: int
    height: int
    bytes: int
    ending: str
    rotated: bool


def decode(source: str, stem: str, max_pixels: int, quality: int) -> Decoded:
    """Write the picture of the file ``source`` to ``stem`` with an ending.

    Call it in a process of its own: a decoder may die of a hostile file. It sets Pillow's limit of
    pixels for the whole process.

    Raises:
        Failed: not a picture, too many pixels, or damaged. OSError: it cannot be written.
    """
    with open(source, "rb") as file:
        kind = picture_kind(file.read(HEAD))
        file.seek(0)
        pixels, turn = _pixels(file, kind, max_pixels)
    ending = ".png" if kind == "PNG" else ".jpg"
    height, width = pixels.shape[:2]
    image = Image.fromarray(pixels)
    with open(stem + ending, "wb") as out:
        plain: Any = _Plain(out)
        if kind == "PNG":
            image.save(plain, "PNG")
        else:
            image.save(plain, "JPEG", quality=quality, subsampling=0)
        out.flush()
        os.fsync(out.fileno())
    return Decoded(width, height, Path(stem + ending).stat().st_size, ending, turn != 1)


class _Plain:
    """A file that Pillow writes by its methods: to a descriptor it writes by itself, and then says
    of a full disk only "encoder error", which nobody could tell from a fault of the picture."""

    def __init__(self, file: BinaryIO):
        self.write, self.flush = file.write, file.flush


def picture_kind(head: bytes) -> str:
    """Pillow's name of the format of a file's first bytes. Failed if it is none that is read."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        brand = head[8:12].decode("latin-1")
        if brand in ("avif", "avis") and features.check("avif"):
            return "AVIF"
        raise Failed("not a picture", f"the container {brand!r}", "JPEG, PNG, WebP, AVIF")
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    said = next((name for mark, name in OTHERS if head.startswith(mark)), "")
    if not head:
        said = "an empty file"
    elif not said:
        said = "a page or XML" if text.startswith(b"<") else f"bytes {head[:8].hex(' ')}"
    raise Failed("not a picture", said, "JPEG, PNG, WebP, AVIF")


def _pixels(file, kind: str, max_pixels: int):
    """(upright sRGB [h, w, 3] uint8, EXIF's orientation)."""
    Image.MAX_IMAGE_PIXELS = max_pixels
    ignored: list[str] = []  # such as broken EXIF: the picture is good all the same
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            # Pillow only warns between its limit and twice that; before it has allocated anything.
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=(kind,)) as image:
                width, height = image.size
                if width * height > max_pixels:
                    raise Failed("too many pixels", width * height, max_pixels)
                image.load()
                turn = colours.orientation(image, ignored.append)
                return colours.to_rgb(image, ignored.append), turn
    except Failed:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        found = re.search(r"\d+", str(error))
        raise Failed("too many pixels", int(found[0]) if found else None, max_pixels) from error
    except ImageFault as error:
        raise Failed("damaged", str(error)[:MOST_SAID]) from error
    except UnidentifiedImageError as error:  # its message names the file of this run
        raise Failed("damaged", "its header cannot be read") from error
    except MemoryError as error:
        raise Failed("damaged", "more memory than there is") from error
    except Exception as error:  # decoders raise almost anything for damaged files
        said = str(error).partition("\n")[0][:MOST_SAID] or type(error).__name__
        # An address of this run's memory would differ in the next.
        raise Failed("damaged", re.sub(r" object at 0x[0-9a-f]+", "", said)) from error
