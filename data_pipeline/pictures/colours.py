"""Converts a PIL image of any mode to upright sRGB: depth, colour profile, alpha, orientation."""

import functools
import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageChops, ImageCms

from data_pipeline.pictures.arrays import bytes_of_floats, check_mask_range
from data_pipeline.pictures.formats import ImageFault

BAND = 1 << 24  # pixels converted at once: a large image is in memory once, not three times
DEEP = 65535
ORIENTATION, INTEROPERABILITY, OF_PHOTO, COLOR_SPACE = 0x0112, 0xA005, 0x8769, 0xA001  # of EXIF
PHOTOMETRIC = 262  # of TIFF; 0: white is zero
SRGB_GAMMA = 0.45455  # of PNG's gAMA
# CIE xy of white, red, green, blue as in PNG's cHRM, and their tolerance.
SRGB_PRIMARIES, NEAR = (0.3127, 0.329, 0.64, 0.33, 0.3, 0.6, 0.15, 0.06), 0.01
# ITU-T H.273's code points: sRGB's primaries, its and BT.709's curve; or unspecified.
SRGB_POINTS = ((1, 2), (1, 2, 6, 13, 14, 15))
SPACES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK", "Lab": "LAB"}  # profile's space, image's mode
GREYS = ("1", "L", "LA", "La")


def to_rgb(image: Image.Image, say: Callable[[str], object]) -> np.ndarray:
    """uint8 sRGB [h, w, 3], upright, transparency on white.

    Args:
        say: called with a sentence about anything that was ignored.

    Raises:
        ImageFault: pixels that cannot be converted.
    """
    image.load()
    turn = orientation(image, say)  # first, because Pillow complains about EXIF only once
    profile, negative = profile_of(image, say), _check_depth(image)
    plain = image.mode == "RGB" and profile is None and not image.has_transparency_data
    if plain and turn == 1 and image.width * image.height <= BAND:
        return np.asarray(image)

    def convert(band):
        return np.asarray(_convert(band, profile, negative))

    return _by_bands(image, turn, 3, convert)


def to_grey(image: Image.Image, say: Callable[[str], object]) -> np.ndarray:
    """float32 [h, w] in 0..1, upright: the brightness of each pixel; transparency is black.

    ImageFault if it is so dark that it can only be a mask of 0 and 1.
    """
    image.load()
    negative, most = _check_depth(image), 0

    def convert(band):
        nonlocal most
        grey, alpha = _apart(band, negative)
        grey = grey.getchannel("L") if grey.mode == "LAB" else grey.convert("L")
        most = max(most, grey.getextrema()[1])
        grey = np.asarray(grey, np.float32) / 255
        return (grey if alpha is None else grey * (np.asarray(alpha, np.float32) / 255))[..., None]

    out = _by_bands(image, orientation(image, say), 1, convert, np.float32)[..., 0]
    check_mask_range(most)
    return out


def orientation(image: Image.Image, say: Callable[[str], object]) -> int:
    """EXIF's 1 to 8. Call it after ``load``, because Pillow turns a TIFF itself."""
    try:
        turn = image.getexif().get(ORIENTATION, 1)
    except OSError:  # not about EXIF: Pillow decodes a PNG to find it
        raise
    except Exception as error:  # broken EXIF is common, and its readers raise anything
        say(f"its EXIF data cannot be read ({error}): taken as upright")
        return 1
    return turn if turn in range(1, 9) else 1


