"""Images of one size with their attributes, and the training examples made from them."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from data_pipeline.attributes.vocabulary import UNKNOWN, Vocabulary
from data_pipeline.examples.fields import array_spec


@dataclasses.dataclass(frozen=True)
class LabelledImages:
    """Attributes:
    images: n images, uint8 [h, w, c]: an array [n, h, w, c], or any object that has ``len``,
    returns an image when indexed by a number, and has ``shape`` (h, w, c).
    values: [n, K] int8: 1 yes, 0 no, -1 unknown.
    fingerprint: depends on the content.
    """

    images: Any
    values: np.ndarray
    fingerprint: str

    def __post_init__(self):
        if len(self.images) != len(self.values):
            raise ValueError(f"{len(self.images)} pictures and {len(self.values)} rows of values")

    def __len__(self):
        return len(self.values)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(h, w, c) of each image."""
        return tuple(self.images.shape[-3:])


@dataclasses.dataclass(frozen=True)
class Description:
    """What a model needs to know about a data set: its attributes, and (h, w, c) of its images."""

    vocabulary: Vocabulary
    shape: tuple[int, int, int]

    def to_dict(self) -> dict:
        """The form for a config; groups as rows, because their names may contain dots."""
        groups = tuple((group, *names) for group, names in self.vocabulary.groups.items())
        return {"names": self.vocabulary.names, "groups": groups, "shape": tuple(self.shape)}

    @classmethod
    def from_dict(cls, said: Mapping[str, Any]) -> "Description":
        groups = {group: tuple(names) for group, *names in said["groups"]}
        return cls(Vocabulary(tuple(said["names"]), groups), tuple(said["shape"]))


@dataclasses.dataclass(frozen=True)
class AttributeData:
    """A data set.

    Attributes:
        vocabulary: its attributes.
        train, test: different images; of different people if people are known.
        terms: the images' terms of use in one line; "" if there are none.
        unseen: [m, K] int8, combinations that ``train`` leaves out on purpose; [0, K] for none.
        mirror: whether a mirrored image shows the same attributes.
    """

    vocabulary: Vocabulary
    train: LabelledImages
    test: LabelledImages
    terms: str = ""
    unseen: np.ndarray | None = None
    mirror: bool = False


class LabelledExamples:
    """A source of batches (data_pipeline/examples/batches.py): every image once per epoch.

    Arrays of an example:
        pixel_values: [h, w, c] float32 in [-1, 1].
        attributes: [K] float32 in 0..1; attributes_known: [K] float32, 0 where unknown.

    Args:
        mirror: mirror a random half of the images.
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


def spec_of(shape: tuple[int, ...], attributes: int) -> dict:
    """Shape and dtype of an example's arrays; ``shape`` (h, w, c) of its image."""
    k = (attributes,)
    return array_spec(
        pixel_values=(shape, np.float32),
        attributes=(k, np.float32),
        attributes_known=(k, np.float32),
    )


def to_pixels(pictures: ArrayLike) -> np.ndarray:
    """uint8 to float32 in [-1, 1]."""
    return np.asarray(pictures, np.float32) / 127.5 - 1


def choose_attributes(data: AttributeData, names: Sequence[str]) -> AttributeData:
    """The data set with only these attributes or groups.

    Raises:
        RequestError: an unknown name.
    """
    vocabulary, places = data.vocabulary.choose(names)
    return _select(data, vocabulary, places)


def select_attributes(data: AttributeData, wanted: Description, name: str) -> AttributeData:
    """The data set with the attributes of ``wanted``, in that order.

    Args:
        name: of the data, for messages.

    Raises:
        ValueError: an attribute or a class is missing or different, or images of another shape.
    """
    own, asked = data.vocabulary, wanted.vocabulary
    if data.train.shape != wanted.shape:
        shapes = ["x".join(map(str, shape)) for shape in (wanted.shape, data.train.shape)]
        raise ValueError(
            f"{name}: the run was trained on images of {shapes[0]}, these are of {shapes[1]}; "
            "name the data that it was trained on (--data)"
        )
    if own == asked:
        return data
    missing = [each for each in asked.names if each not in own.names]
    missing += [group for group, names in asked.groups.items() if own.groups.get(group) != names]
    if missing:
        raise ValueError(
            f"{name}: the run was trained with {', '.join(missing[:3])}, which these data do not "
            "have, or not so; name the data that it was trained on (--data)"
        )
    left = [each for each in own.names if each not in asked.names]
    if left:
        print(f"{name}: {', '.join(left)}: not read, the run was trained without")
    return _select(data, asked, [own.names.index(each) for each in asked.names])


def _select(data: AttributeData, vocabulary: Vocabulary, places: list[int]) -> AttributeData:
    """The data set with only the attributes at these places of its own vocabulary."""

    def chosen(part: LabelledImages) -> LabelledImages:
        mark = f"{part.fingerprint}-{','.join(vocabulary.names)}"
        return LabelledImages(part.images, part.values[:, places], mark)

    unseen = None
    if data.unseen is not None:
        # Combinations of fewer attributes: those that no training image shows.
        seen = set(map(tuple, data.train.values[:, places].tolist()))
        rows = dict.fromkeys(map(tuple, data.unseen[:, places].tolist()))
        unseen = np.array([row for row in rows if row not in seen], np.int8)
        unseen = unseen.reshape(-1, len(places))
    return dataclasses.replace(
        data, vocabulary=vocabulary, train=chosen(data.train), test=chosen(data.test), unseen=unseen
    )
