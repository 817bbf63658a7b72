"""The judge of faces: a recogniser with its detector. See judges.py."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data_pipeline.faces.align import align_face
from data_pipeline.faces.detectors import Detection
from data_pipeline.faces.detectors.insightface_scrfd import find_model
from persongen_jax.features.of_images import KeptFeatures, Rows, digest_of_files, text_of
from persongen_jax.metrics.base import Generated, Known, Owner
from persongen_jax.metrics.face_similarity import mean_embedding
from persongen_jax.metrics.feature_judges import PEOPLE_PER_BATCH

if TYPE_CHECKING:
    from persongen_jax.metrics.face_embedder import FaceEmbedder

GALLERY_PICTURES = 8  # most images per person in the gallery's mean embedding


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
        return _means_of(self._of_gallery(known))

    def large_gallery(self, known: Known) -> dict[str, np.ndarray]:
        """The gallery of ``known.others`` and the set's missing people; {} without others."""
        others = _means_of(self._of_others(known))
        return {**self.gallery(known), **others} if others else {}

    def impostors(self, known: Known) -> tuple[np.ndarray, int]:
        """Cosines [n] of real faces of different people, and of how many people they are.

        Each person's reference is compared with those of all others and with their further
        pictures, at most GALLERY_PICTURES of each person: the set's people and ``known.others``,
        whose first pictures serve as references where they have none.
        """

        def compute():
            own, references = self._of_gallery(known), self.references(known)
            counts = {owner.name: len(owner.references()) for owner in known.people.owners}
            most = max(counts.values(), default=0) or 1
            faces = {**self._of_others(known), **own}
            if len(faces) < 2:
                return np.zeros(0), len(faces)
            firsts = _means_of({name: each[:most] for name, each in faces.items()})
            means = np.stack([{**firsts, **references}[name] for name in faces])
            found = [(means @ means.T)[np.triu_indices(len(means), 1)]]
            for i, (name, each) in enumerate(faces.items()):
                further = each[counts.get(name, most) :]
                found.append((further @ np.delete(means, i, axis=0).T).ravel())
            return np.concatenate(found), len(faces)

        return known.once((self, "impostors"), compute)

    def _of_gallery(self, known: Known) -> dict[str, np.ndarray]:
        """Name to the embeddings [n, d] of the real pictures of people with a face in theirs."""
        here = self.references(known)
        own = [owner for owner in known.people.owners if owner.name in here]
        return known.once((self, "gallery"), lambda: self._faces(own, _gallery_images))

    def _of_others(self, known: Known) -> dict[str, np.ndarray]:
        """The same of ``known.others``."""
        owners = known.others.owners
        return known.others.once((self, "gallery"), lambda: self._faces(owners, _gallery_images))

    def _means(self, owners, pictures_of) -> dict[str, np.ndarray]:
        """By name, the mean embedding of the images in which a face is found, if any."""
        return _means_of(self._faces(owners, pictures_of))

    def _faces(self, owners, pictures_of) -> dict[str, np.ndarray]:
        """By name, the embeddings [n, d] of the images in which a face is found, if any."""
        faces = {}
        for start in range(0, len(owners), PEOPLE_PER_BATCH):
            here = owners[start : start + PEOPLE_PER_BATCH]
            pictures = [(o.name, picture) for o in here for picture in pictures_of(o)]
            embeddings, found = self.embedder.embed([picture for _, picture in pictures])
            names = np.array([name for name, _ in pictures])
            for name in dict.fromkeys(names.tolist()):
                own = found & (names == name)
                if own.any():
                    faces[name] = np.asarray(embeddings[own], np.float64)
        return faces


class KeptEmbedder:
    """A FaceEmbedder whose results are kept in files; the detector is part of their key."""

    def __init__(self, embedder: "FaceEmbedder", folder: str | Path):
        self.networks, self.licence = embedder.networks, embedder.licence
        self.detector_name, self.dim = embedder.detector_name, embedder.dim
        kind, _, inline = self.detector_name.partition(":")
        about = f"a face recogniser at {embedder.size} pixels, {embedder.crop} faces by {kind}"
        found = find_model(inline or None) if kind == "insightface" else inline or kind
        on = self.networks, digest_of_files(found or ""), text_of(embedder.config)
        self._embedder, self._kept = embedder, KeptFeatures(folder, about, *on)

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


def _means_of(faces: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Name to the mean [d] of each one's embeddings [n, d], if there are any."""
    means = {name: mean_embedding(own) for name, own in faces.items()}
    return {name: mean for name, mean in means.items() if mean is not None}


def _gallery_images(owner: Owner) -> list[np.ndarray]:
    return owner.pictures(GALLERY_PICTURES)
