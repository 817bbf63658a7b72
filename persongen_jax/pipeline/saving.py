"""The only place that writes generated images to files: marked as such (docs/marking.md).

    save_images(pipe("a lighthouse at dusk", seed=1).images, "outputs")

The mark is an invisible watermark, and metadata that names IPTC's digital source type.
"""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from data_pipeline.files import atomic_write
from persongen_jax.pipeline.checks import warn_of_call
from persongen_jax.pipeline.watermark import MIN_PIXELS, MIN_WIDTH, add_watermark, has_room

# Options of Pillow's that keep the watermark: a quarter of the colours, as JPEG stores them by
# default and WebP always does, has no room for it.
JPEG = {"format": "JPEG", "quality": 95, "subsampling": 0}
WEBP = {"format": "WEBP", "lossless": True}
FORMATS: dict[str, dict] = {".png": {"format": "PNG"}, ".jpg": JPEG, ".jpeg": JPEG, ".webp": WEBP}

XMP_CHUNK = "XML:com.adobe.xmp"  # where PNG files have it
XMP = """<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/">
 <rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
  <rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
   <Iptc4xmpExt:DigitalSourceType>\
http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia\
</Iptc4xmpExt:DigitalSourceType>
  </rdf:Description>
 </rdf:RDF>
</x:xmpmeta>
<?xpacket end="r"?>"""


def save_images(images: Any, where: Any, *, mark: bool = True) -> list[Path]:
    """Writes generated images as PNG, JPEG or WebP.

    Args:
        images: what a pipeline returns: PIL images, or an array [n, h, w, c], uint8 or floats in
            0..1, of 3 channels or 1; also a single image.
        where: a folder, where they are numbered on from the PNGs in it; the file of a single image;
            or a list with a file for each.
        mark: False: the files hold the pixels alone, with neither watermark nor metadata.

    Returns:
        The files, in the order of the images.

    Raises:
        ValueError: no images, other numbers of files, a file of another format.
        OSError: a file cannot be written.
    """
    several = [to_rgb(image) for image in _listed(images)]
    write = ImageWriter(mark)
    if isinstance(where, (list, tuple)):
        paths = [Path(path) for path in where]
    elif not isinstance(where, (str, os.PathLike)):
        raise ValueError(f"where: {type(where).__name__}; give a folder, or a file for each image")
    elif Path(where).suffix.lower() in FORMATS:
        paths = [Path(where)]
    else:
        folder = ImageFolder(Path(where), mark)
        return [folder.save(image) for image in several]
    if len(paths) != len(several):
        raise ValueError(
            f"{len(several)} images for {len(paths)} files: give a folder, or a file for each"
        )
    for path in paths:
        options_of(path)
    return [write(image, path) for image, path in zip(several, paths, strict=True)]


class ImageWriter:
    """Writes one file after the other; says once that images are too small for the watermark.

    Args:
        mark: False: with neither watermark nor metadata.
    """

    def __init__(self, mark: bool = True):
        if not isinstance(mark, bool):
            raise ValueError(f"mark is {mark!r}: give True or False")
        self.mark, self._told = mark, False

    def __call__(self, image: np.ndarray, path: Path, notes: dict | None = None) -> Path:
        """Writes ``image``, uint8 [h, w, 3]; a PNG has ``notes`` as text chunks."""
        return self._write([image], path, notes or {})

    def animation(self, images: Sequence[np.ndarray], path: Path, duration: int) -> Path:
        """Writes uint8 [h, w, 3] each, ``duration`` milliseconds long, as a WebP without end."""
        return self._write(images, path, {}, duration=duration, loop=0)

    def _write(self, images, path, notes, **options) -> Path:
        options |= options_of(path)
        if self.mark:
            images = [self._with_watermark(image) for image in images]
        if options["format"] == "PNG":
            options["pnginfo"] = info = PngImagePlugin.PngInfo()
            notes = {**notes, XMP_CHUNK: XMP} if self.mark else notes
            for key, value in notes.items():
                info.add_itxt(key, value if isinstance(value, str) else json.dumps(value))
        elif self.mark:
            options["xmp"] = XMP.encode()
        first, *more = map(Image.fromarray, images)
        if more:
            options |= {"save_all": True, "append_images": more}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(path) as partial:
                first.save(partial, **options)
        except OSError as error:
            raise OSError(f"{path}: cannot be written ({error.strerror or error})") from error
        return path

    def _with_watermark(self, image):
        height, width = image.shape[:2]
        if has_room(height, width):
            return add_watermark(image[None])[0]
        if not self._told:
            warn_of_call(
                f"no watermark: {width}x{height} pixels are too few for it (a width of {MIN_WIDTH} "
                f"and {MIN_PIXELS} pixels are enough); the metadata says that it is generated"
            )
            self._told = True
        return image


class ImageFolder:
    """Saves PNGs with consecutive numbers after the existing ones: nothing is overwritten.

    The folder is created with the first image.

    Raises:
        OSError: the folder cannot be created, or is not writable; raised before any image exists.
    """

    def __init__(self, folder: Path, mark: bool = True):
        self.folder, self.write = folder, ImageWriter(mark)
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise NotADirectoryError(f"{folder}: {there} is a file; name another folder for images")
        if not os.access(there, os.W_OK | os.X_OK):
            raise PermissionError(f"{folder}: {there} is not writable; name another folder")
        numbered = (path.stem for path in folder.glob("*.png"))
        taken = [int(stem) for stem in numbered if re.fullmatch("[0-9]+", stem)]
        self._next = max(taken, default=-1) + 1

    def save(self, image: np.ndarray, notes: dict | None = None) -> Path:
        """``image`` uint8 [h, w, 3]; ``notes`` go into the file as text chunks."""
        path = self.write(image, self.folder / f"{self._next:05d}.png", notes)
        self._next += 1
        return path


def options_of(path: Path) -> dict:
    """Pillow's options for a file of this name."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"{path}: images are written as {', '.join(FORMATS)}; name it so")
    return FORMATS[path.suffix.lower()]


def to_rgb(image: Any) -> np.ndarray:
    """A PIL image, or an array [h, w, c] (or [h, w]), uint8 or floats in 0..1, as uint8 [h, w, 3].

    Grey values become three equal channels, because the watermark lies in colours.
    """
    if isinstance(image, Image.Image):
        if image.mode not in ("RGB", "L"):
            raise ValueError(f"an image of mode {image.mode}: give RGB or L (image.convert)")
        return np.asarray(image.convert("RGB"))
    array = np.asarray(image)
    if array.ndim == 2:
        array = array[..., None]
    good = array.ndim == 3 and array.shape[2] in (1, 3) and array.size
    if np.issubdtype(array.dtype, np.floating):
        good = good and array.min() >= 0 and array.max() <= 1  # False for NaN too
        array = (array * 255).round().astype(np.uint8) if good else array
    if not good or array.dtype != np.uint8:
        raise ValueError(
            f"an image {array.dtype} {list(array.shape)}: give PIL images, or arrays [h, w, 3] or "
            "[h, w, 1], uint8 or floats in 0..1"
        )
    return np.broadcast_to(array, (*array.shape[:2], 3))


def _listed(images) -> Sequence:
    if isinstance(images, Image.Image) or (hasattr(images, "ndim") and images.ndim == 3):
        images = [images]
    if not hasattr(images, "__len__") or isinstance(images, (str, bytes, dict)):
        raise ValueError(f"images: {type(images).__name__}; give a list of images, or an array")
    if not len(images):
        raise ValueError("images: none; give at least one")
    return images
