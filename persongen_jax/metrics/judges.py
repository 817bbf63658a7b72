"""The judging networks, shared by all metrics that use them.

Each is loaded on first use. Its results for generated images or known people are computed once and
stored with these (``Cached.once``); after ``Judges.keep`` also in files, by the image's content.
"""

import functools
from pathlib import Path
from typing import TYPE_CHECKING

from ml_collections import ConfigDict

from data_pipeline.faces import shipped
from persongen_jax.metrics.face_judge import FaceJudge
from persongen_jax.metrics.feature_judges import (
    ClipJudge,
    CmmdJudge,
    DinoJudge,
    FeatureJudge,
    InceptionJudge,
)

if TYPE_CHECKING:
    from persongen_jax.metrics.attribute_judge import AttributeJudge
    from persongen_jax.metrics.embedders.lpips import PerceptualDistance
    from persongen_jax.metrics.pose.judge import PoseJudge


class NoJudge(Exception):
    """The config names no judge; the message follows "CLIP-T is not measured: ".

    Attributes:
        key: the config's key that would name it; "" for the metric's ``judge_key``.
    """

    def __init__(self, why: str, key: str = ""):
        super().__init__(why)
        self.key = key


def face_recogniser(face_net: str) -> str:
    """What ``config.face_net`` names: "auto" is SFace where it is installed; "" for none."""
    if face_net != "auto":
        return face_net
    return "sface" if shipped.is_shipped() else ""


class Judges:
    """The config's judges.

    Args:
        config: ``clip``, ``cmmd_clip``, ``dino``, ``dinov2``, ``inception``, ``fid_variant``,
            ``lpips``, ``face_net``, ``face_detector``, ``pose_net``, ``classifier``; only the keys
            in use.
    """

    def __init__(self, config: ConfigDict):
        self.config = config

    @functools.cached_property
    def clip(self) -> ClipJudge:
        """Raises NoJudge, or WeightsError for what is no CLIP; EVA-CLIP may lack a text tower."""
        if not self.config.clip:
            raise NoJudge("config.clip names no CLIP directory")
        from persongen_jax.metrics.clip_score import ClipScore

        clip = ClipScore(self.config.clip)
        if clip.note:
            print(f"the CLIP of {clip.name}: activation {clip.note}")
        return ClipJudge(clip)

    @functools.cached_property
    def dino(self) -> DinoJudge:
        """Raises NoJudge, or WeightsError for a file that is no encoder of DINO."""
        return self._dino("dino", "DINO", 1)

    @functools.cached_property
    def dinov2(self) -> DinoJudge:
        """Raises NoJudge, or WeightsError for a file that is no encoder of DINOv2."""
        return self._dino("dinov2", "DINOv2", 2)

    def _dino(self, key: str, title: str, version: int) -> DinoJudge:
        if not self.config.get(key):
            raise NoJudge(f"config.{key} names no file or folder of {title}'s image encoder")
        from persongen_jax.metrics.dino_embedder import DinoEmbedder

        return DinoJudge(DinoEmbedder(self.config[key], version))

    @functools.cached_property
    def cmmd(self) -> CmmdJudge:
        """``config.cmmd_clip``, or without it ``config.clip``; raises as ``clip``."""
        own = self.config.get("cmmd_clip")
        if not own:
            return CmmdJudge(self.clip.clip)
        from persongen_jax.metrics.clip_score import ClipScore

        return CmmdJudge(ClipScore(own))

    @functools.cached_property
    def inception(self) -> InceptionJudge:
        """Raises NoJudge, WeightsError for a file that is not FID's, or ValueError: the variant."""
        if not self.config.get("inception"):
            raise NoJudge("config.inception names no file of FID's Inception")
        from persongen_jax.metrics.embedders.inception import InceptionEmbedder

        return InceptionJudge(
            InceptionEmbedder(self.config.inception, self.config.get("fid_variant", "clean"))
        )

    @functools.cached_property
    def lpips(self) -> "PerceptualDistance":
        """Raises NoJudge, or WeightsError for what is not LPIPS."""
        if not self.config.get("lpips"):
            raise NoJudge("config.lpips names no folder or file of LPIPS")
        from persongen_jax.metrics.embedders.lpips import PerceptualDistance

        return PerceptualDistance(self.config.lpips)

    @functools.cached_property
    def faces(self) -> FaceJudge:
        """Raises NoJudge, or what ``open_face_embedder`` does."""
        name = face_recogniser(self.config.face_net)
        if not name:
            raise NoJudge(
                "config.face_net names no face recogniser, and SFace is not installed "
                f"({shipped.INSTALL})",
                "face_net",
            )
        from persongen_jax.metrics.face_embedder import open_face_embedder

        embedder = open_face_embedder(name, self.config.face_detector)
        print(f"Face-Sim by {name}; its licence: {embedder.licence}")
        return FaceJudge(embedder)

    @functools.cached_property
    def pose(self) -> "PoseJudge":
        """Raises NoJudge, or what ``open_pose_net`` does."""
        name = self.config.get("pose_net")
        if not name:
            raise NoJudge("config.pose_net names no pose network, movenet:FILE or keypoints:DIR")
        from persongen_jax.metrics.pose.judge import PoseJudge
        from persongen_jax.pose_nets import open_pose_net

        net = open_pose_net(name)
        if net.licence:
            print(f"poses by {name}; its licence: {net.licence}")
        return PoseJudge(net)

    @functools.cached_property
    def attributes(self) -> "AttributeJudge":
        """Raises NoJudge, or ValueError if it is not a finished run of a classifier."""
        if not self.config.get("classifier"):
            raise NoJudge("config.classifier names no run of configs/attributes/classifier.py")
        from persongen_jax.metrics.attribute_judge import AttributeJudge

        return AttributeJudge(self.config.classifier)

    def keep(self, folder: str | Path) -> None:
        """Keep in ``folder`` what the judges that are open now compute from images."""
        for judge in vars(self).values():
            if isinstance(judge, FeatureJudge | FaceJudge):
                judge.keep(folder)