def _by_bands(image, turn: int, channels: int, convert, dtype=np.uint8) -> np.ndarray:
    """The image converted some rows at a time into an upright array."""
    width, height = image.size
    shape = (width, height) if turn > 4 else (height, width)
    out = np.empty((*shape, channels), dtype)
    as_stored = _as_stored(out, turn)
    rows = max(1, BAND // width)
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        whole = top == 0 and bottom == height
        band = image if whole else image.crop((0, top, width, bottom))
        as_stored[top:bottom] = convert(band)
    out.setflags(write=False)
    return out


def _as_stored(upright: np.ndarray, turn: int) -> np.ndarray:
    """A view of the upright image with the rows as stored in the file."""
    view = upright.swapaxes(0, 1) if turn > 4 else upright
    if turn in (3, 4, 6, 7):
        view = view[::-1]
    if turn in (2, 3, 7, 8):
        view = view[:, ::-1]
    return view


# ---- Depth and transparency --------------------------------------------------------------------


def _convert(image: Image.Image, profile, negative: bool) -> Image.Image:
    """Mode RGB, in sRGB, on white."""
    colours, alpha = _apart(image, negative)
    colours = colours.convert("RGB") if profile is None else profile(colours, image.mode)
    if alpha is None or alpha.getextrema() == (255, 255):
        return colours
    colours.putalpha(alpha)
    paper = Image.new("RGBA", image.size, "white")
    return Image.alpha_composite(paper, colours).convert("RGB")


def _apart(image: Image.Image, negative: bool) -> tuple[Image.Image, Image.Image | None]:
    """Colours of 8 bits, and the alpha channel or None."""
    if image.mode.startswith(("I", "F")):
        grey, alpha = _eight_bits(image)
        return ImageChops.invert(grey) if negative else grey, alpha
    if not image.has_transparency_data:
        return image, None
    if image.mode in ("La", "RGBa"):
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    image = image.convert("RGBA")
    return image.convert("RGB"), image.getchannel("A")


def _check_depth(image: Image.Image) -> bool:
    """Whether a TIFF says that white is 0, which Pillow respects only for 8-bit images.

    ImageFault for whole numbers other than 16 bits.
    """
    if not image.mode.startswith(("I", "F")):
        return False
    if image.mode != "F":
        values = np.asarray(image)
        low, high = values.min(), values.max()
        if not 0 <= low <= high <= DEEP:
            raise ImageFault(f"grey values of 32 bits, {low} to {high}: save it with 8 or 16 bits")
        if 0 < high <= 255:
            raise ImageFault(
                f"grey values of more than 8 bits, none above {high} of {DEEP}, would be black: "
                "save it with 8 bits, or spread over all 16"
            )
    return getattr(image, "tag_v2", {}).get(PHOTOMETRIC) == 0


def _eight_bits(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Mode L of one deep channel. Whole numbers have 16 bits, floats are in 0..1."""
    values, alpha = np.asarray(image), None
    if image.mode == "F":
        return Image.fromarray(bytes_of_floats(values, "floats of 32 bits")), None
    if isinstance(image.info.get("transparency"), int):
        seen = values != image.info["transparency"]
        alpha = Image.fromarray(seen.astype(np.uint8) * np.uint8(255))
    grey = (values.astype(np.uint32) * 255 + DEEP // 2) // DEEP
    return Image.fromarray(grey.astype(np.uint8)), alpha


# ---- Colour profiles ---------------------------------------------------------------------------


def profile_of(image: Image.Image, say: Callable[[str], object]) -> Callable | None:
    """(colours, mode of the image) to sRGB by the image's profile; None: it already is sRGB."""
    data = image.info.get("icc_profile")
    if not data:
        _warn_of_other_colours(image, say)
        return _lab if image.mode == "LAB" else None
    try:
        space, convert = _open_profile(bytes(data))
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        say(f"its colour profile cannot be read ({error}): taken as sRGB")
        return None
    fits = {
        "L": image.mode in GREYS or image.mode.startswith(("I", "F")),
        "RGB": image.mode not in ("CMYK", "LAB"),  # also for grey
    }
    if not fits.get(space, image.mode == space):
        say(f"its colour profile is of {space}, the picture of {image.mode}: taken as sRGB")
        return _lab if image.mode == "LAB" else None
    return convert


def _warn_of_other_colours(image: Image.Image, say) -> None:
    """Warn if an image indicates other colours than sRGB without a profile."""
    gamma = image.info.get("gamma", SRGB_GAMMA)
    if "srgb" not in image.info and abs(gamma - SRGB_GAMMA) > 0.05:
        say(f"its gamma of {gamma:g} is ignored, and it is taken as sRGB: save it with a profile")
    primaries = image.info.get("chromaticity") or SRGB_PRIMARIES
    others = any(abs(a - b) > NEAR for a, b in zip(primaries, SRGB_PRIMARIES, strict=False))
    if ("srgb" not in image.info and others) or not all(
        point in usual for point, usual in zip(_code_points(image), SRGB_POINTS, strict=False)
    ):
        say(
            "its colour primaries and curve are ignored, and it is taken as sRGB: save it "
            "with a profile"
        )
    if "exif" not in image.info:
        return
    try:
        exif = image.getexif()
        adobe = exif.get_ifd(INTEROPERABILITY).get(1) == "R03"
        adobe = adobe or exif.get_ifd(OF_PHOTO).get(COLOR_SPACE) == 2
    except Exception:  # ``orientation`` reports unreadable EXIF
        return
    if adobe:
        say("Adobe RGB by its EXIF, without a profile, and taken as sRGB: save it with its profile")


def _code_points(image: Image.Image) -> tuple:
    """(primaries, curve) from PNG's cICP or HEIF's nclx; () without them."""
    if "cicp" in image.info:
        return tuple(image.info["cicp"][:2])
    said = image.info.get("nclx_profile")
    if not isinstance(said, dict):
        return ()
    return said.get("color_primaries", 2), said.get("transfer_characteristics", 2)


@functools.lru_cache(32)
def _open_profile(data: bytes):
    """(the profile's mode, function to sRGB or None if it would change nothing)."""
    profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
    space = profile.profile.xcolor_space.strip()
    if space not in SPACES:
        raise ValueError(f"it is of {space}")
    mode = SPACES[space]
    transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")

    def convert(colours, _):
        if mode == "L" and colours.mode == "RGB":  # grey with transparency
            colours = colours.getchannel(0)
        return ImageCms.applyTransform(colours.convert(mode), transform)

    return mode, None if _changes_nothing(transform, mode) else convert


def _changes_nothing(transform, mode: str) -> bool:
    """Whether a profile equals sRGB under any name: no value on a colour grid changes by two."""
    if mode not in ("L", "RGB"):
        return False
    steps = np.arange(0, 256, 15, dtype=np.uint8)
    grid = np.stack(np.meshgrid(steps, steps, steps), -1).reshape(len(steps), -1, 3)
    grid = grid[..., 0] if mode == "L" else grid
    probe = Image.fromarray(np.ascontiguousarray(grid))
    moved = np.asarray(ImageCms.applyTransform(probe, transform), np.int16)
    return bool(np.abs(moved - np.asarray(probe.convert("RGB"), np.int16)).max() <= 1)


def _lab(colours, _):
    return ImageCms.applyTransform(colours, _lab_transform())


@functools.cache
def _lab_transform():
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
