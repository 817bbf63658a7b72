"""Spatial fields: points, control images; and weights of examples."""

from collections.abc import Callable
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Batch, Call, Example, Field, FieldError, Spec, array_spec
from data_pipeline.pictures.reading import ImageError, image_size, load_image
from data_pipeline.pictures.transforms import fit_image, plan_crop
from data_pipeline.records.schema import Record


class Points(Field):
    """Points of a record, transformed like the crop: ``name`` "landmarks" or "keypoints".

    ``name`` [n, 2] float32 are (x, y) in the target's pixels, "``name``_mask" [n] bool is True
    where a point is known, visible, and inside the target.
    """

    COUNTS = {"landmarks": 5, "keypoints": 12}

    def __init__(self, name: str):
        if name not in self.COUNTS:
            raise ValueError(f"points {name!r}: a record has {' and '.join(self.COUNTS)}")
        self.name, self.count = name, self.COUNTS[name]

    def spec(self, shape: tuple[int, int]) -> Spec:
        mask = f"{self.name}_mask"
        return array_spec(**{self.name: ((self.count, 2), np.float32), mask: ((self.count,), bool)})

    def make(self, example: Example) -> dict[str, np.ndarray]:
        known = getattr(example.record, self.name)
        if known is None:
            points = np.zeros((self.count, 2), np.float32)
            return {self.name: points, f"{self.name}_mask": np.zeros(self.count, bool)}
        points = example.crop.move(known)
        height, width = example.crop.size
        seen: Any = ((points >= 0) & (points < [width, height])).all(axis=1)
        if self.name == "keypoints" and example.record.visibility is not None:
            seen &= np.array(example.record.visibility, bool)
        return {self.name: points.astype(np.float32), f"{self.name}_mask": seen}

    def from_record(
        self, record: Record, read: Callable[[str], np.ndarray], size: tuple[int, int]
    ) -> np.ndarray | None:
        known = getattr(record, self.name)
        if known is None:
            return None
        return plan_crop(read(record.image).shape[:2], record.face_box, size).move(known)

    def given(self, call: Call) -> dict[str, np.ndarray]:
        if self.name not in call.inputs:
            raise FieldError(f"{self.name}: the method reads them; give {self.name}=[...]")
        points = np.asarray(call.inputs[self.name], np.float32)
        if points.shape != (len(call.prompts), self.count, 2):
            wanted = (len(call.prompts), self.count, 2)
            raise FieldError(f"{self.name} of shape {points.shape}: {wanted} is needed")
        seen: Any = ((points >= 0) & (points < call.size[::-1])).all(axis=2)
        return {self.name: points, f"{self.name}_mask": seen}

    def dropped(self, batch: Batch, xp: Any) -> dict:
        """None of them is visible."""
        mask = f"{self.name}_mask"
        return {mask: xp.zeros_like(batch[mask])}


LARGEST = float(np.finfo(np.float32).max)


class Weight(Field):
    """ "example_weight" [] float32, at least 0: the factor of the example's loss.

    From the manifest's key ``weight``; 1 where a line has none.
    """

    name, keys = "weight", ("weight",)

    def spec(self, shape: tuple[int, int]) -> Spec:
        return array_spec(example_weight=((), np.float32))

    def make(self, example: Example) -> dict[str, Any]:
        return {"example_weight": np.float32(self._of(example.record))}

    def check(self, record: Record, others: int) -> None:
        self._of(record)

    @staticmethod
    def _of(record) -> float:
        weight = (record.extra or {}).get("weight", 1.0)
        if type(weight) not in (int, float) or not 0 <= weight <= LARGEST:
            raise FieldError(f"weight is {weight!r}; a finite number, at least 0, is needed")
        return weight


class ControlImage(Field):
    """An additional image, cropped like the target: ``name`` [h, w, 3] float32 in 0..1.

    From the manifest's ``images``: {"pose": "poses/anna_1.png"}; it must have the size or the
    aspect ratio of the target's image. It is black if the condition is dropped.

    Args:
        optional: a call without one has a black one; records must have it all the same.
    """

    def __init__(self, name: str, *, optional: bool = False):
        self.name = self.key = name
        self.keys, self.optional = (f"images.{name}",), optional

    def spec(self, shape: tuple[int, int]) -> Spec:
        return array_spec(**{self.name: ((*shape, 3), np.float32)})

    def make(self, example: Example) -> dict[str, np.ndarray]:
        return {self.name: self._cut(example)}

    def _cut(self, example) -> np.ndarray:
        """The image's part that the target shows, [h, w, 3] in 0..1."""
        source, record = example.source, example.record
        image = source.pictures.image((record.images or {})[self.key])
        difference = self._difference(record, image.shape[:2], source.size_of(record.image))
        if difference:
            raise FieldError(f"{record.image}: {difference}")
        return (example.crop.cut(image) + 1) / 2

    def _difference(self, record, size, target) -> str:
        """What is wrong with the aspect ratio of ``size`` (height, width); "" if nothing is."""
        (h, w), (height, width) = size, target
        # Allow a pixel of the smaller one for rounding.
        if abs(h * width - w * height) <= max(h, w, height, width):
            return ""
        return (
            f"its {self.key} image {record.images[self.key]} has another aspect ratio "
            f"({w}x{h} pixels) than the image itself ({width}x{height})"
        )

    def check(self, record: Record, others: int) -> None:
        images = record.images or {}
        if self.key not in images:
            raise FieldError(
                f'no {self.key} image; give "images": {{"{self.key}": FILE}} in the manifest'
            )
        try:
            size, target = image_size(images[self.key]), image_size(record.image)
        except ImageError:  # shards, whose size ``make`` checks, or a file that will be skipped
            return
        difference = self._difference(record, size, target)
        if difference:
            raise FieldError(difference)

    def from_record(
        self, record: Record, read: Callable[[str], np.ndarray], size: tuple[int, int]
    ) -> np.ndarray | None:
        images = record.images or {}
        if self.name not in images:
            return None
        crop = plan_crop(read(record.image).shape[:2], record.face_box, size)
        pixels = crop.cut(read(images[self.name]))
        return ((pixels + 1) * 127.5).round().astype(np.uint8)

    def given(self, call: Call) -> dict[str, np.ndarray]:
        if self.name not in call.inputs:
            if self.optional:
                return {self.name: np.zeros((len(call.prompts), *call.size, 3), np.float32)}
            raise FieldError(f"{self.name}: the method reads this image; give {self.name}=[...]")
        images = [
            fit_image(load_image(image, f"{self.name} image {n}"), call.size)
            for n, image in enumerate(call.inputs[self.name], 1)
        ]
        return {self.name: np.stack(images)}

    def dropped(self, batch: Batch, xp: Any) -> dict:
        return {self.name: xp.zeros_like(batch[self.name])}
