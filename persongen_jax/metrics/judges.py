"""The judging networks, shared by all metrics that use them.

Each is loaded on first use. Its results for generated images or known people are computed once and
stored with these (``Cached.once``).
"""

import abc
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from ml_collections import ConfigDict

from data_pipeline.faces import shipped
from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.face_similarity import mean_embedding

if TYPE_CHECKING:
    from persongen_jax.metrics.attribute_judge import AttributeJudge
    from persongen_jax.metrics.clip_score import ClipScore
    from persongen_jax.metrics.dino_embedder import DinoEmbedder
    from persongen_jax.metrics.face_embedder import FaceEmbedder

GALLERY_PICTURES = 8  # most images per person in the gallery's mean embedding
PEOPLE_PER_BATCH = 16  # people whose images are in memory at once


class NoJudge(Exception):
    """The config names no judge; the message follows "CLIP-T is not measured: "."""


def face_recogniser(face_net: str) -> str:
    """What ``config.face_net`` names: "auto" is SFace where it is installed; "" for none."""
    if face_net != "auto":
        return face_net
    return "sface" if shipped.is_shipped() else ""


class Judges:
    """The config's judges.

    Args:
        config: ``clip``, ``dino``, ``dinov2``, ``face_net``, ``face_detector``, ``classifier``;
            only the keys in use.
    """

    def __init__(self, config: ConfigDict):
        self.config = config

    @functools.cached_property
    def clip(self) -> "ClipJudge":
        """Raises NoJudge, or WeightsError for a directory that is not a whole CLIP."""
        if not self.config.clip:
            raise NoJudge("config.clip names no CLIP directory")
        from persongen_jax.metrics.clip_score import ClipScore

        clip = ClipScore(self.config.clip)
        if clip.note:
            print(f"the CLIP of {clip.name}: activation {clip.note}")
        return ClipJudge(clip)

    @functools.cached_property
    def dino(self) -> "DinoJudge":
        """Raises NoJudge, or WeightsError for a file that is no encoder of DINO."""
        return self._dino("dino", "DINO", 1)

    @functools.cached_property
    def dinov2(self) -> "DinoJudge":
        """Raises NoJudge, or WeightsError for a file that is no encoder of DINOv2."""
        return self._dino("dinov2", "DINOv2", 2)

    def _dino(self, key: str, title: str, version: int) -> "DinoJudge":
        if not self.config.get(key):
            raise NoJudge(f"config.{key} names no file or folder of {title}'s image encoder")
        from persongen_jax.metrics.dino_embedder import DinoEmbedder

        return DinoJudge(DinoEmbedder(self.config[key], version))

    @functools.cached_property
    def faces(self) -> "FaceJudge":
        """Raises NoJudge, or what ``open_face_embedder`` does."""
        name = face_recogniser(self.config.face_net)
        if not name:
            raise NoJudge(
                "config.face_net names no face recogniser, and SFace is not installed "
                f"({shipped.INSTALL})"
            )
        from persongen_jax.metrics.face_embedder import open_face_embedder

        embedder = open_face_embedder(name, self.config.face_detector)
        print(f"Face-Sim by {name}; its licence: {embedder.licence}")
        return FaceJudge(embedder)

    @functools.cached_property
    def attributes(self) -> "AttributeJudge":
        """Raises NoJudge, or ValueError if it is not a finished run of a classifier."""
        if not self.config.get("classifier"):
            raise NoJudge("config.classifier names no run of configs/attributes/classifier.py")
        from persongen_jax.metrics.attribute_judge import AttributeJudge

        return AttributeJudge(self.config.classifier)


