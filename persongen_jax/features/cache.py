"""Outputs of frozen networks on the data's fields, computed once and stored in ``config.cache``.

A field's ``encoding`` says whether it can be cached and by which networks
(data_pipeline/examples/fields.py): for SDXL the VAE's moments of every target, the image tower's
features of every reference crop, both text towers' states of every row of token ids. The cache
keeps those that ``config.cache_kinds`` names and the config's table leaves frozen. See
docs/cache.md.

The trainer reads cached rows; it computes a missing row when first needed, and stores it.
"""

import functools
import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import EncodedField, Encoding, Field, Input, unflatten
from data_pipeline.examples.source import ExampleSource
from data_pipeline.pictures.reading import ImageError
from persongen_jax.features.digest import VERSION, local_array, model_digest
from persongen_jax.features.store import KEY_BYTES, FeatureTable, digest_of
from persongen_jax.files import is_full
from persongen_jax.training.partition import assign_groups, leaf_paths

log = logging.getLogger(__name__)

# Of the default config; a method may lack some.
USUAL_KINDS = ("moments", "references", "photographs", "bodies", "text")
FLUSH_SECONDS = 120  # most work that a killed pass loses
PICTURES_VERSION = 2  # how a file becomes pixels


# ---- What can be cached, and its shapes --------------------------------------------------------


def encodings_of(fields: Iterable[Field]) -> list[Encoding]:
    """Of the fields that frozen networks encode."""
    return [field.encoding for field in fields if field.encoding is not None]


def cached_kinds(
    config: ConfigDict, model: nnx.Module, fields: Iterable[Field], table: Iterable[tuple[str, str]]
) -> dict[str, str]:
    """Maps kind to "" if it can be cached, else to the reason why not; in the order of ``fields``.

    Args:
        table: rows (path pattern, group) of what is trained.

    Raises:
        ValueError: a name in ``config.cache_kinds`` that no field has.
    """
    encodings = encodings_of(fields)
    known = [encoding.kind for encoding in encodings]
    unknown = sorted(set(config.cache_kinds) - {*known, *USUAL_KINDS})
    if unknown:
        use = ", ".join(known)
        raise ValueError(f"config.cache_kinds: {', '.join(unknown)} is unknown; use {use}")
    trained = assign_groups(leaf_paths(model), table)
    reasons = {}
    for encoding in encodings:
        moving = [path for path in trained if path.startswith(encoding.weights)]
        if encoding.kind not in config.cache_kinds:
            reasons[encoding.kind] = "config.cache_kinds does not name it"
        else:
            reasons[encoding.kind] = f"{len(moving)} of its arrays are trained" if moving else ""
    return reasons


def row_spec(model: nnx.Module, encoding: Encoding, input_shape: tuple[int, ...]) -> dict:
    """Name to (shape, dtype) of ``encoding``'s output for one input; computes nothing."""
    encode, state = open_encoder(model, encoding)
    one = jax.ShapeDtypeStruct((1, *input_shape), encoding.dtype)
    made = jax.eval_shape(encode, state, one)
    return {name: (a.shape[1:], np.dtype(a.dtype)) for name, a in made.items()}


def open_encoder(model: nnx.Module, encoding: Encoding) -> tuple[Callable, nnx.State]:
    """(encode, state): the encoding as a function of (state, inputs), without other networks."""
    graphdef, state = nnx.split(encoding.view(model))

    def encode(state, inputs):
        return encoding.encode(nnx.merge(graphdef, state), inputs)

    return encode, state


def abstract_batch(
    model: nnx.Module,
    fields: Iterable[Field],
    shape: tuple[int, int],
    batch_size: int,
    kinds: Collection[str] = (),
) -> dict:
    """A batch as ShapeDtypeStructs, over all devices: [batch_size, ...] each.

    Args:
        model: with arrays or ShapeDtypeStructs.
        shape: (height, width) of the target in pixels.
        kinds: the kinds that the feature cache provides.
    """
    spec = {}
    for field in fields:
        encoding = field.encoding
        if isinstance(field, EncodedField) and encoding is not None and encoding.kind in kinds:
            rows = row_spec(model, encoding, field.input_shape(shape))
            spec |= field.row_spec(shape, rows)
        else:
            spec |= field.spec(shape)
    return unflatten({n: jax.ShapeDtypeStruct((batch_size, *s), d) for n, (s, d) in spec.items()})


# ---- The cache of a run ------------------------------------------------------------------------


class NotFinite(ValueError):
    """Frozen networks turn an input into NaN or infinity."""


def _if_finite(row: dict | None) -> dict | None:
    """The row; None if one of its numbers is not finite."""
    return row if row and all(np.isfinite(array).all() for array in row.values()) else None


