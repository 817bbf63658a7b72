"""A reference of which more is known than its picture: where the face is, or its embedding."""

from dataclasses import dataclass
from typing import Any

from numpy.typing import ArrayLike


@dataclass(frozen=True, eq=False)
class Face:
    """A picture of a person in a call, for methods that read aligned faces.

    Attributes:
        image: the whole photograph, anything that load_image accepts; None: only the embedding is
            known.
        landmarks: [5, 2] (x, y) in its pixels, origin "corner", in ArcFace's order: eyes, nose,
            corners of the mouth, each from left to right as one sees them. None: the image is an
            aligned crop.
        embedding: [d], a recogniser's output as it is (InsightFace's ``embedding``, not
            ``normed_embedding``), instead of the method's own recogniser.
        labels: [h, w] whole numbers, what each pixel of the image shows by facexlib's parsing net,
            for PuLID; None: the method's own net or an ellipse says where the face is.
    """

    image: Any = None
    landmarks: ArrayLike | None = None
    embedding: ArrayLike | None = None
    labels: ArrayLike | None = None

    def picture(self, field: str, whole: bool) -> Any:
        """The photograph, for a field that reads it ``whole``; ValueError without one."""
        if not whole:
            raise ValueError(
                f"{field}: a Face, and the method reads the square crop around a face; give the "
                "crop itself, as crop_face(image) cuts it"
            )
        if self.image is None:
            raise ValueError(f"{field}: a Face without an image; this method reads the image")
        return self.image


def as_face(given: Any) -> Face:
    """A reference of a call as a Face; an image is an aligned crop."""
    return given if isinstance(given, Face) else Face(given)
