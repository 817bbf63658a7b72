"""Fields: the named inputs of an example, each described once.

An example is what its fields make of a record. The same descriptions tell the loader what to make,
the feature cache what it may store, the pipeline what to make of a call, and training the value of
a dropped condition. A system or a method lists the fields that it reads (persongen_jax/systems/,
persongen_jax/methods/); conditions.py has the two that identity methods share, spatial.py points
and control images, pose_image.py skeletons, this file the rest.

A new field is a class with ``spec`` and ``make``, and with ``given`` if images can be generated
from it. It may add several arrays; names with a slash, "input_ids/text", are nested.
"""

import abc
import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from data_pipeline.records.schema import Record

Spec = dict[str, tuple[tuple[int, ...], np.dtype]]
Batch = dict[str, Any]  # arrays [b, ...] by name, nested as :func:`unflatten` does


class FieldError(ValueError):
    """A record that lacks what a field needs; the message names the image and the key."""


@dataclasses.dataclass
class Example:
    """An example under construction.

    Attributes:
        source: the ExampleSource, for decoding and for other records.
        record: the record whose image is the target.
        crop: of the target image; None for an example without an image.
        rng: for this example only. The crop has drawn from it, references draw next.
    """

    source: Any
    record: Record
    crop: Any
    rng: np.random.Generator

    @functools.cached_property
    def references(self) -> list[Record]:
        """1 to 4 other images of the identity; [] if no field reads any."""
        return self._drawing[0]

    @property
    def drawn(self) -> dict[str, list]:
        """What each field of references keeps of them, by its name; one entry per reference."""
        return self._drawing[1]

    @functools.cached_property
    def _drawing(self):
        return self.source.draw_references(self)


@dataclasses.dataclass
class Call:
    """The inputs of a pipeline call, one row per image.

    Attributes:
        prompts: a text per row.
        parts: additional prompts by stream, a text (or None) per row.
        people: per row and person, a list of reference images; None without references.
        time_ids: [b, 6] float32, SDXL's micro-conditioning.
        size: (height, width) of the images in pixels.
        inputs: other inputs by the field's name: an entry per row.
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
        name: the field's name in a config, a call and in messages.
        keys: additional keys of the manifest (a record's ``extra``) that it reads; "images.NAME"
            for an additional image (a record's ``images``).
        encoding: how frozen networks encode it, for the cache; None: they do not.
        others: how many other images of the identity an example needs at least.
        identity: whether it says who the person is, so that delayed merging omits it at first.
        by_name: whether a call may also pass a field of the identity by its name.
        drop_prob: the probability with which training drops it on its own, as a control image is;
            guidance then keeps it on both sides. None: it is dropped with the whole condition.
        alone_drop_prob: the additional probability with which training drops it alone, of what is
            dropped with the whole condition; at most one of these and the whole are dropped.
    """

    name: str
    keys: tuple[str, ...] = ()
    encoding: "Encoding | None" = None
    others: int = 0
    identity: bool = False
    by_name: bool = False
    drop_prob: float | None = None
    alone_drop_prob: float = 0.0

    @abc.abstractmethod
    def spec(self, shape: tuple[int, int]) -> Spec:
        """Shape and dtype of each array of an example whose target is (height, width)."""

    def make(self, example: Example) -> dict[str, np.ndarray] | None:
        """The arrays of one example; None: reject this record and take another.

        Only called for examples made from records; other sources provide the arrays.

        Raises:
            ImageError: an image that cannot be decoded; another record is taken.
        """
        raise FieldError(f"{self.name}: records do not have it; the data must provide the arrays")

    def check(self, record: Record, others: int) -> None:  # noqa: B027 (nothing to find)
        """Find problems before the first step that would otherwise stop a run later.

        Args:
            others: how many other images the identity has.

        Raises:
            ValueError: what is wrong with the record, without its name.
        """

    def notes(self) -> list[str]:
        """Remarks of ``check`` about all records that are not errors, for the log; then cleared."""
        return []

    def given(self, call: Call) -> dict[str, np.ndarray]:
        """The arrays [b, ...] for a pipeline call; {} if only training reads them."""
        return {}

    def draw_one(self, source: Any, record: Record) -> Any:
        """What an example keeps of another image of the identity, for fields with ``others``.

        Raises:
            ImageError: it is unusable; another is drawn.
        """
        return record

    def from_record(
        self, record: Record, read: Callable[[str], np.ndarray], size: tuple[int, int]
    ) -> Any:
        """What a call passes by its name for an image like the record's: for validation.

        Args:
            read: maps an image's name to uint8 RGB [h, w, 3]; size: (height, width) of the image.

        Returns:
            The entry of one image; None: nothing to pass.
        """
        return None

    def from_records(
        self,
        records: Sequence[Record],
        read: Callable[[str], np.ndarray],
        size: tuple[int, int],
    ) -> Any:
        """Like ``from_record`` for a person whose references are these; by default the first's."""
        return self.from_record(records[0], read, size)

    def dropped(self, batch: Batch, xp: Any) -> dict:
        """Entries of a batch that replace it if the condition is dropped; {}: it stays.

        Args:
            batch: [b, ...], flat names; with cached features if these are cached.
            xp: numpy or jax.numpy.
        """
        return {}

    def absent(self, batch: Batch, xp: Any) -> dict:
        """The same where the prompt alone shall act, before delayed merging.

        By default as if it was dropped; a method may have learned tokens for that.
        """
        return self.dropped(batch, xp)


