"""Five points of the target's face as a picture, which InstantID's IdentityNet reads."""

from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Call, Example, FieldError
from data_pipeline.examples.identity.faces import checked_landmarks
from data_pipeline.examples.spatial import ControlImage
from data_pipeline.faces.face import Face
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import fit_image, plan_crop
from data_pipeline.pose.five_points import PUBLISHED, draw_kps
from data_pipeline.pose.limbs import Widths
from data_pipeline.records.schema import Record

Size = tuple[int, int]


class FacePoints(ControlImage):
    """Where the face is: ``name`` [h, w, 3] float32 in 0..1, black where nobody says.

    A record's image of this name (``images``) is cropped as ControlImage does it. Without one, the
    points of its ``landmarks`` are drawn on a picture of the record's size, which is cropped like
    the target. A call gives by the field's name, for each prompt, one of

        an image         as draw_kps draws it; resized to cover the size, then cropped
        a Face           with landmarks: they move as its photograph would if it were such an image
        five points      (x, y) in pixels of the image to generate
        a list           of Faces or of five points each: several faces in one picture

    Args:
        name: of the array, of the record's image, and in a call.
        widths: of limbs and points; the published ones are for images of about 1024 pixels.
    """

    def __init__(self, name: str = "face_points", widths: Widths = PUBLISHED):
        super().__init__(name, optional=True)
        self.widths = widths

    # ---- from records ----

    def make(self, example: Example) -> dict[str, np.ndarray]:
        record = example.record
        if self._has_image(record):
            return super().make(example)
        drawn = self._draw(record.landmarks, example.source.size_of(record.image))
        return {self.name: (example.crop.cut(drawn) + 1) / 2}

    def check(self, record: Record, others: int) -> None:
        if self._has_image(record):
            super().check(record, others)
        elif record.landmarks is None:
            raise FieldError(
                f'no {self.name} image and no landmarks; give "images": {{"{self.name}": FILE}} or '
                '"landmarks" in the manifest, which data_pipeline.manifest --detector yunet finds'
            )

    def from_record(
        self, record: Record, read: Callable[[str], np.ndarray], size: Size
    ) -> np.ndarray | None:
        if self._has_image(record):
            return super().from_record(record, read, size)
        if record.landmarks is None:
            return None
        shape = read(record.image).shape[:2]
        cut = plan_crop(shape, record.face_box, size).cut(self._draw(record.landmarks, shape))
        return ((cut + 1) * 127.5).round().astype(np.uint8)

    def _has_image(self, record) -> bool:
        return self.name in (record.images or {})

    def _draw(self, points: Any, shape: Size) -> np.ndarray:
        return draw_kps(points, *shape, self.widths)

    # ---- from a call ----

    def given(self, call: Call) -> dict[str, np.ndarray]:
        if self.name not in call.inputs:
            return super().given(call)
        images = [
            self._picture(entry, f"{self.name} {n}", call.size)
            for n, entry in enumerate(call.inputs[self.name], 1)
        ]
        return {self.name: np.stack(images)}

    def _picture(self, entry: Any, where: str, size: Size) -> np.ndarray:
        """What a call gives for one prompt, as an image [h, w, 3] in 0..1."""
        listed = isinstance(entry, (list, tuple)) and not _are_points(entry)
        if not (listed or isinstance(entry, Face) or _are_points(entry)):
            return fit_image(load_image(entry, where), size)
        drawn = np.zeros((*size, 3), np.uint8)
        for face in entry if listed else [entry]:
            image = self._draw(self._points(face, where, size), size)
            drawn = np.where(image.any(-1, keepdims=True), image, drawn)
        return drawn.astype(np.float32) / 255

    def _points(self, face: Any, where: str, size: Size) -> np.ndarray:
        """Five points in pixels of the image to generate."""
        if not isinstance(face, Face):
            return checked_landmarks(face, where)
        if face.landmarks is None or face.image is None:
            raise FieldError(
                f"{where}: a Face without {'landmarks' if face.landmarks is None else 'an image'}; "
                "both are needed to know where in the image the points are, as locate_face(image) "
                "gives them"
            )
        shape = load_image(face.image, where).shape[:2]
        return plan_crop(shape, None, size).move(checked_landmarks(face.landmarks, where))


def _are_points(entry: Any) -> bool:
    """Whether it is five (x, y), in an array or lists."""
    try:
        return np.asarray(entry, np.float64).shape == (5, 2)
    except (TypeError, ValueError):
        return False
