"""Looks at pictures: decodes each once and measures all that any stage asks for later."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.collect.looking.looks import Face, Look
from data_pipeline.collect.looking.phash import phash
from data_pipeline.collect.looking.scores import open_score, score_name
from data_pipeline.collect.settings import Measure
from data_pipeline.faces.align import align_face
from data_pipeline.faces.detectors import Detection, open_detector
from data_pipeline.faces.recognisers import open_recogniser
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.pose.movenet import MoveNet

FACE_SIDE = 256  # pixels to which a face is reduced before its sharpness is measured
DARK, BRIGHT = 16, 250  # of 255

Measured = tuple[Look, np.ndarray]
"""A picture's look, and the embeddings [n, d] float32 of its faces."""


@dataclass(frozen=True)
class Measurer:
    """A function of [(key, path)] that can be sent to another process; networks open in there."""

    settings: Measure

    def __call__(self, pictures: Sequence[tuple[str, str]]) -> list[Measured]:
        if not pictures:
            return []
        detector, recogniser, movenet, scores = _opened(self.settings)
        looks: list[Look] = []
        crops: list[np.ndarray] = []
        for key, path in pictures:
            try:
                image = load_image(Path(path))
            except ImageError as error:
                looks.append(Look(key, fault=str(error).removeprefix(f"{path}: ")))
                continue
            (found,) = detector.find([image])
            faces = [face for face in found if _can_align(face)]
            crops += [align_face(image, face.landmarks, recogniser.size) for face in faces]
            looks.append(_look(key, image, faces, movenet, scores))
        # All faces of the chunk at once: the recogniser is what works in batches.
        size = recogniser.size
        stacked = np.stack(crops) if crops else np.zeros((0, size, size, 3), np.uint8)
        embeddings = recogniser.embed_crops(stacked).astype(np.float32)
        ends = np.cumsum([len(look.faces) for look in looks])
        return list(zip(looks, np.split(embeddings, ends[:-1]), strict=True))

    def named(self, picture: tuple[str, str]) -> str:
        """The picture, for messages."""
        return f"{picture[0]} ({picture[1]})"

    def failed(self, picture: tuple[str, str], why: str) -> Measured:
        """What stands for a picture that ended its process, or that raised."""
        return Look(picture[0], fault=why), np.zeros((0, 0), np.float32)


def check_networks(settings: Measure) -> list[str]:
    """Opens all networks, so that a fault is told before the work; returns their terms.

    Raises:
        FileNotFoundError, ImportError, ValueError: with the remedy.
    """
    detector, recogniser, movenet, _ = _opened(settings)
    nets = (detector, recogniser, movenet)
    return [net.licence for net in nets if net is not None and net.licence]


@functools.cache
def _opened(settings: Measure) -> tuple[Any, Any, Any, dict[str, Any]]:
    detector = open_detector(settings.detector)
    if not detector.gives_landmarks:
        raise ValueError(
            f"measure.detector={settings.detector!r}: finds no landmarks, by which faces are "
            "aligned; use yunet"
        )
    movenet = MoveNet(settings.pose) if settings.pose else None
    scores = {score_name(name): open_score(name) for name in settings.scores}
    return detector, open_recogniser(settings.recogniser), movenet, scores


def _can_align(face: Detection) -> bool:
    points = face.landmarks
    return points is not None and bool(np.isfinite(points).all()) and np.ptp(points, 0).max() > 1


def _look(key: str, image: np.ndarray, found: Sequence[Detection], movenet, scores) -> Look:
    height, width = image.shape[:2]
    keypoints = visibility = None
    if movenet is not None:
        (pose,) = movenet([image])
        joints, visible = pose.body()
        keypoints, visibility = _points(joints), tuple(map(bool, visible))
    return Look(
        key,
        (height, width),
        phash(image),
        round(float(np.mean(np.ptp(image, axis=2))), 2),
        tuple(_face(image, face) for face in found),
        keypoints,
        visibility,
        {name: round(float(score(image, found)), 4) for name, score in scores.items()},
    )


def _face(image: np.ndarray, found: Detection) -> Face:
    height, width = image.shape[:2]
    x0, y0, x1, y1 = found.box
    left, top = min(max(int(x0), 0), width - 1), min(max(int(y0), 0), height - 1)
    right, bottom = max(min(int(x1), width), left + 1), max(min(int(y1), height), top + 1)
    grey = Image.fromarray(image[top:bottom, left:right]).convert("L")
    pixels = np.asarray(grey)
    return Face(
        tuple(round(float(v), 2) for v in found.box),  # type: ignore[arg-type]
        _points(found.landmarks),
        round(float(found.score), 4),
        round(sharpness(grey), 3),
        round(float((pixels <= DARK).mean()), 4),
        round(float((pixels >= BRIGHT).mean()), 4),
    )


def sharpness(grey: Image.Image) -> float:
    """Variance of the Laplacian of a grey picture at no more than FACE_SIDE pixels.

    Small pictures are not enlarged: what is blurred at their size stays so.
    """
    if max(grey.size) > FACE_SIDE:
        grey = grey.copy()
        grey.thumbnail((FACE_SIDE, FACE_SIDE), Image.Resampling.BOX)
    x = np.asarray(grey, np.float32)
    if min(x.shape) < 3:
        return 0.0
    around = x[:-2, 1:-1] + x[2:, 1:-1] + x[1:-1, :-2] + x[1:-1, 2:]
    return float((around - 4 * x[1:-1, 1:-1]).var())


def _points(points) -> tuple[tuple[float, float], ...]:
    return tuple((round(float(x), 2), round(float(y), 2)) for x, y in points)