class Picture(NamedTuple):
    """A decoded image: a digest of its pixels, and (height, width)."""

    digest: bytes
    size: tuple[int, int]


class Features:
    """Cached features of a config's data; safe to use from several threads.

    Missing rows are computed one at a time and stored; :meth:`fill` computes many at once.

    Args:
        config: its ``cache`` is the folder, ``cache_kinds`` selects among the possible kinds.
        model: with all its weights.
        fields: of the examples; table: of trained weights.
        stamps: sources.picture_stamps of the data.

    Attributes:
        kinds: the cached kinds.
        counts: numbers of computed, read and unstored rows, by kind.
    """

    def __init__(
        self,
        config: ConfigDict,
        model: nnx.Module,
        fields: Iterable[Field],
        table: Iterable[tuple[str, str]],
        stamps: Callable[[str], str | None],
    ):
        self._reasons = cached_kinds(config, model, fields, table)
        self.kinds = tuple(kind for kind, reason in self._reasons.items() if not reason)
        self.folder, self._stamps, self.counts = Path(config.cache), stamps, Counter()
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._tables, self._rows, self._known = {}, {}, {}
        self._bad: dict[tuple, str] = {}
        self._encoders = {
            encoding.kind: _Encoder(config, model, encoding)
            for encoding in encodings_of(fields)
            if encoding.kind in self.kinds
        }
        self.caches_pixels = any(self.caches(field) for field in fields if field.name == "image")
        spec = {"digest": ((KEY_BYTES,), np.uint8), "size": ((2,), np.int32)}
        self._pictures = FeatureTable(self.folder / f"pictures-{PICTURES_VERSION}", spec)

    def __str__(self):
        said = [f"{kind} in {self._encoders[kind].name}" for kind in self.kinds]
        said += [f"{kind} not cached, as {why}" for kind, why in self._reasons.items() if why]
        return f"{self.folder}: {'; '.join(said)}"

    def summary(self) -> str:
        """The counts, for the log."""
        return ", ".join(f"{what}: {n:,}" for what, n in sorted(self.counts.items())) or "none used"

    def caches(self, field: Field) -> bool:
        """Whether the field's rows are stored here."""
        return field.encoding is not None and field.encoding.kind in self.kinds

    def row_spec(self, encoding: Encoding, input_shape: tuple[int, ...]) -> dict:
        """Name to (shape, dtype) of a row of this encoding."""
        known = (encoding.kind, input_shape)
        if known not in self._rows:
            self._rows[known] = self._encoders[encoding.kind].row_spec(input_shape)
        return self._rows[known]

    def picture_of(self, source: ExampleSource, name: str) -> Picture:
        """Digest and size of an image; it is decoded only if its file was never seen.

        Raises:
            ImageError: it does not decode.
        """
        if name in source.skipped:
            raise ImageError(source.skipped[name])
        if name in self._known:
            return self._known[name]
        stamp = self._stamps(name)
        key = None if stamp is None else digest_of("picture", stamp)
        row = None if key is None else self._pictures.get(key)
        if row is None:
            image = source.pictures.image(name)
            digest = np.frombuffer(digest_of(image), np.uint8)
            row = {"digest": digest, "size": np.array(image.shape[:2], np.int32)}
            if key is not None:
                self._store(self._pictures, key, row)
        height, width = map(int, row["size"])
        picture = Picture(row["digest"].tobytes(), (height, width))
        self._known[name] = picture
        return picture

    def row(self, encoding: Encoding, entry: Input) -> dict[str, np.ndarray]:
        """The encoder's output for an input, read or computed.

        Raises:
            ImageError: the input's image no longer decodes, or the encoder's output for it is not
                finite.
            NotFinite: the latter, for an input without an image.
        """
        kind, rows = encoding.kind, self._table(encoding, entry.shape)
        key = self._key(encoding, entry)
        if (kind, key) in self._bad:
            raise self._not_finite_error(encoding, key, entry)
        row = _if_finite(rows.get(key))
        if row is not None:
            self.counts[f"{kind} read"] += 1
            return row
        with self._lock:  # compute one at a time, and nothing twice
            row = _if_finite(rows.get(key))
            if row is None:
                made = self._encoders[kind](np.asarray(entry.make())[None])
                row = {name: array[0] for name, array in made.items()}
                self.counts[f"{kind} computed"] += 1
                if _if_finite(row) is None:
                    raise self._not_finite_error(encoding, key, entry)
                if entry.store:
                    self._store(rows, key, row)
        return row

    def _not_finite_error(self, encoding: Encoding, key: bytes, entry: Input) -> ValueError:
        """The error for an input whose output is NaN or infinite; counted and logged once."""
        kind, precision = encoding.kind, f"config.{encoding.precision}"
        error = ImageError if entry.picture else NotFinite
        if (kind, key) not in self._bad:
            dtype = self._encoders[kind].dtype
            remedy = f"--{precision}=float32 has more room than {dtype}"
            remedy = remedy if dtype != "float32" else "check the image and the weights"
            self._bad[kind, key] = (
                f"{entry.picture or 'a text'}: the frozen networks' output ({kind}) is not finite; "
                f"it is not stored, and no example uses it: {remedy}"
            )
            self.counts[f"{kind} not finite, not stored"] += 1
            log.warning("%s", self._bad[kind, key])
        return error(self._bad[kind, key])

    @staticmethod
    def _key(encoding: Encoding, entry: Input) -> bytes:
        return digest_of(VERSION, encoding.kind, *entry.key())

    def fill(
        self, jobs: Iterable[Iterable[tuple[Any, Input]]], batch_size: int = 16, threads: int = 8
    ) -> None:
        """Compute and store what is missing for ``jobs``, lists of (field, input)."""
        waiting: dict[tuple, tuple[Encoding, list]] = {}
        promised = set()
        flushed = time.monotonic()
        try:
            with ThreadPoolExecutor(threads) as pool:
                for field, entry in itertools.chain.from_iterable(jobs):
                    encoding = field.encoding
                    table, key = (encoding.kind, entry.shape), self._key(encoding, entry)
                    if key in self._table(encoding, entry.shape) or (table, key) in promised:
                        continue
                    promised.add((table, key))
                    waiting.setdefault(table, (encoding, []))[1].append((key, entry))
                    if len(waiting[table][1]) == batch_size:
                        self._fill_one(*waiting.pop(table), batch_size, pool)
                    if time.monotonic() - flushed > FLUSH_SECONDS:
                        self.flush()
                        flushed = time.monotonic()
                for rest in waiting.values():
                    self._fill_one(*rest, batch_size, pool)
        finally:
            self.flush()

    def flush(self) -> None:
        """Write computed rows to disk."""
        for table in (self._pictures, *self._tables.values()):
            table.flush()

    def _fill_one(self, encoding, jobs, batch_size, pool):
        def made(job):
            try:
                return job[1].make()
            except ImageError as error:
                log.warning("%s", error)
                return None

        inputs = list(pool.map(made, jobs))
        jobs = [job for job, value in zip(jobs, inputs, strict=True) if value is not None]
        inputs = [value for value in inputs if value is not None]
        if not inputs:
            return
        # Always the same number of rows: one program.
        inputs += [inputs[-1]] * (batch_size - len(inputs))
        made = self._encoders[encoding.kind](np.stack(inputs))
        for i, (key, entry) in enumerate(jobs):
            row = {name: array[i] for name, array in made.items()}
            if _if_finite(row) is None:
                # One at a time: an input that is not finite may spoil its whole batch.
                alone = self._encoders[encoding.kind](np.stack([inputs[i]] * batch_size))
                row = {name: array[0] for name, array in alone.items()}
            if _if_finite(row) is None:
                self._not_finite_error(encoding, key, entry)
            else:
                self._table(encoding, entry.shape).put(key, row)
        self.counts[f"{encoding.kind} computed"] += len(jobs)

    def _store(self, rows, key, row):
        """A full disk must not end training, because the rows can be recomputed."""
        try:
            rows.put(key, row)
        except OSError as error:
            if not is_full(error):
                raise
            log.warning("%s: no space left on the device; rows are forgotten", rows.folder)
            rows.discard()

    def _table(self, encoding: Encoding, shape) -> FeatureTable:
        with self._opening:
            if (encoding.kind, shape) not in self._tables:
                name = self._encoders[encoding.kind].name + encoding.suffix(shape)
                table = FeatureTable(self.folder / name, self.row_spec(encoding, shape))
                self._tables[encoding.kind, shape] = table
            return self._tables[encoding.kind, shape]


class _Encoder:
    """One encoding's networks on one device; ``name`` identifies their weights."""

    def __init__(self, config, model, encoding: Encoding):
        digest = model_digest(config, model, encoding).hex()[:16]
        self.name = f"{encoding.kind}-{digest}"
        encode, self._state = open_encoder(model, encoding)
        self._encode, self._dtype, self._local = jax.jit(encode), encoding.dtype, None
        self.dtype = str(config[encoding.precision])
        self.row_spec = functools.partial(row_spec, model, encoding)

    def __call__(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """[b, ...] to the encoding's output, as NumPy arrays."""
        if self._local is None:
            self._local = jax.tree.map(local_array, self._state)
        return jax.device_get(self._encode(self._local, jnp.asarray(inputs, self._dtype)))
