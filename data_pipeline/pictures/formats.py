"""Image files: the supported formats, the largest size, and what an unsupported file is."""

import functools
import io
import os
import re
import warnings
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

MAX_PIXELS = 100_000_000
# Our own limit replaces it. Appended, so that a user's filter takes precedence.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)
# Pillow refuses a PNG with a larger profile or text inside; printers' profiles have several MB.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 1 << 23)
# By name, because Pillow would also run Ghostscript on an EPS file. TGA has no signature, so it is
# tried last.
FORMATS: tuple[str, ...] = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "BMP",
    "DIB",
    "TIFF",
    "AVIF",
    "HEIF",
    "JPEG2000",
    "PPM",
)
FORMATS += ("ICO", "ICNS", "PCX", "PSD", "SGI", "QOI", "TGA")
SAVE = "save it as JPEG or PNG"
RAW_ENDINGS = (".dng", ".nef", ".cr2", ".arw", ".orf", ".rw2", ".pef", ".srw", ".3fr", ".iiq")
RAW = "a raw photograph, of which only a small preview could be read: develop it to JPEG or PNG"
SUBFILE_TYPE, DNG_VERSION = 254, 50706  # TIFF tags
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
SIGNATURES = (
    (b"\xff\x0a", f"JPEG XL: {SAVE}"),
    (b"\x00\x00\x00\x0cJXL ", f"JPEG XL: {SAVE}"),
    (b"%PDF", f"a PDF document: {SAVE}"),
    (b"%!PS", f"PostScript: {SAVE}"),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"version https://git-lfs", "a Git LFS pointer, not the image itself: git lfs pull"),
    (b"PK\x03\x04", "an archive: unpack it"),
    (b"\x1f\x8b", "an archive: unpack it"),
)


class ImageFault(ValueError):
    """The end of a sentence, without the image's name: what is wrong with it and the remedy."""


def open_file(file: Any) -> Image.Image:
    """Open a path or binary file object as a PIL image, reading only the header.

    Raises:
        ImageFault: an unsupported format, or more than MAX_PIXELS.
        OSError: there is no such file, or it is not readable.
        Exception: almost anything, for a damaged file.
    """
    try:
        image = Image.open(file, formats=_formats())
    except Image.DecompressionBombError as error:
        pixels = int(re.findall(r"\d+", str(error))[0])
        raise _too_large(f"{pixels / 1e6:.0f} megapixels") from error
    except UnidentifiedImageError as error:
        head = _head(file)
        if _is_heif(head) and not _reads_heif() and _register_heif():
            return open_file(file)
        raise ImageFault(f"cannot be decoded as an image ({_describe_unknown(head)})") from error
    try:
        check_size(*image.size)
        _check_raw(image, file)
        if image.format == "PNG" and (points := _code_points(file)):
            image.info["cicp"] = points
    except ImageFault:
        if isinstance(file, (str, os.PathLike)):
            image.close()
        raise
    return image


def _code_points(file) -> bytes:
    """The four bytes of a PNG's cICP, which Pillow ignores; b"" without it."""
    is_path = isinstance(file, (str, os.PathLike))
    opened, before = (open(file, "rb"), 0) if is_path else (file, file.tell())
    try:
        opened.seek(8)
        while len(head := opened.read(8)) == 8 and head[4:] not in (b"IDAT", b"PLTE"):
            if head[4:] == b"cICP":
                return opened.read(4)
            opened.seek(int.from_bytes(head[:4], "big") + 4, os.SEEK_CUR)
        return b""
    finally:
        opened.close() if is_path else opened.seek(before)


def check_size(width: int, height: int) -> None:
    """ImageFault for an image with too many pixels."""
    if width * height > MAX_PIXELS:
        raise _too_large(f"{width}x{height} pixels")


def _too_large(size: str) -> ImageFault:
    return ImageFault(
        f"{size} exceed the limit of {MAX_PIXELS // 10**6} megapixels: scale the image down"
    )


@functools.cache
def _formats() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _reads_heif() -> bool:
    return "HEIF" in _formats()


def _register_heif() -> bool:
    """Register HEIC support; whether it is available."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    _formats.cache_clear()
    return _reads_heif()


def _head(file) -> bytes:
    if isinstance(file, (str, os.PathLike)):
        with open(file, "rb") as opened:
            return opened.read(64)
    try:
        file.seek(0)
        return file.read(64)
    except (OSError, ValueError):
        return b"?"


def _is_heif(head: bytes) -> bool:
    return head[4:8] == b"ftyp" and head[8:12] in HEIF_BRANDS


def _describe_unknown(head: bytes) -> str:
    """What an unsupported file is, and the remedy."""
    if not head:
        return "the file is empty: copy it again"
    if head[4:8] == b"ftyp":
        return _say_what_box(head)
    for signature, said in SIGNATURES:
        if head.startswith(signature):
            return said
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not the image itself: download that"
    if text.startswith((b"<svg", b"<?xml")):
        return f"SVG or other XML: {SAVE}"
    return f"the file is damaged or of an unsupported format: {SAVE}"


def _say_what_box(head: bytes) -> str:
    """The same for a file in the ISO base media format."""
    brand = head[8:12]
    if brand in HEIF_BRANDS and _reads_heif():
        return "HEIC that is damaged: copy it again"
    if brand in HEIF_BRANDS:
        return f"HEIC, which needs pillow-heif: pip install 'persongen_jax[heic]', or {SAVE}"
    if brand in (b"avif", b"avis"):
        return f"AVIF, which needs Pillow 11.3 or newer: pip install --upgrade pillow, or {SAVE}"
    if brand == b"crx ":
        return RAW
    return f"a video: extract a frame and {SAVE}"


def _check_raw(image: Any, file) -> None:
    """ImageFault for raw photographs, of which Pillow would open only the preview."""
    if image.format != "TIFF":
        return
    ending = Path(file).suffix.lower() if isinstance(file, (str, os.PathLike)) else ""
    tags = image.tag_v2
    if ending in RAW_ENDINGS or DNG_VERSION in tags or tags.get(SUBFILE_TYPE, 0) & 1:
        raise ImageFault(RAW)


def binary(picture: Any) -> Any:
    """A file object for bytes; file objects unchanged."""
    if isinstance(picture, (bytes, bytearray, memoryview)):
        return io.BytesIO(picture)
    if isinstance(picture, io.TextIOBase):
        raise ImageFault('a file opened as text: open it with "rb"')
    return picture