class FeatureJudge(abc.ABC):
    """An encoder of whole images with cached features."""

    @abc.abstractmethod
    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Unit vectors [n, d] float32 of images of any sizes; n is at least 1."""

    @abc.abstractmethod
    def networks(self) -> tuple:
        """As ``Metric.networks``."""

    def features(self, generated: Generated) -> np.ndarray:
        """Unit vectors [n, d] float32 of the generated images."""
        return generated.once((self, "features"), lambda: self.image_features(generated.images))

    def real_features(self, people: People) -> np.ndarray:
        """Unit vectors [n, d] float32 of all real images of these people; n may be 0."""
        parts = list(self.features_by_owner(people).values())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def features_by_owner(self, people: People) -> dict[str, np.ndarray]:
        """Name to unit vectors [n, d] float32 of all real images; without people who have none."""

        def compute():
            found = {}
            for start in range(0, len(people.owners), PEOPLE_PER_BATCH):
                here = people.owners[start : start + PEOPLE_PER_BATCH]
                pictures = [(owner.name, picture) for owner in here for picture in owner.pictures()]
                if pictures:
                    features = self.image_features([picture for _, picture in pictures])
                    names = np.array([name for name, _ in pictures])
                    found |= {n: features[names == n] for n in dict.fromkeys(names.tolist())}
            return found

        return people.once((self, "features"), compute)


class ClipJudge(FeatureJudge):
    """A ClipScore, ``clip``, with cached image features."""

    def __init__(self, clip: "ClipScore"):
        self.clip = clip

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.clip.image_features(images)

    def networks(self) -> tuple:
        return self.clip.networks


class DinoJudge(FeatureJudge):
    """A DinoEmbedder, ``embedder``, with cached image features."""

    def __init__(self, embedder: "DinoEmbedder"):
        self.embedder = embedder

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.embedder.image_features(images)

    def networks(self) -> tuple:
        return self.embedder.networks


class FaceJudge:
    """A FaceEmbedder, ``embedder``, with cached embeddings."""

    def __init__(self, embedder: "FaceEmbedder"):
        self.embedder = embedder

    def embed(self, generated: Generated) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [n, d] float64 of the images, undefined without a face; and found, [n]."""

        def compute():
            embeddings, found = self.embedder.embed(generated.images)
            return np.asarray(embeddings, np.float64), np.asarray(found, bool)

        return generated.once((self, "faces"), compute)

    def references(self, known: Known) -> dict[str, np.ndarray]:
        """Name to the embedding [d] of the references; people without a face in them are absent.

        Such people are left out of every figure on faces, and a printed line names them.
        """

        def compute():
            owners = known.people.owners
            means = self._means(owners, lambda owner: owner.references())
            missed = [owner.name for owner in owners if owner.name not in means]
            if missed:
                print(
                    f"{known.name}: no face found in the references of {', '.join(missed)}: "
                    "left out"
                )
            return means

        return known.once((self, "references"), compute)

    def gallery(self, known: Known) -> dict[str, np.ndarray]:
        """Name to the mean embedding [d] of the set's own people, over several images each."""
        here = self.references(known)
        own = [owner for owner in known.people.owners if owner.name in here]
        return known.once((self, "gallery"), lambda: self._means(own, _gallery_images))

    def large_gallery(self, known: Known) -> dict[str, np.ndarray]:
        """The gallery of ``known.others`` and the set's missing people; {} without others."""
        others = known.others.once(
            (self, "gallery"), lambda: self._means(known.others.owners, _gallery_images)
        )
        return {**self.gallery(known), **others} if others else {}

    def _means(self, owners, pictures_of) -> dict[str, np.ndarray]:
        """By name, the mean embedding of the images in which a face is found, if any."""
        means = {}
        for start in range(0, len(owners), PEOPLE_PER_BATCH):
            here = owners[start : start + PEOPLE_PER_BATCH]
            pictures = [(o.name, picture) for o in here for picture in pictures_of(o)]
            embeddings, found = self.embedder.embed([picture for _, picture in pictures])
            names = np.array([name for name, _ in pictures])
            for name in dict.fromkeys(names.tolist()):
                mean = mean_embedding(embeddings[found & (names == name)])
                if mean is not None:
                    means[name] = mean
        return means


def _gallery_images(owner: Owner) -> list[np.ndarray]:
    return owner.pictures(GALLERY_PICTURES)
