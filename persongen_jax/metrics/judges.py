"""The judging networks, shared by all metrics that use them.

Each is loaded on first use. Its results for generated images or known people are computed once and
stored with these (``Cached.once``); after ``Judges.keep`` also in files, by the image's content.
"""

import abc
import functools
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ml_collections import ConfigDict

from data_pipeline.faces import shipped
from data_pipeline.faces.align import align_face
from data_pipeline.faces.detectors import Detection
from data_pipeline.faces.detectors.insightface_scrfd import find_model
from persongen_jax.features.of_images import KeptFeatures, Rows, digest_of_files
from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.face_similarity import mean_embedding

if TYPE_CHECKING:
    from persongen_jax.metrics.attribute_judge import AttributeJudge
    from persongen_jax.metrics.clip_score import ClipScore
    from persongen_jax.metrics.dino_embedder import DinoEmbedder
    from persongen_jax.metrics.embedders.inception import InceptionEmbedder
    from persongen_jax.metrics.embedders.lpips import PerceptualDistance
    from persongen_jax.metrics.face_embedder import FaceEmbedder

GALLERY_PICTURES = 8  # most images per person in the gallery's mean embedding
PEOPLE_PER_BATCH = 16  # people whose images are in memory at once


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
            ``lpips``, ``face_net``, ``face_detector``, ``classifier``; only the keys in use.
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
    def cmmd(self) -> "CmmdJudge":
        """``config.cmmd_clip``, or without it ``config.clip``; raises as ``clip``."""
        own = self.config.get("cmmd_clip")
        if not own:
            return CmmdJudge(self.clip.clip)
        from persongen_jax.metrics.clip_score import ClipScore

        return CmmdJudge(ClipScore(own))

    @functools.cached_property
    def inception(self) -> "InceptionJudge":
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
    def faces(self) -> "FaceJudge":
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


class FeatureJudge(abc.ABC):
    """An encoder of whole images with cached features."""

    _kept: KeptFeatures | None = None

    @property
    @abc.abstractmethod
    def about(self) -> str:
        """The network's kind and how images are prepared for it, in words.

        Features kept in files are found by this and the weights: it says all else that they depend
        on.
        """

    @abc.abstractmethod
    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Float32 [n, d] of images of any sizes, n at least 1; unit vectors, but Inception's."""

    @abc.abstractmethod
    def networks(self) -> tuple:
        """As ``Metric.networks``."""

    def features(self, generated: Generated) -> np.ndarray:
        """Float32 [n, d] of the generated images."""
        return self.rows(generated)["features"]

    def rows(self, generated: Generated) -> Rows:
        """What ``compute`` gives for the generated images."""
        return generated.once((self, "rows"), lambda: self._rows(generated.images))

    def compute(self, images: Sequence[np.ndarray] | np.ndarray) -> Rows:
        """What is cached of images, n at least 1: "features", and what else is made with them."""
        return {"features": self.image_features(images)}

    def keep(self, folder: str | Path) -> None:
        """Keep features in files, see features/of_images.py."""
        self._kept = KeptFeatures(folder, self.about, type(self).__name__, self.networks())

    def _rows(self, images) -> Rows:
        return self.compute(images) if self._kept is None else self._kept(images, self.compute)

    def real_features(self, people: People) -> np.ndarray:
        """Float32 [n, d] of all real images of these people; n may be 0."""
        parts = list(self.features_by_owner(people).values())
        return np.concatenate(parts) if parts else np.zeros((0, 1), np.float32)

    def features_by_owner(self, people: People) -> dict[str, np.ndarray]:
        """Name to float32 [n, d] of all real images; without people who have none."""

        def compute():
            found = {}
            for start in range(0, len(people.owners), PEOPLE_PER_BATCH):
                here = people.owners[start : start + PEOPLE_PER_BATCH]
                pictures = [(owner.name, picture) for owner in here for picture in owner.pictures()]
                if pictures:
                    features = self._rows([picture for _, picture in pictures])["features"]
                    names = np.array([name for name, _ in pictures])
                    found |= {n: features[names == n] for n in dict.fromkeys(names.tolist())}
            return found

        return people.once((self, "features"), compute)


class ClipJudge(FeatureJudge):
    """A ClipScore, ``clip``, with cached image features."""

    def __init__(self, clip: "ClipScore"):
        self.clip = clip

    @property
    def about(self) -> str:
        return f"CLIP at {self.clip.image_size} pixels"

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.clip.image_features(images)

    def networks(self) -> tuple:
        return self.clip.networks


class CmmdJudge(ClipJudge):
    """The same, with images prepared as CMMD's code prepares them."""

    @property
    def about(self) -> str:
        return f"{super().about}, prepared as by CMMD"

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        from persongen_jax.metrics.embedders.cmmd import cmmd_preprocess

        return self.clip.image_features(images, cmmd_preprocess)

    def networks(self) -> tuple:
        return self.clip.networks[:1]  # the image tower


class InceptionJudge(FeatureJudge):
    """An InceptionEmbedder, ``embedder``, with cached features and logits."""

    def __init__(self, embedder: "InceptionEmbedder"):
        self.embedder = embedder

    @property
    def about(self) -> str:
        return f"FID's Inception, images resized as by {self.embedder.variant}"

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.embedder.outputs(images)[0]

    def compute(self, images: Sequence[np.ndarray] | np.ndarray) -> Rows:
        features, logits = self.embedder.outputs(images)
        return {"features": features, "logits": logits}

    def logits(self, generated: Generated) -> np.ndarray:
        """Float32 [n, classes] of the generated images."""
        return self.rows(generated)["logits"]

    def networks(self) -> tuple:
        return self.embedder.networks


