"""Pictures of one size with their attributes, and the examples that training makes of them."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from data_pipeline.attributes.vocabulary import UNKNOWN, Vocabulary
from data_pipeline.examples.fields import array_spec


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Attributes:
    images: n pictures, uint8 [h, w, c]: an array [n, h, w, c], or whatever has ``len``, gives a
        picture when indexed by a number, and has ``shape`` (h, w, c) of all of them.
    values: [n, K] int8: 1 yes, 0 no, -1 unknown.
    fingerprint: changes with the content.
    """

    images: Sequence[np.ndarray]
    values: np.ndarray
    fingerprint: str

    def __post_init__(self):
        if len(self.images) != len(self.values):
            raise ValueError(f"{len(self.images)} pictures and {len(self.values)} rows of values")

    def __len__(self):
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of each picture."""
        return tuple(self.images.shape[-3:])


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model has to know of a data set: its attributes, and (h, w, c) of its pictures."""

    vocabulary: Vocabulary
    shape: tuple[int, int, int]


@dataclasses.dataclass(frozen=True)
class AttributeData:
    """A data set.

    Attributes:
        vocabulary: what its attributes are.
        train, test: different pictures; of different people where people are told apart.
        terms: under which its pictures may be used, in one line; "" if there is nothing to say.
        unseen: [m, K] int8, combinations that ``train`` leaves out on purpose; [0, K] for none.
        mirror: whether a mirrored picture shows the same attributes.
    """

    vocabulary: Vocabulary
    train: LabelledImages
    test: LabelledImages
    terms: str = ""
    unseen: np.ndarray | None = None
    mirror: bool = False


class LabelledExamples:
    """A source of batches (data_pipeline/examples/batches.py): every picture once per epoch.

    Arrays of an example:
        pixel_values: [h, w, c] float32 in [-1, 1].
        attributes: [K] float32 in 0..1; attributes_known: [K] float32, 0 where unknown.

    Args:
        mirror: show every other picture mirrored, by chance.
    """

    def __init__(self, data: LabelledImages, *, seed: int, mirror: bool = False):
        self._data, self.seed, self._mirror = data, seed, mirror
        self.fingerprint = f"{data.fingerprint}{'-mirrored' if mirror else ''}"
        self.specs = [spec_of(data.shape, data.values.shape[1])]
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    def example(self, n: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(n, len(self._data))
        row = self._order(epoch)[place]
        picture, values = self._data.images[row], self._data.values[row]
        if self._mirror and np.random.default_rng((self.seed, 1, n)).random() < 0.5:
            picture = picture[:, ::-1]
        known = values != UNKNOWN
        return {
            "pixel_values": to_pixels(picture),
            "attributes": np.where(known, values, 0).astype(np.float32),
            "attributes_known": known.astype(np.float32),
        }

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, 0, epoch)).permutation(len(self._data))


def spec_of(shape, attributes: int) -> dict:
    """Shape and dtype of an example's arrays; ``shape`` (h, w, c) of its picture."""
    k = (attributes,)
    return array_spec(
        pixel_values=(shape, np.float32),
        attributes=(k, np.float32),
        attributes_known=(k, np.float32),
    )


def to_pixels(pictures) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return np.asarray(pictures, np.float32) / 127.5 - 1


def choose_attributes(data: AttributeData, names: Sequence[str]) -> AttributeData:
    """The data set with these attributes or groups alone.

    Raises:
        RequestError: a name that it does not have.
    """
    vocabulary, places = data.vocabulary.choose(names)

    def chosen(part: LabelledImages) -> LabelledImages:
        mark = f"{part.fingerprint}-{','.join(vocabulary.names)}"
        return LabelledImages(part.images, part.values[:, places], mark)

    unseen = None
    if data.unseen is not None:
        # Combinations of fewer attributes: those that none of the training pictures shows.
        seen = set(map(tuple, data.train.values[:, places].tolist()))
        rows = dict.fromkeys(map(tuple, data.unseen[:, places].tolist()))
        unseen = np.array([row for row in rows if row not in seen], np.int8)
        unseen = unseen.reshape(-1, len(places))
    return dataclasses.replace(
        data, vocabulary=vocabulary, train=chosen(data.train), test=chosen(data.test), unseen=unseen
    )
