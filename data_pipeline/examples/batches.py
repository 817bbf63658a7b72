"""Streams of batches from indexed examples, with TensorFlow or without it, bit for bit the same."""

import functools
import hashlib
import itertools
import logging
import os
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, Self

import numpy as np

from data_pipeline.examples.fields import unflatten

log = logging.getLogger(__name__)


class Source(Protocol):
    """Provides examples by index for batches. ExampleSource is one, Arrays another."""

    seed: int

    @property
    def specs(self) -> list[dict]:
        """Flat name to (shape, dtype); one per possible shape of a batch."""

    @property
    def fingerprint(self) -> str:
        """Of the data, so that a resumed run notices other data."""

    def example(self, n: int) -> dict[str, np.ndarray]:
        """Example number n, flat; a function of only the source and ``n``."""


class BatchStream:
    """An endless iterator over batches, nested dicts of arrays [b, ...].

    ``start_step`` is the step of the first batch. The position is just a step, so three lines save
    and restore the loader exactly:

        state = stream.state()  # small and plain, for a checkpoint's JSON
        stream = batches(source, batch_size=..., start_step=state["step"])
        stream.check(state)
    """

    def __init__(self, iterator: Iterator[dict], source: Source, start_step: int, batch_size: int):
        buckets, own = getattr(source, "buckets", ()), getattr(source, "batch_size", batch_size)
        if buckets and own != batch_size:
            raise ValueError(
                f"batches of {batch_size} from a source with buckets whose batch_size is {own}: "
                "make them equal, so that all rows of a batch have one shape"
            )
        self._iterator, self.source = iterator, source
        self.start_step, self._batch_size = start_step, batch_size
        self._step = start_step

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> dict:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def state(self, step: int | None = None) -> dict:
        """The position and what it refers to. ``step`` is that of the next batch.

        A caller that reads ahead (prefetch_to_device) passes ``step``: the number of batches used.
        """
        state = {
            "step": self._step if step is None else step,
            "seed": self.source.seed,
            "batch_size": self._batch_size,
            "records": self.source.fingerprint,
        }
        buckets = getattr(self.source, "buckets", ())
        marks = getattr(self.source, "image_digests", "")
        if marks:
            state["pictures"] = marks
        if buckets:
            state["buckets"] = [f"{width}x{height}" for height, width in buckets]
        return state

    def pictures_of(self, step: int) -> list[str]:
        """The targets of the update that makes ``step``; [] if the source does not know them."""
        of_source = getattr(self.source, "pictures_of", lambda numbers: [])
        return of_source(range((step - 1) * self._batch_size, step * self._batch_size))

    def check(self, state: dict) -> None:
        """ValueError if this stream does not continue from ``state``.

        Warns if the records are the same but their images are not.
        """
        here, state = self.state(self.start_step), dict(state)
        here.pop("pictures", None)
        marks = state.pop("pictures", "")
        different = [
            f"{name} was {state.get(name)!r} and is {here.get(name)!r}"
            for name in here | state
            if here.get(name) != state.get(name)
        ]
        if different:
            raise ValueError(
                f"the data do not continue where they were left: {'; '.join(different)}; give the "
                "data, seed and batch size of the checkpoint, or start a new run elsewhere"
            )
        source: Any = self.source
        changed = source.pictures_changed(marks) if marks else []
        if changed:
            log.warning(
                "%d images have changed under the same names since the run stopped (%s%s): using "
                "the new ones; to continue as before, restore the old ones",
                len(changed),
                ", ".join(changed[:3]),
                ", …" if len(changed) > 3 else "",
            )

    def flush(self) -> None:
        """Write to disk what was computed on the way."""
        features = getattr(self.source, "features", None)
        if features:
            features.flush()

    def report(self) -> list[str]:
        """Remarks about the data at the end of a run, one line each."""
        features, lines = getattr(self.source, "features", None), []
        if features:
            lines.append(f"features: {features.summary()}")
        skipped = getattr(self.source, "skipped", None)
        if skipped:
            lines.append(f"images skipped because they do not decode: {len(skipped)}")
        return lines


def batches(
    source: Source,
    *,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
) -> BatchStream:
    """Batches of step ``start_step``, ``start_step`` + 1, …, made on demand.

    ``batch_size`` counts the examples of all processes together; each process gets its own
    batch_size / process_count rows of them. A batch is made in the calling thread, or by
    ``workers`` threads.
    """
    numbers = _RowIndex(batch_size, start_step, process_index, process_count)

    def generate():
        with ThreadPoolExecutor(workers) as pool:
            each = map if workers == 1 else pool.map
            for first in itertools.count(0, numbers.rows):
                places = range(first, first + numbers.rows)
                rows = list(each(source.example, map(numbers.number, places)))
                yield unflatten({name: np.stack([row[name] for row in rows]) for name in rows[0]})

    return BatchStream(generate(), source, start_step, batch_size)