# ---- Encoding by frozen networks ------------------------------------------------------


class Input(NamedTuple):
    """An encoder's input for one example.

    key: a function to what identifies the input (texts, numbers, arrays); only called with a cache,
    which knows images by their digests. make: a function to the array. shape: of the array. store:
    whether it will be needed again. picture: the file behind it, "" if none.
    """

    key: Callable[[], tuple]
    make: Callable[[], np.ndarray]
    shape: tuple[int, ...]
    store: bool = True
    picture: str = ""


@dataclasses.dataclass(frozen=True)
class Encoding:
    """What the feature cache can store in place of a field.

    Attributes:
        kind: the name of the cache's table, and the kind in ``config.cache_kinds``.
        weights: path prefixes of all parameters that it depends on.
        encode: (model, inputs [b, ...]) to {name: [b, ...]}.
        dtype: of the inputs.
        precision: the config key for the dtype of the computation.
        signature: what else the result depends on, for the table's name.
        suffix: of the table's name, for tables that depend on the input's shape.
        view: the part of the model that ``encode`` reads, so that only that is moved and compiled.
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
    """A field whose inputs networks encode: in the step, or once for the cache.

    It defines the inputs, and how they, or the encoder's rows instead, are joined.
    """

    @abc.abstractmethod
    def input_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        """The shape of one input's array, for a target of (height, width)."""

    @abc.abstractmethod
    def inputs(self, example: Example) -> list[Input] | None:
        """The inputs of one example; None: reject this record."""

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
    def all_inputs(self, source: Any, record: Record) -> list[Input]:
        """All inputs that examples may need for this record, for filling a cache."""

    def make(self, example: Example) -> dict[str, np.ndarray] | None:
        inputs = self.inputs(example)
        if inputs is None:
            return None
        return self.join(example, [entry.make() for entry in inputs])

    def make_cached(self, example: Example) -> dict[str, np.ndarray] | None:
        """Like ``make``, with the cache's rows."""
        inputs = self.inputs(example)
        if inputs is None:
            return None
        rows = [example.source.features.row(self.encoding, entry) for entry in inputs]
        return self.join_rows(example, rows)


# ---- Plain fields ------------------------------------------------------------------------------


