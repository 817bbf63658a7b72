"""References for a published FaceID file, which was trained on aligned faces.

A recogniser's embedding of any other crop is not what its projection knows. All other weights, runs
of this project among them, read square crops (data_pipeline/faces.py).
"""

from pathlib import Path

from data_pipeline.align import align_face
from data_pipeline.faces import NoFaceFound
from persongen_jax.weights.ip_adapter import is_ip_adapter, read_ip_adapter


def wants_aligned_faces(weights) -> bool:
    """Whether ``weights`` is a FaceID file."""
    if not Path(weights).is_file() or not is_ip_adapter(weights):
        return False
    with read_ip_adapter(weights) as file:
        return file.kind == "faceid"


def align_reference(image, name: str, detector):
    """The largest face of ``image`` [h, w, 3] on ArcFace's template, [112, 112, 3].

    Raises:
        ValueError: a detector that gives no landmarks.
        NoFaceFound: of the picture ``name``.
    """
    if not detector.gives_landmarks:
        raise ValueError(
            f"--detector {detector.name}: it gives no landmarks, by which FaceID's references are "
            "aligned; give --detector insightface or keypoints:DIR, or aligned crops of 112 "
            "pixels and --no-crop"
        )
    (found,) = detector.detect([image])
    if found is None:
        raise NoFaceFound(
            f"no face found in {name} ({image.shape[1]}x{image.shape[0]} pixels, detector "
            f"{detector.name}); FaceID needs aligned crops: give another picture, or an aligned "
            "crop of 112 pixels and --no-crop"
        )
    return align_face(image, found.landmarks)
