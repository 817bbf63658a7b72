"""Fields: the named inputs of an example, each described once.

An example is what its fields make of a record. The same descriptions tell the loader what to
make, the feature cache what it may store, the pipeline what to make of a call, and training what
an input is where the condition is dropped. A system or a method names the fields that it reads
(persongen_jax/systems/, persongen_jax/methods/); conditions.py has the two that identity methods
share, spatial.py points and control images, this file the rest.

A new field is a class with ``spec`` and ``make``, and with ``given`` where images are generated
from it. It may add several arrays; names with a slash, "input_ids/text", nest.
"""

import abc
import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from data_pipeline.pictures.transforms import TargetCrop
from data_pipeline.records.schema import Record

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]


class FieldError(ValueError):
    """A record that lacks what a field needs; the message names the picture and the key."""


@dataclasses.dataclass
class Example:
    """One example while it is being made.

    Attributes:
        source: the ExampleSource, for decoding and for other records.
        record: whose picture is the target.
        crop: how the target picture is cut; None for an example without a picture.
        rng: of this example alone. The crop has drawn from it, references draw next.
    """

    source: object
    record: Record
    crop: TargetCrop | None
    rng: np.random.Generator

    @functools.cached_property
    def references(self) -> list[Record]:
        """1 to 4 other pictures of the identity; [] where no field reads any."""
        return self._drawing[0]

    @property
    def drawn(self) -> dict[str, list]:
        """What each field of references keeps of them, by its name; an entry for each."""
        return self._drawing[1]

    @functools.cached_property
    def _drawing(self):
        return self.source.draw_references(self)


@dataclasses.dataclass
class Call:
    """What a call of the pipeline asks for; a row for each image.

    Attributes:
        prompts: a text for each row.
        parts: further prompts by stream, a text (or None) for each row.
        people: for each row, for each person, a list of reference images; None without references.
        time_ids: [b, 6] float32, SDXL's micro-conditioning.
        size: (height, width) of the images in pixels.
        inputs: what else was given, by the field's name: an entry for each row.
    """

    prompts: list[str]
    parts: dict[str, list]
    people: list | None
    time_ids: np.ndarray
    size: tuple[int, int]
    inputs: dict[str, list] = dataclasses.field(default_factory=dict)


class Field(abc.ABC):
    """One input of an example.

    Attributes:
        name: what the field is called in a config, a call and in messages.
        keys: further keys of the manifest (a record's ``extra``) that it reads; "images.NAME"
            where that is a further picture (a record's ``images``).
        encoding: what frozen networks make of it, for the cache; None: nothing.
        others: how many other pictures of the identity an example needs at least.
        identity: it says who the person is, so that delayed merging leaves it out at first.
    """

    name: str
    keys: tuple[str, ...] = ()
    encoding: "Encoding | None" = None
    others: int = 0
    identity: bool = False

    @abc.abstractmethod
    def spec(self, shape: tuple[int, int]) -> Spec:
        """Shape and dtype of each array, of an example whose target is (height, width)."""

    def make(self, example: Example) -> dict[str, np.ndarray] | None:
        """The arrays of one example; None: this record cannot serve, another is taken.

        Only called for examples that are made of records; other sources bring the arrays.

        Raises:
            ImageError: a picture that cannot be decoded; another record is taken.
        """
        raise FieldError(f"{self.name}: records do not tell it; the data have to bring the arrays")

    def check(self, record: Record, others: int) -> None:  # noqa: B027 (nothing to find)
        """Find before the first step what would stop a run in its middle.

        Args:
            others: how many other pictures the identity has.

        Raises:
            ValueError: what is wrong with the record, without its name.
        """

    def notes(self) -> list[str]:
        """What ``check`` has found in all records that is no error, for the log; then forgotten."""
        return []

    def given(self, call: Call) -> dict[str, np.ndarray]:
        """The arrays [b, ...] of a pipeline's call; {} for what only training reads."""
        return {}

    def draw_one(self, source, record: Record):
        """What an example keeps of another picture of the identity, for fields with ``others``.

        Raises:
            ImageError: it cannot serve; another is drawn.
        """
        return record

    def from_record(self, record: Record, read, size: tuple[int, int]):
        """What a call gives it, by its name, for an image like the record's: for validation.

        Args:
            read: a picture's name to uint8 RGB [h, w, 3]; size: (height, width) of the image.

        Returns:
            The entry of one image; None: nothing is given.
        """
        return None

    def dropped(self, batch: dict, xp) -> dict:
        """Entries of a batch as they are where the condition is dropped; {}: it stays.

        Args:
            batch: [b, ...], flat names; with cached features where these are cached.
            xp: numpy or jax.numpy.
        """
        return {}


# ---- What frozen networks make of a field ------------------------------------------------------


