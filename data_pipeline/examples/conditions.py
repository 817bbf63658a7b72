"""Inputs of identity methods other than the target, as fields: prompts and references."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Batch, Call, EncodedField, Encoding, Example, Input, Spec
from data_pipeline.examples.text import Text
from data_pipeline.faces.face import Face
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import (
    clip_crop,
    clip_normalise,
    clip_preprocess,
    square_face_crop,
)
from data_pipeline.records.schema import MAX_REFERENCES, Record


class References(EncodedField):
    """1 to 4 other images of the identity, never the target's own file.

        id_pixel_values  [4, s, s, 3] float32  face crops, normalised for CLIP; zeros if absent
        id_mask          [4] bool              True where there is a reference

    With the ``encoding`` a cache stores "id_features" [4, ...] instead. The four places of each
    person of a call are adjacent, [b, people * 4, ...]. A second field gets the same images.

    Args:
        size: s, the side in pixels that the image tower reads.
        prefix: of the arrays' names, instead of "id".
        whole: the whole images instead of the faces. A call may pass them by the field's name, per
            prompt a photograph or a list of them; otherwise they are its references as they are.

    Attributes:
        paired: whether what is passed by name must be as many as the call's references.
    """

    others, identity = 1, True
    paired = False

    def __init__(
        self,
        size: int,
        encoding: Encoding | None = None,
        *,
        name: str = "references",
        prefix: str = "id",
        whole: bool = False,
    ):
        self.size, self.encoding, self.name = size, encoding, name
        self.whole = self.by_name = whole
        self.pixels, self.features, self.mask = (
            f"{prefix}_{what}" for what in ("pixel_values", "features", "mask")
        )

    def spec(self, shape: tuple[int, int]) -> Spec:
        pixels = (MAX_REFERENCES, *self.input_shape(shape))
        return {self.pixels: (pixels, np.dtype(np.float32))} | self._mask_spec()

    def _mask_spec(self):
        return {self.mask: ((MAX_REFERENCES,), np.dtype(bool))}

    def input_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (self.size, self.size, 3)

    def row_spec(self, shape: tuple[int, int], rows: Spec) -> Spec:
        features, dtype = rows["features"]
        return {self.features: ((MAX_REFERENCES, *features), dtype)} | self._mask_spec()

    # ---- from records ----

    def of(self, source: Any, record: Record) -> Input:
        """The input for a record's image as a reference."""

        def key():
            box = self._box(source, record)
            box = box and tuple(map(float, box))
            return (source.features.picture_of(source, record.image).digest, box, self.size)

        def make():
            return clip_normalise(self.crop(source, record))

        return Input(key, make, (self.size, self.size, 3), True, record.image)

    def crop(self, source: Any, record: Record) -> np.ndarray:
        """[s, s, 3] uint8: the square around the face; the whole image without a box, or if so set;
        ImageError if it does not decode."""
        box = self._box(source, record)

        def make():
            image = self.picture(source, record)
            if box is not None:
                image = square_face_crop(image, box)
            return np.ascontiguousarray(clip_crop(image, self.size))

        return source.pictures.kept(("reference", record.image, box, self.size), make)

    def picture(self, source: Any, record: Record) -> np.ndarray:
        """A record's whole image as a reference, uint8 [h, w, 3]."""
        return source.pictures.image(record.image)

    def _box(self, source, record):
        return None if self.whole else record.face_box

    def from_records(self, records: Sequence[Record], read: Callable, size: tuple) -> list:
        return [read(record.image) for record in records[:MAX_REFERENCES]]

    def inputs(self, example: Example) -> list[Input] | None:
        return [self.of(example.source, record) for record in example.references] or None

    def make(self, example: Example) -> dict[str, np.ndarray] | None:
        # Like ``join``, without a float array for every crop.
        drawn = example.drawn[self.name]
        if not drawn:
            return None
        pixels = np.zeros((MAX_REFERENCES, *drawn[0].shape), np.float32)
        for crop, place in zip(drawn, pixels, strict=False):
            clip_normalise(crop, out=place)
        return {self.pixels: pixels, **self._mask(len(drawn))}

    def make_cached(self, example: Example) -> dict[str, np.ndarray] | None:
        drawn = example.drawn[self.name]
        return self.join_rows(example, drawn) if drawn else None

    def draw_one(self, source: Any, record: Record) -> Any:
        """What an example keeps of a reference: the crop, or with a cache the encoder's row."""
        if source.caches(self):
            return source.features.row(self.encoding, self.of(source, record))
        return self.crop(source, record)

    def join(self, example: Example, values: list) -> dict[str, np.ndarray]:
        return {self.pixels: self._stack(values), **self._mask(len(values))}

    def join_rows(self, example: Example, rows: list[dict]) -> dict[str, np.ndarray]:
        features = self._stack([row["features"] for row in rows])
        return {self.features: features} | self._mask(len(rows))

    @staticmethod
    def _stack(values):
        out = np.zeros((MAX_REFERENCES, *values[0].shape), values[0].dtype)
        out[: len(values)] = values
        return out

    def all_inputs(self, source: Any, record: Record) -> list[Input]:
        return [self.of(source, record)]

    def _mask(self, count):
        return {self.mask: np.arange(MAX_REFERENCES) < count}

    # ---- from a call ----

    def people_of(self, call: Call) -> list[list[list]]:
        """The images of a call by prompt and person: what it passes by name, or its references."""
        people = call.people or []
        given = [self._photographs(own) for own in call.inputs.get(self.name, ())]
        for prompt, (own, persons) in enumerate(zip(given, people, strict=False), 1):
            if len(own) != len(persons):
                counts = f"of {len(own)} people, references of {len(persons)}"
                raise ValueError(f"{self.name} of prompt {prompt}: {counts}; a list for each")
            if self.paired and [*map(len, own)] != [*map(len, persons)]:
                counts = f"{sum(map(len, own))} for {sum(map(len, persons))} references"
                raise ValueError(f"{self.name} of prompt {prompt}: {counts}; give one for each")
        return given or people

    def given(self, call: Call) -> dict[str, np.ndarray]:
        people = self.people_of(call)
        shape = (len(people), max(map(len, people)), MAX_REFERENCES)
        pixels, mask = (
            np.zeros((*shape, self.size, self.size, 3), np.float32),
            np.zeros(shape, bool),
        )
        for row, persons in enumerate(people):
            for person, images in enumerate(persons):
                for column, image in enumerate(images):
                    if isinstance(image, Face):
                        image = image.picture(self.name, self.whole)
                    pixels[row, person, column] = clip_preprocess(load_image(image), self.size)
                    mask[row, person, column] = True
        pixels = pixels.reshape(shape[0], -1, self.size, self.size, 3)
        return {self.pixels: pixels, self.mask: mask.reshape(shape[0], -1)}

    def _photographs(self, given: Any) -> list[list]:
        """A prompt's photographs by person, from one, a list, or a list of lists."""
        listed = list(given) if isinstance(given, (list, tuple)) else [given]
        nested = bool(listed) and all(isinstance(each, (list, tuple)) for each in listed)
        people = [list(own) for own in listed] if nested else [listed]
        for own in people:
            if not 1 <= len(own) <= MAX_REFERENCES:
                raise ValueError(f"{self.name}: {len(own)} of a person; give 1 to {MAX_REFERENCES}")
        return people

    def dropped(self, batch: Batch, xp: Any) -> dict:
        return {self.mask: xp.zeros_like(batch[self.mask])}


__all__ = ["References", "Text"]