def array_spec(**arrays: Any) -> Spec:
    return {name: (tuple(shape), np.dtype(dtype)) for name, (shape, dtype) in arrays.items()}


class Image(EncodedField):
    """The target image: "pixel_values" [h, w, 3] float32 in [-1, 1].

    With the VAE's ``encoding`` a cache stores "moments" instead, mean and logvar concatenated.
    """

    name = "image"

    def __init__(self, encoding: Encoding | None = None):
        self.encoding = encoding

    def spec(self, shape: tuple[int, int]) -> Spec:
        return array_spec(pixel_values=((*shape, 3), np.float32))

    def input_shape(self, shape: tuple[int, int]) -> tuple[int, ...]:
        return (*shape, 3)

    def inputs(self, example: Example) -> list[Input]:
        return [self._input(example.source, example.record.image, example.crop)]

    def _input(self, source, name, crop):
        def key():
            place = (*crop.resized, crop.top, crop.left, *crop.size)
            return (source.features.picture_of(source, name).digest, *place)

        def make():
            return crop.cut(source.pictures.image(name))

        return Input(key, make, (*crop.size, 3), crop.certain, name)

    def join(self, example: Example, values: list) -> dict[str, np.ndarray]:
        return {"pixel_values": values[0]}

    def join_rows(self, example: Example, rows: list[dict]) -> dict[str, np.ndarray]:
        return {"moments": rows[0]["moments"]}

    def row_spec(self, shape: tuple[int, int], rows: Spec) -> Spec:
        return {"moments": rows["moments"]}

    def all_inputs(self, source: Any, record: Record) -> list[Input]:
        crop = source.fixed_crop(record)
        return [] if crop is None else [self._input(source, record.image, crop)]


class TimeIds(Field):
    """SDXL's micro-conditioning, "time_ids" [6] float32 (arXiv 2307.01952, section 2.2).

    (original_h, original_w, crop_top, crop_left, target_h, target_w) of the target, in pixels.
    """

    name = "time_ids"

    def spec(self, shape: tuple[int, int]) -> Spec:
        return array_spec(time_ids=((6,), np.float32))

    def make(self, example: Example) -> dict[str, np.ndarray]:
        return {"time_ids": example.crop.time_ids}

    def given(self, call: Call) -> dict[str, np.ndarray]:
        return {"time_ids": call.time_ids}


class FaceBox(Field):
    """ "face_box" [4] float32, (x0, y0, x1, y1) in the target's pixels; zeros if there is none."""

    name = "face_box"

    def spec(self, shape: tuple[int, int]) -> Spec:
        return array_spec(face_box=((4,), np.float32))

    def make(self, example: Example) -> dict[str, np.ndarray]:
        return {"face_box": example.crop.face_box}


def requirements(fields: Iterable[Field]) -> dict:
    """What these fields require of a source of records: arguments of sources.open_records."""
    marked = any(getattr(field, "at_trigger", False) for field in fields)
    least = 1 + max((field.others for field in fields), default=0)
    # What reads no references learns from pictures without a face as well.
    return {"marked": marked, "least": least, "keep_faceless": least == 1}


def check_names(fields: Iterable[Field]) -> None:
    """ValueError for two fields of one name: the one would silently replace the other."""
    for name, count in Counter(field.name for field in fields).items():
        if count > 1:
            raise ValueError(f"two inputs of an example are called {name!r}; rename one of them")


# ---- Flat and nested ---------------------------------------------------------------------------


def flatten(tree: Batch, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": x}} to {"a/b": x}."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}/")
        else:
            flat[prefix + name] = value
    return flat


def unflatten(flat: dict[str, Any]) -> Batch:
    """{"a/b": x} to {"a": {"b": x}}."""
    tree: Batch = {}
    for name, value in flat.items():
        *parents, leaf = name.split("/")
        branch = tree
        for parent in parents:
            branch = branch.setdefault(parent, {})
        branch[leaf] = value
    return tree