class DinoJudge(FeatureJudge):
    """A DinoEmbedder, ``embedder``, with cached image features."""

    def __init__(self, embedder: "DinoEmbedder"):
        self.embedder = embedder

    @property
    def about(self) -> str:
        return "DINO at 224 pixels"

    def image_features(self, images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        return self.embedder.image_features(images)

    def networks(self) -> tuple:
        return self.embedder.networks


class FaceJudge:
    """A FaceEmbedder, ``embedder``, with cached embeddings."""

    def __init__(self, embedder: "FaceEmbedder"):
        self.embedder: Any = embedder

    def keep(self, folder: str | Path) -> None:
        """Keep embeddings in files, see features/of_images.py."""
        self.embedder = KeptEmbedder(self.embedder, folder)

    def embed(self, generated: Generated) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings [n, d] float64 of the images, undefined without a face; and found, [n]."""

        def compute():
            embeddings, found = self.embedder.embed(generated.images, self.detections(generated))
            return np.asarray(embeddings, np.float64), np.asarray(found, bool)

        return generated.once((self, "faces"), compute)

    def detections(self, generated: Generated) -> list[Detection | None]:
        """The largest face of each image; None if it has none."""
        return generated.once((self, "found"), lambda: self.embedder.detect(generated.images))

    def crops(self, generated: Generated, rows: Iterable[int], size: int) -> Iterator[np.ndarray]:
        """Aligned faces of the images ``rows``, in which one is found: uint8 [s, s, 3] each."""
        found = self.detections(generated)
        for row in rows:
            detection = found[row]
            if detection is None:
                raise ValueError(f"image {row} has no face: leave it out")
            yield align_face(generated.images[row], np.asarray(detection.landmarks), size)

    def references(self, known: Known) -> dict[str, np.ndarray]:
        """Name to the embedding [d] of the references; people without a face in them are absent.

        Such people are left out of every figure on faces, and a printed line names them.
        """

        def compute():
            owners = known.people.owners
            means = self._means(owners, lambda owner: owner.references())
            missed = [owner for owner in owners if owner.name not in means]
            without = {owner.name for owner in missed if not owner.references()}
            unseen = [owner.name for owner in missed if owner.name not in without]
            if unseen:
                print(
                    f"{known.name}: no face found in the references of {', '.join(unseen)}: "
                    "left out"
                )
            if without:
                names = ", ".join(owner.name for owner in missed if owner.name in without)
                print(f"{known.name}: no references of {names}: left out of figures on faces")
            return means

        return known.once((self, "references"), compute)

    def further(self, known: Known) -> dict[str, np.ndarray]:
        """Name to the embeddings [n, d] of the real pictures that the method did not read.

        At most GALLERY_PICTURES of each person; people without a face in any are absent.
        """

        def compute():
            found = {}
            for owner in known.people.owners:
                read = len(owner.references())
                pictures = owner.pictures(read + GALLERY_PICTURES)[read:]
                if pictures:
                    embeddings, seen = self.embedder.embed(pictures)
                    if seen.any():
                        found[owner.name] = np.asarray(embeddings, np.float64)[seen]
            return found

        return known.once((self, "further"), compute)

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


class KeptEmbedder:
    """A FaceEmbedder whose results are kept in files; the detector is part of their key."""

    def __init__(self, embedder: "FaceEmbedder", folder: str | Path):
        self.networks, self.licence = embedder.networks, embedder.licence
        self.detector_name, self.dim = embedder.detector_name, embedder.dim
        kind, _, inline = self.detector_name.partition(":")
        about = f"a face recogniser at {embedder.size} pixels, {embedder.crop} faces by {kind}"
        found = find_model(inline or None) if kind == "insightface" else inline or kind
        detector = digest_of_files(found or "")
        self._embedder, self._kept = embedder, KeptFeatures(folder, about, self.networks, detector)

    def detect(self, images: Iterable[Any]) -> list[Detection | None]:
        """As FaceEmbedder.detect."""
        rows = self._rows(images)
        return [
            Detection(tuple(box.tolist()), landmarks, float(score)) if found else None
            for found, box, landmarks, score in zip(
                *(rows[name] for name in ("seen", "boxes", "landmarks", "scores")), strict=True
            )
        ]

    def embed(
        self, images: Iterable[Any], detections: Sequence[Detection | None] | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """As FaceEmbedder.embed; the detections are kept with the embeddings."""
        del detections
        rows = self._rows(images)
        return rows["embeddings"], rows["seen"]

    def _rows(self, images: Iterable[Any]) -> Rows:
        images = images if isinstance(images, Sequence | np.ndarray) else list(images)
        return self._kept(images, self._compute) if len(images) else self._compute([])

    def _compute(self, images) -> Rows:
        faces = self._embedder.detect(images)
        embeddings, seen = self._embedder.embed(images, faces)
        boxes, landmarks = np.zeros((len(faces), 4)), np.zeros((len(faces), 5, 2))
        scores = np.zeros(len(faces))
        for i, face in enumerate(faces):
            if face is not None:
                boxes[i], landmarks[i], scores[i] = face
        found = {"embeddings": embeddings, "seen": seen, "boxes": boxes}
        return {**found, "landmarks": landmarks, "scores": scores}


def _gallery_images(owner: Owner) -> list[np.ndarray]:
    return owner.pictures(GALLERY_PICTURES)
