"""References as faces whose landmarks are known: aligned crops, perhaps embeddings instead."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from data_pipeline.examples.conditions import References
from data_pipeline.examples.fields import Call, Encoding, FieldError, Input
from data_pipeline.faces.align import TEMPLATE, align_face
from data_pipeline.faces.face import Face, as_face
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import clip_crop, clip_normalise, square_face_crop
from data_pipeline.records.schema import MAX_REFERENCES, Record

Align = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


class Faces(References):
    """1 to 4 other images of the identity as a recogniser reads them, aligned by five landmarks.

        id_pixel_values  [4, s, s, 3] float32  aligned faces, normalised for CLIP; zeros if absent
        id_mask          [4] bool              True where there is a reference

    A call gives Faces, or images, which are aligned crops already; in its arrays there are also

        id_embeds        [4, d] float32        embeddings that it brings itself, as the recogniser
                                               gives them (not of length 1); zeros if it does not
        id_embeds_mask   [4] bool              True where it does

    unless ``embedding`` is 0; and with ``places``

        id_places        [4] bool              id_mask, also where the condition is dropped

    A record without landmarks is cropped to the square around its face
    box, which is said in the log. A call may pass them by the field's name; otherwise its
    references are read.

    Args:
        size: s, the side in pixels that the network reads.
        embedding: d, the width of the network's output.
        places: whether how many references there were is read where they are dropped.
        align: maps (image [h, w, 3] uint8, landmarks [5, 2], s) to [s, s, 3] uint8; by default to
            ArcFace's template.

    Attributes:
        reads_image: whether the image is read of Faces with an embedding as well.
    """

    reads_image = False

    def __init__(
        self,
        size: int,
        encoding: Encoding | None = None,
        *,
        name: str = "faces",
        prefix: str = "id",
        embedding: int = 0,
        places: bool = False,
        align: Align = align_face,
    ):
        super().__init__(size, encoding, name=name, prefix=prefix)
        self.by_name = True
        self.embedding, self.align = embedding, align
        self.embeds = f"{prefix}_embeds"
        self.places = f"{prefix}_places" if places else ""
        self._unaligned = 0

    def _mask_spec(self):
        spec = super()._mask_spec()
        return spec | ({self.places: spec[self.mask]} if self.places else {})

    def _mask(self, count):
        mask = super()._mask(count)
        return mask | ({self.places: mask[self.mask]} if self.places else {})

    # ---- from records ----

    def of(self, source: Any, record: Record) -> Input:
        plain = super().of(source, record)
        if record.landmarks is None:
            return plain

        def key():
            places = tuple(np.asarray(record.landmarks, float).ravel().tolist())
            digest = source.features.picture_of(source, record.image).digest
            return digest, self.align.__qualname__, places, self.size

        return plain._replace(key=key)

    def crop(self, source: Any, record: Record) -> np.ndarray:
        if record.landmarks is None:
            return super().crop(source, record)
        places = np.asarray(record.landmarks, np.float64)

        def make():
            return self.align(source.pictures.image(record.image), places, self.size)

        how = (self.align.__qualname__, record.image, record.landmarks, self.size)
        return source.pictures.kept(how, make)

    def check(self, record: Record, others: int) -> None:
        self._unaligned += record.landmarks is None

    def notes(self) -> list[str]:
        count, self._unaligned = self._unaligned, 0
        if not count:
            return []
        return [
            f"{count} records have no landmarks: their faces are cropped and not aligned, as "
            "published networks expect them; data_pipeline.manifest --detector yunet finds them"
        ]

    def from_records(self, records: Sequence[Record], read: Callable, size: tuple) -> list:
        return [self._face_of(record, read(record.image)) for record in records[:MAX_REFERENCES]]

    def _face_of(self, record: Record, image: np.ndarray) -> Face:
        if record.landmarks is not None:
            return Face(image, record.landmarks)
        box = record.face_box
        return Face(clip_crop(image if box is None else square_face_crop(image, box), self.size))

    # ---- from a call ----

    def given(self, call: Call) -> dict[str, np.ndarray]:
        people = self.people_of(call)
        shape = (len(people), max(map(len, people), default=1), MAX_REFERENCES)
        pixels = np.zeros((*shape, self.size, self.size, 3), np.float32)
        embeds, known = np.zeros((*shape, self.embedding), np.float32), np.zeros(shape, bool)
        mask = np.zeros(shape, bool)
        for row, persons in enumerate(people):
            for person, images in enumerate(persons):
                for column, image in enumerate(images):
                    place = (row, person, column)
                    whose = f", person {person + 1}" if len(persons) > 1 else ""
                    where = f"reference {column + 1} of prompt {row + 1}{whose}"
                    face = as_face(image)
                    mask[place] = True
                    if face.embedding is None or self.reads_image:
                        pixels[place] = self._read(face, where)
                    else:
                        embeds[place] = self._embedding(face, where)
                        known[place] = True
        arrays = {self.pixels: pixels, self.mask: mask}
        if self.places:
            arrays[self.places] = mask
        if self.embedding:
            arrays |= {self.embeds: embeds, f"{self.embeds}_mask": known}
        return {name: a.reshape(shape[0], -1, *a.shape[3:]) for name, a in arrays.items()}

    def _read(self, face: Face, where: str) -> np.ndarray:
        """The aligned crop, normalised for CLIP, [s, s, 3]."""
        if face.image is None:
            raise FieldError(f"{where}: a Face without an image; this method reads the image")
        image = load_image(face.image, where)
        if face.landmarks is None:
            height, width = image.shape[:2]
            if height != width:
                raise FieldError(
                    f"{where}: {width}x{height} pixels are no aligned face, which is square; give "
                    "Face(image, landmarks), as locate_face(image) finds it"
                )
            crop = clip_crop(image, self.size)
        else:
            crop = self.align(image, checked_landmarks(face.landmarks, where), self.size)
        return clip_normalise(np.ascontiguousarray(crop))

    def _embedding(self, face: Face, where: str) -> np.ndarray:
        embedding: Any = np.asarray(face.embedding, np.float32)
        if not self.embedding:
            raise FieldError(f"{where}: a Face with an embedding; this method reads the image")
        if embedding.shape != (self.embedding,) or not np.isfinite(embedding).all():
            raise FieldError(
                f"{where}: an embedding of shape {embedding.shape}; ({self.embedding},) finite "
                "numbers are needed, the recogniser's output as it is"
            )
        return embedding


def checked_landmarks(landmarks: Any, where: str) -> np.ndarray:
    """[5, 2] float64; FieldError, beginning with ``where``, unless it is that and finite."""
    places = np.asarray(landmarks, np.float64)
    if places.shape != TEMPLATE.shape or not np.isfinite(places).all():
        raise FieldError(
            f"{where}: landmarks of shape {places.shape}; five finite (x, y) are needed: eyes, "
            "nose, corners of the mouth"
        )
    return places
