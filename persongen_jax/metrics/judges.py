"""The networks that judge, shared by all metrics that ask for them.

Each is loaded when first asked for. What it makes of generated images or of known people is
computed once and kept with these (``Kept.once``).
"""

import functools
from typing import TYPE_CHECKING

import numpy as np

from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.face_similarity import mean_embedding

if TYPE_CHECKING:
    from persongen_jax.metrics.attribute_judge import AttributeJudge

GALLERY_PICTURES = 8  # of a person that the gallery's embedding is made of, at most
AT_ONCE = 16  # people whose pictures are in memory together


class NoJudge(Exception):
    """The config names no judge; the message goes after "CLIP-T is not measured: "."""


class Judges:
    """The config's judges.

    Args:
        config: ``clip``, ``face_net``, ``face_detector``, ``classifier``; those that are asked for.
    """

    def __init__(self, config):
        self.config = config

    @functools.cached_property
    def clip(self) -> "ClipJudge":
        """Raises NoJudge, or WeightsError for a directory that is no whole CLIP."""
        if not self.config.clip:
            raise NoJudge("config.clip names no CLIP directory")
        from persongen_jax.metrics.clip_score import ClipScore

        return ClipJudge(ClipScore(self.config.clip))

    @functools.cached_property
    def faces(self) -> "FaceJudge":
        """Raises NoJudge, or what ``open_face_embedder`` does."""
        if not self.config.face_net:
            raise NoJudge("config.face_net names no face recogniser")
        from persongen_jax.metrics.face_embedder import open_face_embedder

        embedder = open_face_embedder(self.config.face_net, self.config.face_detector)
        print(f"Face-Sim by {self.config.face_net}; its licence: {embedder.licence}")
        return FaceJudge(embedder)

    @functools.cached_property
    def attributes(self) -> "AttributeJudge":
        """Raises NoJudge, or ValueError for what is no finished run of a classifier."""
        if not self.config.get("classifier"):
            raise NoJudge("config.classifier names no run of configs/attributes/classifier.py")
        from persongen_jax.metrics.attribute_judge import AttributeJudge

        return AttributeJudge(self.config.classifier)


class ClipJudge:
    """A ClipScore, ``clip``, with image features that are computed once."""

    def __init__(self, clip):
        self.clip = clip

    def features(self, generated: Generated) -> np.ndarray:
        """Of the generated images, unit vectors [n, d] float32."""
        return generated.once(
            (self, "features"), lambda: self.clip.image_features(generated.images)
        )

    def real_features(self, people: People) -> np.ndarray:
        """Of all real pictures of these people, unit vectors [n, d] float32; n may be 0."""

        def compute():
            parts = []
            for start in range(0, len(people.owners), AT_ONCE):
                here = people.owners[start : start + AT_ONCE]
                pictures = [picture for owner in here for picture in owner.pictures()]
                if pictures:
                    parts.append(self.clip.image_features(pictures))
            return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

        return people.once((self, "features"), compute)


class FaceJudge:
    """A FaceEmbedder, ``embedder``, with embeddings that are computed once."""

    def __init__(self, embedder):
        self.embedder = embedder

    def embed(self, generated: Generated) -> tuple[np.ndarray, np.ndarray]:
        """Of the generated images, [n, d] float64, anything where no face is; and found, [n]."""

        def compute():
            embeddings, found = self.embedder.embed(generated.images)
            return np.asarray(embeddings, np.float64), np.asarray(found, bool)

        return generated.once((self, "faces"), compute)

    def references(self, known: Known) -> dict[str, np.ndarray]:
        """Name to the embedding [d] of the references; those without a face in them are absent.

        Such people are left out of every figure of faces, and a line says who they are.
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
        """Name to the mean embedding [d] of the set's own people, over several pictures each."""
        here = self.references(known)
        own = [owner for owner in known.people.owners if owner.name in here]
        return known.once((self, "gallery"), lambda: self._means(own, _of_gallery))

    def large_gallery(self, known: Known) -> dict[str, np.ndarray]:
        """That of ``known.others``, and of who of the set is not among them; {} without others."""
        others = known.others.once(
            (self, "gallery"), lambda: self._means(known.others.owners, _of_gallery)
        )
        return {**self.gallery(known), **others} if others else {}

    def _means(self, owners, pictures_of) -> dict[str, np.ndarray]:
        """By name the mean embedding of the pictures in which a face is found, if any."""
        means = {}
        for start in range(0, len(owners), AT_ONCE):
            here = owners[start : start + AT_ONCE]
            pictures = [(o.name, picture) for o in here for picture in pictures_of(o)]
            embeddings, found = self.embedder.embed([picture for _, picture in pictures])
            names = np.array([name for name, _ in pictures])
            for name in dict.fromkeys(names.tolist()):
                mean = mean_embedding(embeddings[found & (names == name)])
                if mean is not None:
                    means[name] = mean
        return means


def _of_gallery(owner: Owner) -> list[np.ndarray]:
    return owner.pictures(GALLERY_PICTURES)
