"""The faces of image files, several files at once in processes of their own."""

import functools
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data_pipeline.faces.detectors import Detection, open_detector
from data_pipeline.faces.recognisers import open_recogniser
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.pose.movenet import MoveNet, Pose

DETECTORS = (
    "auto (default: InsightFace where its models are, else yunet), FILE.onnx, insightface:DIR"
)
FEW = 8  # files for which starting processes costs more than they save


@dataclass(frozen=True)
class Networks:
    """Which networks look at a file, by the names of their packages' open functions.

    recogniser: "" for none. pose: MoveNet's file; "" for none.
    """

    detector: str = "auto"
    recogniser: str = ""
    pose: str = ""


@dataclass
class FoundFaces:
    """What is known of one file.

    Attributes:
        file: its path as given. size: (height, width) in pixels, upright; None if unreadable.
        faces: the highest score first. Positions have origin "corner" (align.py).
        embeddings: [n, d] float32 of length 1; None without a recogniser.
        pose: of the most prominent person; None without a pose net.
        error: why the file could not be read; "" if it was.
    """

    file: str
    size: tuple[int, int] | None = None
    faces: list[Detection] = field(default_factory=list)
    embeddings: np.ndarray | None = None
    pose: Pose | None = None
    error: str = ""


def read_faces(
    files: Sequence[str | os.PathLike], networks: Networks | None = None, workers: int | None = None
) -> Iterator[FoundFaces]:
    """The faces of each file, in the files' order.

    Args:
        networks: default: the detector alone.
        workers: processes; default: one per core. Few files are read in this process.

    Raises:
        FileNotFoundError, ImportError, ValueError: a network cannot be opened; has the remedy.
    """
    networks = networks or Networks()
    _opened(networks)  # a fault is told here, not by a process that dies
    if workers is not None and workers < 1:
        raise ValueError(f"{workers} workers: at least one is needed")
    workers = min(workers or len(os.sched_getaffinity(0)), len(files) // FEW)
    if getattr(sys.modules["__main__"], "__spec__", None) is None:
        workers = 1  # a script without a guard would be run again by every process
    names = [os.fspath(file) for file in files]
    if workers < 2:
        yield from (read_file(name, networks) for name in names)
        return
    # Not forked: a fork of a process with threads, as JAX has, may hang.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, spawn) as pool:
        look = functools.partial(read_file, networks=networks)
        try:
            yield from pool.map(look, names, chunksize=4)
        except BrokenProcessPool as error:
            raise OSError(
                "a process that reads images was killed, perhaps for want of memory; give "
                "--workers 1"
            ) from error


def read_file(name: str, networks: Networks) -> FoundFaces:
    """The faces of one file."""
    detector, recogniser, movenet = _opened(networks)
    try:
        image = load_image(Path(name))
    except ImageError as error:
        return FoundFaces(name, error=str(error))
    (faces,) = detector.find([image])
    found = FoundFaces(name, image.shape[:2], faces)
    if recogniser is not None:
        found.embeddings = recogniser.embed(image, faces)
    if movenet is not None:
        (found.pose,) = movenet([image])
    return found


def terms_of(networks: Networks) -> list[str]:
    """What the publishers say of the networks' weights, a line each."""
    return [net.licence for net in _opened(networks) if net is not None and net.licence]


@functools.cache
def _opened(networks: Networks):
    """Once in each process."""
    detector = open_detector(networks.detector)
    recogniser = open_recogniser(networks.recogniser) if networks.recogniser else None
    if recogniser is not None and not detector.gives_landmarks:
        raise ValueError(
            f"detector {networks.detector}: it finds no landmarks, by which faces are aligned for "
            "embeddings; use yunet"
        )
    movenet = MoveNet(networks.pose) if networks.pose else None
    return detector, recogniser, movenet
