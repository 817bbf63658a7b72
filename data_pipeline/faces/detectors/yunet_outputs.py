"""YuNet's inputs and outputs (Wu, Peng, Yu, Machine Intelligence Research 20, 2023): a canvas in,
scores, boxes and points of a grid out.

The network is run elsewhere: by onnxruntime in ``detectors/yunet.py``, in JAX in
``persongen_jax/models/faces/yunet.py``. Both share what is here, so that they find the same faces.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from data_pipeline.faces.detectors.base import Detection

STRIDES = (8, 16, 32)  # pixels of the canvas per cell of each grid
HEADS = (
    "cls",
    "obj",
    "bbox",
    "kps",
)  # of each grid: [cells, 1], [cells, 1], [cells, 4], [cells, 10]
NAMES = tuple(f"{head}_{stride}" for head in HEADS for stride in STRIDES)
CANVAS = 640  # pixels; the side that the published graph is fixed to
# The long side of the image as a part of the canvas, until there is a face that is not large: one
# that fills the picture or is cut off by its edge is found better with room around it.
FILLS = (1.0, 0.5, 0.25)
LARGE = 0.4  # side of a face's box as a part of the canvas', above which the next fill is tried
THRESHOLD = 0.6  # on the score
OVERLAP = 0.3  # intersection over union, above which the lower score is the same face
MOST = 5000  # candidates that suppression looks at
CENTRE_TO_CORNER = 0.5  # its positions have origin "centre" (align.py)

Outputs = dict[str, np.ndarray]
"""By "cls_8", "obj_16", ...: [n, cells, k], rows of the grid one after another."""


class Placed(NamedTuple):
    """An image on a canvas.

    canvas: uint8 RGB [side, side, 3], black around the image.
    scale: pixels of the canvas per pixel of the image; offset: (x, y) of its corner.
    """

    canvas: np.ndarray
    scale: np.ndarray
    offset: np.ndarray


def place(image: np.ndarray, fill: float = 1.0, side: int = CANVAS) -> Placed:
    """Put ``image`` [h, w, 3] in the middle of a canvas, its long side ``fill`` of the canvas'."""
    height, width = image.shape[:2]
    factor = fill * side / max(height, width)
    size = max(1, round(width * factor)), max(1, round(height * factor))
    if size != (width, height):
        # Averages where it shrinks, as a camera would; interpolates where it grows.
        image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
    canvas = np.zeros((side, side, 3), np.uint8)
    x, y = (side - size[0]) // 2, (side - size[1]) // 2
    canvas[y : y + size[1], x : x + size[0]] = image
    scale = np.array([size[0] / width, size[1] / height])
    return Placed(canvas, scale, np.array([x, y], float))


def decode(outputs: Outputs, row: int, side: int, threshold: float) -> list[Detection]:
    """The faces of image ``row`` in pixels of the canvas, origin "centre", the best first."""
    scores, boxes, points = [], [], []
    for stride in STRIDES:
        cls, obj, bbox, kps = (outputs[f"{head}_{stride}"][row] for head in HEADS)
        score = np.sqrt(np.clip(cls[:, 0], 0, 1) * np.clip(obj[:, 0], 0, 1))
        chosen = np.flatnonzero(score >= threshold)
        columns = side // stride
        cell = np.stack([chosen % columns, chosen // columns], 1).astype(float)
        centre = (cell + bbox[chosen, :2]) * stride
        half = np.exp(bbox[chosen, 2:]) * stride / 2
        scores.append(score[chosen])
        boxes.append(np.concatenate([centre - half, centre + half], 1))
        points.append((cell[:, None] + kps[chosen].reshape(-1, 5, 2)) * stride)
    score, box, point = (np.concatenate(parts) for parts in (scores, boxes, points))
    kept = suppress(box, score)
    return [Detection(tuple(box[i].tolist()), point[i], float(score[i])) for i in kept]


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float = OVERLAP) -> list[int]:
    """Greedy non-maximum suppression: indices that stay, the best first."""
    order = np.argsort(-scores, kind="stable")[:MOST]
    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    kept = []
    while len(order):
        best, order = order[0], order[1:]
        kept.append(int(best))
        low = np.maximum(boxes[best, :2], boxes[order, :2])
        high = np.minimum(boxes[best, 2:], boxes[order, 2:])
        shared = np.prod(np.clip(high - low, 0, None), axis=1)
        order = order[shared <= overlap * (areas[best] + areas[order] - shared)]
    return kept


def in_image(found: Detection, placed: Placed) -> Detection:
    """From the canvas to the image, origin "corner"."""

    def moved(points):
        return (np.asarray(points) + CENTRE_TO_CORNER - placed.offset) / placed.scale

    box = moved(np.reshape(found.box, (2, 2))).ravel()
    return Detection(tuple(box.tolist()), moved(found.landmarks), found.score)


def find_faces(
    images: Sequence[np.ndarray],
    run: Callable[[np.ndarray], Outputs],
    *,
    batch: int,
    threshold: float = THRESHOLD,
    fills: Sequence[float] = FILLS,
    side: int = CANVAS,
) -> list[list[Detection]]:
    """All faces of each image, the best first; [] for none.

    Args:
        images: uint8 RGB [h, w, 3] of any sizes.
        run: the network, from RGB canvases uint8 [batch, side, side, 3] to its outputs.
        batch: canvases per call; the last call is filled up with black ones.
        fills: see FILLS; a face that several of them show counts once, where it is surest.
    """
    found: list[list[Detection]] = [[] for _ in images]
    waiting, done = list(range(len(images))), [False] * len(images)
    for fill in fills:
        for start in range(0, len(waiting), batch):
            numbers = waiting[start : start + batch]
            placed = [place(np.asarray(images[n]), fill, side) for n in numbers]
            canvases = np.zeros((batch, side, side, 3), np.uint8)
            for canvas, one in zip(canvases, placed, strict=False):
                canvas[:] = one.canvas
            outputs = run(canvases)
            for row, (n, one) in enumerate(zip(numbers, placed, strict=True)):
                faces = decode(outputs, row, side, threshold)
                found[n] = merged([*found[n], *(in_image(face, one) for face in faces)])
                done[n] = bool(faces) and not any(_is_large(face, side) for face in faces)
        waiting = [n for n in waiting if not done[n]]
    return found


def merged(faces: list[Detection]) -> list[Detection]:
    """The faces without those that another, surer one covers; the best first."""
    boxes = np.array([face.box for face in faces]).reshape(-1, 4)
    kept = suppress(boxes, np.array([face.score for face in faces]))
    return [faces[i] for i in kept]


def _is_large(face: Detection, side: int) -> bool:
    x0, y0, x1, y1 = face.box
    return max(x1 - x0, y1 - y0) > LARGE * side
