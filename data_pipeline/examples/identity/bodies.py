"""References as bodies: the crop around the person's joints, and where the joints are."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.examples.conditions import References
from data_pipeline.examples.fields import Call, Encoding, Example, FieldError, Spec
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import clip_crop, clip_normalise, square_face_crop
from data_pipeline.records.schema import MAX_REFERENCES, Record

JOINTS = 12  # COCO's 5 to 16, as records hold them


@dataclass(frozen=True)
class Body:
    """A picture of a person in a call, and where their joints are in it.

    Attributes:
        image: anything that load_image accepts.
        keypoints: [12, 2] (x, y) in its pixels, COCO's 5 to 16; None: unknown.
        visibility: [12] bool; None: all of them are visible.
    """

    image: Any
    keypoints: ArrayLike | None = None
    visibility: ArrayLike | None = None


class Bodies(References):
    """Other images of the person, cropped around the body, with its joints.

        body_pixel_values  [4, s, s, 3] float32  squares around the visible joints, for CLIP
        body_points        [4, 12, 3] float32    x and y in the picture made square, -1 to 1, and
                                                 1 where the joint is visible; zeros where not
        body_mask          [4] bool              True where there is a reference

    They are images that the field of faces has as well. Where fewer than two joints are visible the
    whole image takes the crop's place. A call passes them by name, per prompt a Body, a picture, or
    a list of these; otherwise the references are read, and their joints are unknown.
    """

    def __init__(self, size: int, encoding: Encoding | None = None):
        super().__init__(size, encoding, name="bodies", prefix="body")
        self.by_name = True
        self.points = "body_points"

    def spec(self, shape: tuple[int, int]) -> Spec:
        return super().spec(shape) | self._points_spec()

    def row_spec(self, shape: tuple[int, int], rows: Spec) -> Spec:
        return super().row_spec(shape, rows) | self._points_spec()

    def _points_spec(self):
        return {self.points: ((MAX_REFERENCES, JOINTS, 3), np.dtype(np.float32))}

    # ---- from records ----

    def _box(self, source: Any, record: Record) -> tuple[float, float, float, float] | None:
        if record.keypoints is None:
            return None
        return body_box(record.keypoints, record.visibility, source.size_of(record.image))

    def draw_one(self, source: Any, record: Record) -> Any:
        shape = source.size_of(record.image)
        return super().draw_one(source, record), points_of(
            record.keypoints, record.visibility, shape
        )

    def make(self, example: Example) -> dict[str, np.ndarray] | None:
        drawn = example.drawn[self.name]
        if not drawn:
            return None
        pixels = np.zeros((MAX_REFERENCES, self.size, self.size, 3), np.float32)
        for (crop, _), place in zip(drawn, pixels, strict=False):
            clip_normalise(crop, out=place)
        return {self.pixels: pixels, **self._mask(len(drawn)), **self._points(drawn)}

    def make_cached(self, example: Example) -> dict[str, np.ndarray] | None:
        drawn = example.drawn[self.name]
        if not drawn:
            return None
        return self.join_rows(example, [row for row, _ in drawn]) | self._points(drawn)

    def _points(self, drawn):
        return {self.points: self._stack([points for _, points in drawn])}

    def from_records(self, records: Sequence[Record], read: Callable, size: tuple) -> list:
        return [
            Body(read(record.image), record.keypoints, record.visibility)
            for record in records[:MAX_REFERENCES]
        ]

    # ---- from a call ----

    def given(self, call: Call) -> dict[str, np.ndarray]:
        people = self.people_of(call)
        shape = (len(people), max(map(len, people), default=1), MAX_REFERENCES)
        pixels = np.zeros((*shape, self.size, self.size, 3), np.float32)
        points, mask = np.zeros((*shape, JOINTS, 3), np.float32), np.zeros(shape, bool)
        for row, persons in enumerate(people):
            for person, bodies in enumerate(persons):
                for column, body in enumerate(bodies):
                    place = (row, person, column)
                    whose = f", person {person + 1}" if len(persons) > 1 else ""
                    where = f"bodies, prompt {row + 1}{whose}, body {column + 1}"
                    pixels[place], points[place] = self._read(body, where)
                    mask[place] = True
        arrays = {self.pixels: pixels, self.points: points, self.mask: mask}
        return {name: a.reshape(shape[0], -1, *a.shape[3:]) for name, a in arrays.items()}

    def _read(self, body: Any, where: str = "bodies") -> tuple[np.ndarray, np.ndarray]:
        """The crop as CLIP reads it, and the joints [12, 3]."""
        body = body if isinstance(body, Body) else Body(body)
        image = load_image(body.image)
        shape, box = image.shape[:2], None
        if body.keypoints is not None:
            check_joints(body.keypoints, body.visibility, where)
            box = body_box(body.keypoints, body.visibility, shape)
        crop = image if box is None else square_face_crop(image, box)
        points = points_of(body.keypoints, body.visibility, shape)
        return clip_normalise(np.ascontiguousarray(clip_crop(crop, self.size))), points


def check_joints(keypoints: ArrayLike, visibility: ArrayLike | None, where: str) -> None:
    """FieldError, beginning with ``where``, for other shapes or visible joints without a place."""
    for name, array, wanted in (
        ("keypoints", keypoints, (JOINTS, 2)),
        ("visibility", np.ones(JOINTS) if visibility is None else visibility, (JOINTS,)),
    ):
        if np.shape(array) != wanted:
            raise FieldError(f"{where}: {name} of shape {np.shape(array)}; {wanted} is needed")
    shown = np.ones(JOINTS, bool) if visibility is None else np.asarray(visibility, bool)
    lost = np.flatnonzero(shown & ~np.isfinite(np.asarray(keypoints, np.float64)).all(-1))
    if len(lost):
        raise FieldError(
            f"{where}: joint {lost[0] + 1} of {JOINTS} is not finite; say visibility False for an "
            "unknown one"
        )


def seen_joints(
    keypoints: ArrayLike, visibility: ArrayLike | None, shape: tuple[int, int]
) -> np.ndarray:
    """[12] bool: joints [12, 2] that are visible and inside of an image of (height, width)."""
    joints, (height, width) = np.asarray(keypoints, np.float64), shape
    inside: Any = ((joints >= 0) & (joints <= (width, height))).all(-1)
    return inside if visibility is None else inside & np.asarray(visibility, bool)


def body_box(
    keypoints: ArrayLike, visibility: ArrayLike | None, shape: tuple[int, int]
) -> tuple[float, float, float, float] | None:
    """(x0, y0, x1, y1) around the joints that are seen (``seen_joints``); None without a box."""
    joints = np.asarray(keypoints, np.float64)[seen_joints(keypoints, visibility, shape)]
    if not len(joints) or not (np.ptp(joints, axis=0) > 0).all():
        return None
    (x0, y0), (x1, y1) = joints.min(0).tolist(), joints.max(0).tolist()
    return x0, y0, x1, y1


def points_of(
    keypoints: ArrayLike | None, visibility: ArrayLike | None, shape: tuple[int, int]
) -> np.ndarray:
    """[12, 3] float32: (x, y) in an image of ``shape`` (height, width) and whether it is visible.

    The image's middle is (0, 0), its longer side reaches from -1 to 1, so that lengths along both
    axes compare; a joint that is not seen (``seen_joints``) is (0, 0, 0).
    """
    points = np.zeros((JOINTS, 3), np.float32)
    if keypoints is None:
        return points
    joints, (height, width) = np.asarray(keypoints, np.float64), shape
    seen = seen_joints(keypoints, visibility, shape)
    points[:, :2] = (2 * joints - (width, height)) / max(height, width)
    points[:, 2] = 1
    return np.where(seen[:, None], points, 0).astype(np.float32)
