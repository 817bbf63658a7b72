"""The pose of a record as a picture: its own one, or a skeleton drawn of its keypoints."""

from collections.abc import Callable

import numpy as np

from data_pipeline.examples.fields import Example, FieldError
from data_pipeline.examples.spatial import ControlImage
from data_pipeline.pictures.transforms import TargetCrop, plan_crop
from data_pipeline.pose.body18 import from_coco17, inside, to_coco17
from data_pipeline.pose.limbs import Widths, widths_for
from data_pipeline.pose.skeleton import draw_body18
from data_pipeline.records.schema import Record


class PoseImage(ControlImage):
    """The person's pose: ``name`` [h, w, 3] float32 in 0..1, black if the condition is dropped.

    A record's image of this name (``images``) is cropped as ControlImage does it. Without one, a
    skeleton is drawn of ``keypoints``, and of eyes and nose of ``landmarks``: on a canvas of the
    target's size, each joint moved as the crop moves it. A joint is drawn if it is visible and lies
    inside of the record's image, so a limb may leave the target where the crop cuts it.

    Args:
        name: of the array, of the record's image, and in a call.
        style: of the limbs, "openpose" or "xinsir" (data_pipeline/pose/limbs.py).
        widths: of limbs and joints; None: what ``limbs.widths_for`` says for the target's size.
        optional: a call without one has a black one.
    """

    def __init__(
        self,
        name: str = "pose",
        style: str = "openpose",
        widths: Widths | None = None,
        *,
        optional: bool = False,
    ):
        super().__init__(name, optional=optional)
        widths_for(1, 1, style)  # refuses an unknown one before the first example
        self.style, self.widths = style, widths
        self._unseen = 0

    def make(self, example: Example) -> dict[str, np.ndarray]:
        if self._has_image(example.record):
            return super().make(example)
        size = example.source.size_of(example.record.image)
        drawn = self._draw(example.record, size, example.crop)
        return {self.name: drawn.astype(np.float32) / 255}

    def check(self, record: Record, others: int) -> None:
        if self._has_image(record):
            return super().check(record, others)
        if record.keypoints is None:
            raise FieldError(
                f'no {self.name} image and no keypoints; give "images": {{"{self.name}": FILE}} or '
                '"keypoints" in the manifest, which data_pipeline.manifest --pose finds'
            )
        if record.visibility is not None and not any(record.visibility):
            self._unseen += 1

    def notes(self) -> list[str]:
        """How many records show no joint of the body."""
        count, self._unseen = self._unseen, 0
        if not count:
            return []
        return [f"{count} records show no joint of the body; their {self.name} image has no limbs"]

    def from_record(
        self, record: Record, read: Callable[[str], np.ndarray], size: tuple[int, int]
    ) -> np.ndarray | None:
        if self._has_image(record):
            return super().from_record(record, read, size)
        if record.keypoints is None:
            return None
        shape = read(record.image).shape[:2]
        return self._draw(record, shape, plan_crop(shape, record.face_box, size))

    def _has_image(self, record) -> bool:
        return self.name in (record.images or {})

    def _draw(self, record: Record, shape: tuple[int, int], crop: TargetCrop) -> np.ndarray:
        """The skeleton, uint8 [h, w, 3], of a record whose image has this shape (height, width)."""
        known, scores = to_coco17(record.keypoints, record.visibility, record.landmarks)
        joints, seen = from_coco17(known, scores * inside(known, shape))
        widths = self.widths or widths_for(*crop.size, self.style)
        return draw_body18(crop.move(joints)[None], seen[None], *crop.size, widths)
