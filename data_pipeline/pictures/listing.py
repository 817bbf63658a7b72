"""The image files of a folder, and images named by files, folders and patterns."""

import os
from pathlib import Path

ENDINGS: tuple[str, ...] = (".png", ".jpg", ".jpeg", ".jfif", ".webp", ".bmp", ".gif", ".tif")
ENDINGS += (".tiff", ".avif", ".heic", ".heif", ".pgm", ".ppm")


def is_image_name(name: str) -> bool:
    """Whether a file's name is that of an image; hidden files are none."""
    return not name.startswith(".") and name.lower().endswith(ENDINGS)


def list_images(folder: str | os.PathLike[str]) -> list[str]:
    """The images' paths relative to ``folder``, sorted; hidden files and folders are skipped."""
    found, seen = [], set()
    for place, folders, files in os.walk(os.fspath(folder), followlinks=True):
        # A link may lead back to a parent folder.
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else [name for name in folders if name[0] != "."]
        if real not in seen:
            names = filter(is_image_name, files)
            found += [Path(place, name).relative_to(folder).as_posix() for name in names]
        seen.add(real)
    return sorted(found)


def named_images(names: list[str]) -> list[str]:
    """Files as they are, folders as their images.

    Raises:
        FileNotFoundError: no such file, or a folder without images.
    """
    found = []
    for name in names:
        if os.path.isdir(name):
            inside = [os.path.join(name, image) for image in list_images(name)]
            if not inside:
                raise FileNotFoundError(f"{name}: a folder without images ({', '.join(ENDINGS)})")
            found += inside
        elif os.path.exists(name):
            found.append(name)
        else:
            raise FileNotFoundError(f"{name}: no such file")
    return found