class Input(NamedTuple):
    """What an encoder reads of one example.

    key: a function to what tells the input from others of its kind (texts, numbers, arrays); only
        called with a cache, which knows pictures by their digests. make: a function to the array.
    shape: of the array. store: whether it will come again. picture: the file behind it, "" if none.
    """

    key: Callable[[], tuple]
    make: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    store: bool = True
    picture: str = ""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the feature cache can keep in a field's place.

    Attributes:
        kind: names the cache's table, and the kind in ``config.cache_kinds``.
        weights: beginnings of the paths of all parameters that it is computed from.
        encode: (model, inputs [b, ...]) to {name: [b, ...]}.
        dtype: of the inputs.
        precision: the key of the config that says in which dtype it is computed.
        signature: what else the result depends on, in the table's name.
        suffix: of the table's name, for tables that differ by the input's shape.
        view: of the whole model, what ``encode`` reads, so that nothing else is moved or compiled.
    """

    kind: str
    weights: tuple[str, ...]
    encode: Callable
    dtype: type = np.float32
    precision: str = "dtype"
    signature: tuple = ()
    suffix: Callable[[tuple], str] = lambda shape: ""
    view: Callable = lambda model: model


class EncodedField(Field):
    """A field whose inputs networks encode: now, in the step, or once, for the cache.

    It says what the inputs are, and how they, or the encoder's rows in their place, are joined.
    """

    @abc.abstractmethod
    def input_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """Of one input's array, for a target of (height, width)."""

    @abc.abstractmethod
    def inputs(self, example: Example) -> list[Input] | None:
        """Of one example; None: this record cannot serve."""

    @abc.abstractmethod
    def join(self, example: Example, values: list) -> dict[str, np.ndarray]:
        """The example's arrays from the inputs' arrays."""

    @abc.abstractmethod
    def join_rows(self, example: Example, rows: list[dict]) -> dict[str, np.ndarray]:
        """The example's arrays from the encoder's rows ({name: array})."""

    @abc.abstractmethod
    def row_spec(self, shape: tuple[int, int], rows: Spec) -> Spec:
        """``spec`` with the encoder's rows in place of the inputs."""

    @abc.abstractmethod
    def all_inputs(self, source, record: Record) -> list[Input]:
        """All inputs that examples may have of this record, for filling a cache."""

    def make(self, example):
        inputs = self.inputs(example)
        if inputs is None:
            return None
        return self.join(example, [entry.make() for entry in inputs])

    def make_cached(self, example):
        """As ``make``, with the cache's rows."""
        inputs = self.inputs(example)
        if inputs is None:
            return None
        rows = [example.source.features.row(self.encoding, entry) for entry in inputs]
        return self.join_rows(example, rows)


# ---- Plain fields ------------------------------------------------------------------------------


def array_spec(**arrays) -> Spec:
    return {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}


class Image(EncodedField):
    """The target picture: "pixel_values" [h, w, 3] float32 in [-1, 1].

    With the VAE's ``encoding`` a cache keeps "moments" instead, mean and logvar side by side.
    """

    name = "image"

    def __init__(self, encoding: Encoding | None = None):
        self.encoding = encoding

    def spec(self, shape):
        return array_spec(pixel_values=((*shape, 3), np.float32))

    def input_shape(self, shape):
        return (*shape, 3)

    def inputs(self, example):
        return [self._input(example.source, example.record.image, example.crop)]

    def _input(self, source, name, crop):
        def key():
            place = (*crop.resized, crop.top, crop.left, *crop.size)
            return (source.features.picture_of(source, name).digest, *place)

        def make():
            return crop.cut(source.pictures.image(name))

        return Input(key, make, (*crop.size, 3), crop.certain, name)

    def join(self, example, values):
        return {"pixel_values": values[0]}

    def join_rows(self, example, rows):
        return {"moments": rows[0]["moments"]}

    def row_spec(self, shape, rows):
        return {"moments": rows["moments"]}

    def all_inputs(self, source, record):
        crop = source.usual_crop(record)
        return [] if crop is None else [self._input(source, record.image, crop)]


class TimeIds(Field):
    """SDXL's micro-conditioning, "time_ids" [6] float32 (arXiv 2307.01952, section 2.2).

    (original_h, original_w, crop_top, crop_left, target_h, target_w) of the target, in pixels.
    """

    name = "time_ids"

    def spec(self, shape):
        return array_spec(time_ids=((6,), np.float32))

    def make(self, example):
        return {"time_ids": example.crop.time_ids}

    def given(self, call):
        return {"time_ids": call.time_ids}


class FaceBox(Field):
    """ "face_box" [4] float32, (x0, y0, x1, y1) in the target's pixels; zeros if there is none."""

    name = "face_box"

    def spec(self, shape):
        return array_spec(face_box=((4,), np.float32))

    def make(self, example):
        return {"face_box": example.crop.face_box}


def needs(fields) -> dict:
    """What these fields demand of a source of records: arguments of sources.open_records."""
    marked = any(getattr(field, "at_trigger", False) for field in fields)
    return {"marked": marked, "least": 1 + max((field.others for field in fields), default=0)}


# ---- Flat and nested ---------------------------------------------------------------------------


def flatten(tree: dict, prefix: str = "") -> dict[str, np.ndarray]:
    """{"a": {"b": x}} to {"a/b": x}."""
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: dict[str, np.ndarray]) -> dict:
    """{"a/b": x} to {"a": {"b": x}}."""
    tree = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree
