"""Masks that lie next to pictures, as trainers name them: x-masklabel.png, x_mask.png, masks/x.png.

They are white where the loss counts (data_pipeline/examples/loss_mask.py).
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

SUFFIX = re.compile(r"(.+)[-_](?:masklabel|mask)", re.IGNORECASE)
FOLDERS = ("mask", "masks")
NAME = "mask"  # of the additional image in a manifest


def find_masks(files: Sequence[str]) -> dict[str, str]:
    """Maps image to mask, both among ``files``, paths with slashes.

    A file is a mask only if the image that it would belong to is there, so a picture may be called
    "white_mask.png".
    """
    by_stem = {_without_ending(file): file for file in reversed(files)}
    found = {}
    for file in files:
        image = by_stem.get(_owner(PurePosixPath(file)))
        if image is not None and image != file:
            found.setdefault(image, file)
    return found


def _owner(path: PurePosixPath) -> str:
    """The path, without an ending, of the image whose mask this would be; "" if of none."""
    stem, folder = path.with_suffix("").name, path.parent
    inside = folder.name.lower() in FOLDERS
    match = SUFFIX.fullmatch(stem)
    if not inside and not match:
        return ""
    return (folder.parent if inside else folder).joinpath(match[1] if match else stem).as_posix()


def _without_ending(file: str) -> str:
    return PurePosixPath(file).with_suffix("").as_posix()
