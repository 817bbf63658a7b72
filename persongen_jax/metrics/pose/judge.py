"""The judge of poses: where a pose network finds the joints, next to where they belong."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.pictures.transforms import fit_image
from persongen_jax.metrics.base import Generated, Known, Metric, NoFigure, Values
from persongen_jax.metrics.pose.targets import JOINTS, OUTLINE, box_around, inside
from persongen_jax.pose_nets import PoseNet

BATCH = 64  # images in memory at once


@dataclass(frozen=True)
class Compared:
    """n generated images and their targets, in pixels of each image.

    Attributes:
        steps: [n, 12, 2] found minus true (x, y).
        known: [n, 12] bool, whether the true joint is known, visible and inside the image.
        found: [n, 12] bool, whether it is found in the image.
        sizes: [n, 2] (height, width).
        boxes: [n, 4] of the person, (x0, y0, x1, y1); NaN where unknown.
        areas: [n] of the outline; NaN where unknown.
        note: how many joints and poses there are, in words.
    """

    steps: np.ndarray
    known: np.ndarray
    found: np.ndarray
    sizes: np.ndarray
    boxes: np.ndarray
    areas: np.ndarray
    note: str

    @property
    def counted(self) -> np.ndarray:
        """[n, 12] bool: both known and found."""
        return self.known & self.found


class PoseJudge:
    """A pose network, ``net``, whose results for generated images are computed once."""

    def __init__(self, net: PoseNet):
        self.net = net

    def compare(self, generated: Generated) -> Compared:
        """The images' joints and those of their targets (targets.py).

        Raises:
            NoFigure: no image has a target.
        """
        if "pose" not in generated.inputs:
            raise NoFigure(
                "no image's pose is known: give keypoints in the references' manifest "
                '(data_pipeline.manifest), or of a folder "keypoints" or "pose" in metadata.jsonl'
            )
        return generated.once((self, "compared"), lambda: self._compare(generated))

    def _compare(self, generated: Generated) -> Compared:
        joints, found, sizes = self._find(generated.images)
        inputs = generated.inputs
        true, known = inputs["pose"].copy(), inputs["pose_known"].copy()
        boxes, said = inputs["pose_box"].copy(), []
        estimated: dict[tuple, tuple[np.ndarray, np.ndarray]] = {}
        for i, path in enumerate(inputs["pose_image"]):
            if path:
                height, width = sizes[i].tolist()
                key = (str(path), height, width)
                if key not in estimated:
                    estimated[key] = self._pose_of(str(path), (height, width), said)
                true[i], known[i] = estimated[key]
            within = inside(true[i], (sizes[i, 0], sizes[i, 1]))
            if np.isnan(boxes[i]).any() and known[i].any():
                boxes[i] = box_around(true[i][known[i]])
            known[i] &= within
        areas = inputs["pose_area"]
        rectangles = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
        counts = int((known & found).sum()), int(known.sum())
        said.append(f"{counts[0]:,} of {counts[1]:,} known joints are found")
        if without := int((~known.any(1)).sum()):
            said.append(f"{without} images have none that is known")
        if estimated:
            nobody = sum(not seen.any() for _, seen in estimated.values())
            more = f", in {nobody} of which nobody is found" if nobody else ""
            said.append(f"the network found the poses in {len(estimated)} pose images{more}")
        areas = np.where(np.isnan(areas), OUTLINE * rectangles, areas)
        return Compared(joints - true, known, found, sizes, boxes, areas, "; ".join(said))

    def _pose_of(self, path: str, size: tuple[int, int], said: list[str]):
        """Joints [12, 2] of an image fitted to ``size``, and whether each is found [12]."""
        try:
            image = load_image(path)
        except ImageError as error:
            said.append(str(error))
            return np.zeros((JOINTS, 2)), np.zeros(JOINTS, bool)
        (joints,), (found,) = self.net([np.rint(255 * fit_image(image, size)).astype(np.uint8)])
        return joints, found

    def _find(self, images: Sequence[np.ndarray] | np.ndarray):
        """Joints [n, 12, 2], whether they are found [n, 12], and the images' sizes [n, 2]."""
        joints, found = np.zeros((len(images), JOINTS, 2)), np.zeros((len(images), JOINTS), bool)
        sizes = np.zeros((len(images), 2), int)
        for start in range(0, len(images), BATCH):
            rows = slice(start, start + BATCH)
            part = [np.asarray(image) for image in images[rows]]
            joints[rows], found[rows] = self.net(part)
            sizes[rows] = [image.shape[:2] for image in part]
        return joints, found, sizes


class JudgedByPose(Metric):
    """Judged by ``config.pose_net``, which is ``self.pose``; NaN where no joint can be compared.

    The facts "joints" and "joints_found" are the numbers of known joints, and of those of them that
    are found; the "note" has them in words.
    """

    judge_key = "pose_net"

    def __init__(self, config: ConfigDict, judges: Any):
        self.pose, self.judge = judges.pose, config.pose_net

    def networks(self) -> tuple:
        return self.pose.net.networks

    @abc.abstractmethod
    def score(self, poses: Compared) -> np.ndarray:
        """The values [n]."""

    def __call__(self, generated: Generated, known: Known) -> Values:
        poses = self.pose.compare(generated)
        facts = {"joints": int(poses.known.sum()), "joints_found": int(poses.counted.sum())}
        return Values(self.score(poses), facts={**facts, "note": poses.note})
