"""References as larger crops, with hair and chin, and which pixels of them are the face."""

from typing import Any

import numpy as np

from data_pipeline.examples.fields import Batch, Call, Example, FieldError, Spec
from data_pipeline.examples.identity.faces import Faces, checked_landmarks
from data_pipeline.faces.face import Face, as_face
from data_pipeline.faces.ffhq import align_ffhq, align_labels
from data_pipeline.pictures.reading import load_image
from data_pipeline.pictures.transforms import resize
from data_pipeline.records.schema import MAX_REFERENCES

# Labels of facexlib's parsing net (19) that are not the face: background, ears, ear rings, neck,
# necklace, cloth, hat. Hair is kept.
OUTSIDE = (0, 7, 8, 9, 14, 15, 16, 18)
LABELS = 19


class Portraits(Faces):
    """1 to 4 other images of the identity in FFHQ's alignment.

        portrait_pixel_values  [4, s, s, 3] float32  normalised for CLIP; zeros if absent
        portrait_mask          [4] bool              True where there is a reference
        portrait_dropped       [4] bool              True without the condition: zeros are encoded
                                                     in place of the references, which stay in
                                                     the mask

    A call gives Faces, or crops that are aligned already; in its arrays there are also

        portrait_kept          [4, s, s] bool        by the labels of a Face: where the face is
        portrait_labelled      [4] bool              True where a Face has labels

    Args:
        size: s, the side in pixels of the crops, 512 in PuLID's code.
    """

    reads_image = True

    def __init__(self, size: int):
        super().__init__(size, name="portraits", prefix="portrait", align=align_ffhq)

    def spec(self, shape: tuple[int, int]) -> Spec:
        return {**super().spec(shape), "portrait_dropped": ((MAX_REFERENCES,), np.dtype(bool))}

    def make(self, example: Example) -> dict[str, np.ndarray] | None:
        arrays = super().make(example)
        return arrays and {**arrays, "portrait_dropped": np.zeros(MAX_REFERENCES, bool)}

    def notes(self) -> list[str]:
        """None: the field of the recogniser's faces says which records have no landmarks."""
        super().notes()
        return []

    def dropped(self, batch: Batch, xp: Any) -> dict:
        return {"portrait_dropped": xp.ones_like(batch["portrait_dropped"])}

    def absent(self, batch: Batch, xp: Any) -> dict:
        """No reference at all, so that nothing is added to the base."""
        return {self.mask: xp.zeros_like(batch[self.mask])}

    def given(self, call: Call) -> dict[str, np.ndarray]:
        arrays = super().given(call)
        people = self.people_of(call)
        shape = (len(people), max(map(len, people), default=1), MAX_REFERENCES)
        kept, labelled = np.zeros((*shape, self.size, self.size), bool), np.zeros(shape, bool)
        for row, persons in enumerate(people):
            for person, images in enumerate(persons):
                for column, image in enumerate(images):
                    face = as_face(image)
                    if face.labels is not None:
                        place = (row, person, column)
                        whose = f", person {person + 1}" if len(persons) > 1 else ""
                        where = f"reference {column + 1} of prompt {row + 1}{whose}"
                        kept[place], labelled[place] = self._kept(face, where), True
        more = {"portrait_kept": kept, "portrait_labelled": labelled}
        more["portrait_dropped"] = np.zeros(shape, bool)
        return arrays | {n: a.reshape(shape[0], -1, *a.shape[3:]) for n, a in more.items()}

    def _kept(self, face: Face, where: str) -> np.ndarray:
        labels: Any = np.asarray(face.labels)
        size = load_image(face.image, where).shape[:2]
        if labels.shape != size or not np.issubdtype(labels.dtype, np.integer):
            raise FieldError(
                f"{where}: labels of shape {labels.shape}, {labels.dtype}; whole numbers for the "
                f"{size[1]}x{size[0]} pixels of its image are needed"
            )
        if not ((labels >= 0) & (labels < LABELS)).all():
            raise FieldError(
                f"{where}: labels from {labels.min()} to {labels.max()}; facexlib's parsing net "
                f"gives 0 to {LABELS - 1}"
            )
        if face.landmarks is not None:
            labels = align_labels(labels, checked_landmarks(face.landmarks, where), self.size)
        kept = ~np.isin(labels, OUTSIDE)
        if kept.shape != (self.size, self.size):
            kept = resize((kept * np.uint8(255))[..., None].repeat(3, 2), (self.size, self.size))
            kept = kept[..., 0] > 127
        return kept