def tf_batches(
    source: Source,
    *,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
) -> BatchStream:
    """The same batches as ``batches``, prefetched by tf.data on ``workers`` threads (all cores)."""
    numbers = _RowIndex(batch_size, start_step, process_index, process_count)
    tf = _tensorflow()
    spec, failures = _joint_spec(source.specs), []

    def make(i):
        try:
            example = source.example(numbers.number(int(i)))
        except Exception as error:
            failures.append(error)  # TensorFlow would raise a text with a traceback inside
            raise
        return [example[name] for name in spec]

    def make_tensors(i):
        arrays = tf.numpy_function(make, [i], [tf.as_dtype(dtype) for _, dtype in spec.values()])
        for array, (shape, _) in zip(arrays, spec.values(), strict=True):
            array.set_shape(shape)
        return dict(zip(spec, arrays, strict=True))

    dataset = (
        tf.data.Dataset.range(np.iinfo(np.int64).max)
        .map(make_tensors, num_parallel_calls=workers or tf.data.AUTOTUNE, deterministic=True)
        .batch(numbers.rows, drop_remainder=True)
        .prefetch(2)
    )
    if workers:
        options = tf.data.Options()
        options.threading.private_threadpool_size = workers
        dataset = dataset.with_options(options)

    running = [dataset.as_numpy_iterator()]

    def generate():
        while running:
            try:
                flat = next(running[0])
            except tf.errors.OpError:
                if failures:
                    raise failures[0] from None
                raise
            yield unflatten({name: flat[name] for name in spec})

    stream = BatchStream(generate(), source, start_step, batch_size)
    # TensorFlow's threads call Python. They must end before the interpreter does, or it hangs.
    weakref.finalize(stream, running.clear)
    return stream


def _joint_spec(specs: list[dict]) -> dict[str, tuple[tuple[int | None, ...], np.dtype]]:
    """One spec for all shapes of a source; None is a length that differs between them."""
    first, *others = specs

    def agreed(name, axis, length):
        same = all(spec[name][0][axis] == length for spec in others)
        return length if same else None

    return {
        name: (tuple(agreed(name, i, n) for i, n in enumerate(shape)), dtype)
        for name, (shape, dtype) in first.items()
    }


LOADERS = {"tf_data": tf_batches, "memory": batches}


def open_loader(name: str) -> Callable[..., BatchStream]:
    """``batches`` or ``tf_batches`` by the name in ``config.loader``; ValueError for others."""
    if name not in LOADERS:
        raise ValueError(f"config.loader={name!r}: use {' or '.join(LOADERS)}")
    return LOADERS[name]


class Arrays:
    """A data set in memory as a Source: example n is a row, shuffled anew in each epoch.

    Args:
        arrays: flat name to [n, ...]; at least one.
        seed: of the order.
    """

    def __init__(self, arrays: dict[str, np.ndarray], *, seed: int):
        sizes = {len(array) for array in arrays.values()}
        if len(sizes) != 1 or 0 in sizes:
            raise ValueError(f"arrays of {sorted(sizes)} rows: all need the same number, above 0")
        self.arrays, self.seed, (self.rows,) = dict(arrays), seed, sizes
        self.specs = [{name: (a.shape[1:], a.dtype) for name, a in self.arrays.items()}]
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)

    @functools.cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
            digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:16]

    def example(self, n: int) -> dict[str, np.ndarray]:
        epoch, place = divmod(n, self.rows)
        row = self._order(epoch)[place]
        return {name: array[row] for name, array in self.arrays.items()}

    def _shuffle(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self.seed, epoch)).permutation(self.rows)


class _RowIndex:
    """Which example is in this process' i-th row, counted from ``start_step`` on."""

    def __init__(self, batch_size: int, start_step: int, process_index: int, process_count: int):
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size {batch_size} cannot be split evenly over {process_count} processes"
            )
        if not 0 <= process_index < process_count:
            raise ValueError(f"process_index {process_index} is not below {process_count}")
        self.rows = batch_size // process_count
        self._batch_size = batch_size
        self._first = start_step * batch_size + process_index * self.rows

    def number(self, i: int) -> int:
        step, row = divmod(i, self.rows)
        return self._first + step * self._batch_size + row


def _tensorflow():
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and it logs that twice
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "tf.data needs TensorFlow: pip install 'persongen_jax[data]', or use the in-memory "
            "loader, which needs none"
        ) from error
    # JAX owns the accelerator; TensorFlow would allocate its memory.
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError as error:
            raise RuntimeError(
                f"TensorFlow already holds the {kind}s of this machine; start the loader before "
                "anything else uses TensorFlow"
            ) from error
    return tf
