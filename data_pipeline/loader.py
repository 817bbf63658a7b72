"""From records to batches, with and without TensorFlow, bit for bit the same.

Example number n = 0, 1, 2, … is a function of (records, seed, n) and of nothing else. So a run
resumes by its step number alone, every process can make just its own rows, and examples can be made
in any order on any number of threads.
"""

import atexit
import functools
import hashlib
import itertools
import json
import logging
import os
import queue
import threading
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from data_pipeline.schema import (
    MAX_REFERENCES,
    PLAIN_STREAMS,
    Record,
    check_streams,
    example_spec,
    flatten,
    to_entry,
    unflatten,
)
from data_pipeline.transforms import (
    ImageError,
    clip_crop,
    clip_normalise,
    load_image,
    resize_and_crop,
    square_face_crop,
)
from persongen_jax.prompts import PromptError, Tokenizers, join_parts

log = logging.getLogger(__name__)

# Purposes of random numbers: draws for one must not repeat those for another.
ORDER, CONTENT = 0, 1

# Prompts whose token ids are kept, some 1.5 KB each.
KEPT_PROMPTS = 1 << 16


class ExampleSource:
    """Makes examples (data_pipeline/schema.py) by number; safe to call from several threads.

    ``size`` and ``id_size`` are the sides of target and reference crops in pixels. References are
    1 to 4 pictures of the target's identity, never its own file. ``streams`` names the prompts
    that go into ``input_ids``. ``read_image`` makes a record's ``image`` uint8 RGB [h, w, 3], or
    raises an ImageError (data_pipeline/sources.py). Pictures and reference crops are kept in memory
    up to ``cache_bytes``.

    ``skipped`` maps each file that could not be decoded to the reason; an example that needs
    one takes the next picture instead, the same one in every run.
    """

    def __init__(
        self,
        records: list[Record],
        tokenizers: Tokenizers,
        *,
        seed: int,
        size: int,
        id_size: int = 224,
        streams: tuple[str, ...] = ("text",),
        trigger_word: str = "img",
        random_crop: bool = True,
        read_image: Callable[[str], np.ndarray] = load_image,
        cache_bytes: int = 1 << 30,
    ):
        check_streams(streams)
        self.records, self.tokenizers, self.seed = list(records), tokenizers, seed
        self.size, self.id_size, self.streams = size, id_size, tuple(streams)
        self.trigger_word, self.random_crop = trigger_word, random_crop
        self.read_image = read_image
        self.skipped: dict[str, str] = {}
        self._of_identity: dict[str, dict[str, Record]] = defaultdict(dict)
        for record in self.records:
            self._of_identity[record.identity][record.image] = record
        self._kept: dict[tuple, np.ndarray] = {}
        self._free_bytes = cache_bytes
        self._lock = threading.Lock()
        self._order = functools.lru_cache(maxsize=2)(self._shuffle)
        self._tokens = functools.lru_cache(KEPT_PROMPTS)(self._encode)
        self._check()

    @property
    def spec(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Shape and dtype of each array of an example, by flat name."""
        return example_spec(
            size=self.size,
            id_size=self.id_size,
            text_length=self.tokenizers.max_length,
            streams=self.streams,
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of what the records say, in their order; their pictures may have moved."""
        digest = hashlib.sha256()
        for record in self.records:
            entry = to_entry(record)
            del entry["image"]
            digest.update(json.dumps(entry, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    def example(self, n: int) -> dict:
        """Example number n. ImageError if not one target with a reference can be decoded."""
        for attempt in range(len(self.records)):
            epoch, place = divmod(n + attempt, len(self.records))
            target = self.records[self._order(epoch)[place]]
            rng = np.random.default_rng((self.seed, CONTENT, n, attempt))
            example = self._try_example(target, rng)
            if example is not None:
                return example
        first = next(iter(self.skipped.values()))
        raise ImageError(f"no target of {len(self.records)} has a reference; first cause: {first}")

    def _try_example(self, target: Record, rng: np.random.Generator) -> dict | None:
        image = self._image(target.image)
        if image is None:
            return None
        pixel_values, time_ids, face_box = resize_and_crop(
            image,
            target.face_box,
            self.size,
            rng if self.random_crop else None,
            original_size=target.original_size,
            original_crop=target.crop,
        )
        references = self._draw_references(target, rng)
        if not references:
            return None
        id_pixel_values = np.zeros((MAX_REFERENCES, self.id_size, self.id_size, 3), np.float32)
        for reference, place in zip(references, id_pixel_values, strict=False):
            clip_normalise(reference, out=place)
        ids, class_tokens_mask = self._tokens(self._caption(target), len(references))
        input_ids = {"text": ids}
        for stream in self.streams:
            if stream != "text":
                input_ids[stream] = self._tokens(getattr(target, stream))
        return {
            "pixel_values": pixel_values,
            "input_ids": input_ids,
            "class_tokens_mask": class_tokens_mask,
            "id_pixel_values": id_pixel_values,
            "id_mask": np.arange(MAX_REFERENCES) < len(references),
            "time_ids": time_ids,
            "face_box": face_box,
        }

    def _draw_references(self, target: Record, rng) -> list[np.ndarray]:
        """Crops of 1 to 4 other pictures of the identity; fewer if they do not decode."""
        everything = self._of_identity[target.identity].values()
        others = [record for record in everything if record.image != target.image]
        wanted = rng.integers(1, min(len(others), MAX_REFERENCES) + 1)
        drawn = []
        for i in rng.permutation(len(others)):
            crop = self._reference(others[i])
            if crop is not None:
                drawn.append(crop)
            if len(drawn) == wanted:
                break
        return drawn

    def _reference(self, record: Record) -> np.ndarray | None:
        """The face at CLIP's size, [id_size, id_size, 3] uint8; the whole picture without a box."""
        key = ("reference", record.image, record.face_box)
        if key in self._kept:
            return self._kept[key]
        image = self._image(record.image)
        if image is None:
            return None
        if record.face_box is not None:
            image = square_face_crop(image, record.face_box)
        return self._keep(key, np.ascontiguousarray(clip_crop(image, self.id_size)))

    def _caption(self, record: Record) -> str:
        """The caption, and behind it the parts that no stream of their own reads."""
        parts = (getattr(record, name) for name in PLAIN_STREAMS if name not in self.streams)
        return join_parts(record.caption, *parts)

    def _encode(self, prompt: str, references: int | None = None):
        """Ids and class_tokens_mask of a caption for so many references; else a plain text's ids.

        Read-only, because they are handed out again.
        """
        if references is None:
            ids = self.tokenizers.encode(prompt)
            ids.setflags(write=False)
            return ids
        ids, mask, _ = self.tokenizers.encode_with_trigger(prompt, references, self.trigger_word)
        ids.setflags(write=False)
        mask.setflags(write=False)
        return ids, mask

    def _shuffle(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng((self.seed, ORDER, epoch))
        return rng.permutation(len(self.records))

    def _image(self, name: str) -> np.ndarray | None:
        """The decoded picture, or None if it cannot be decoded."""
        if name in self.skipped:
            return None
        key = ("image", name)
        if key in self._kept:
            return self._kept[key]
        try:
            image = self.read_image(name)
        except ImageError as error:
            with self._lock:
                known = name in self.skipped
                self.skipped[name] = str(error)
            if not known:
                log.warning("picture %d that is passed over: %s", len(self.skipped), error)
            return None
        return self._keep(key, image)

    def _keep(self, key: tuple, array: np.ndarray) -> np.ndarray:
        with self._lock:
            # Nothing is ever thrown out: under shuffling, what is old is as likely to be next.
            if key not in self._kept and array.nbytes <= self._free_bytes:
                self._kept[key] = array
                self._free_bytes -= array.nbytes
        return array

    def _check(self) -> None:
        """Finds before the first step what would otherwise stop a run in its middle."""
        if not self.records:
            raise ValueError("no records to train on")
        others = {identity: len(images) - 1 for identity, images in self._of_identity.items()}
        lonely = sum(count < 1 for count in others.values())
        if lonely:
            raise ValueError(f"{lonely} identities have no second picture to serve as a reference")
        problems = []
        for record in self.records:
            most = min(MAX_REFERENCES, others[record.identity])
            try:
                self._tokens(self._caption(record), most)
            except PromptError as error:
                problems.append(f"{record.image}: {error}")
        if problems:
            shown = "\n  ".join(problems[:20])
            raise PromptError(f"{len(problems)} captions cannot be used:\n  {shown}")


class BatchStream:
    """An endless iterator over Batches; ``source`` knows which files were passed over.

    ``start_step`` is the step of the first batch. The position is nothing but a step, so that the
    loader is saved and restored exactly by three lines:

        state = stream.state()  # small and plain, for a checkpoint's JSON
        stream = batches(records, tokenizers, start_step=state["step"], ...)
        stream.check(state)
    """

    def __init__(self, iterator: Iterator[dict], source: ExampleSource, start_step, batch_size):
        self._iterator, self.source = iterator, source
        self.start_step, self._batch_size = start_step, batch_size
        self._step = start_step

    def __iter__(self):
        return self

    def __next__(self) -> dict:
        batch = next(self._iterator)
        self._step += 1
        return batch

    def state(self, step: int | None = None) -> dict:
        """Position and what it is a position in. ``step`` is of the batch to come next.

        Whoever reads ahead (prefetch_to_device) gives ``step``: how many batches were used.
        """
        return {
            "step": self._step if step is None else step,
            "seed": self.source.seed,
            "batch_size": self._batch_size,
            "records": self.source.fingerprint,
        }

    def check(self, state: dict) -> None:
        """ValueError if this stream does not go on where ``state`` was taken."""
        here = self.state(self.start_step)
        different = [
            f"{name} was {state.get(name)!r} and is {value!r}"
            for name, value in here.items()
            if value != state.get(name)
        ]
        if different:
            raise ValueError(
                f"the data do not go on where they were left: {'; '.join(different)}; give the "
                "data, seed and batch size of the checkpoint, or start a new run elsewhere"
            )


def batches(
    records: list[Record],
    tokenizers: Tokenizers,
    *,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int = 1,
    **source_options,
) -> BatchStream:
    """Batches of step ``start_step``, ``start_step`` + 1, …, made when they are asked for.

    ``batch_size`` counts the examples of all processes together; each process gets its own
    batch_size / process_count rows of them. ``source_options`` are ExampleSource's: ``seed`` and
    ``size`` have to be given. A batch is made in the calling thread, or by ``workers`` threads.
    """
    source = ExampleSource(records, tokenizers, **source_options)
    numbers = _Numbers(batch_size, start_step, process_index, process_count)

    def generate():
        with ThreadPoolExecutor(workers) as pool:
            each = map if workers == 1 else pool.map
            for first in itertools.count(0, numbers.rows):
                places = range(first, first + numbers.rows)
                rows = list(map(flatten, each(source.example, map(numbers.number, places))))
                yield unflatten(
                    {name: np.stack([row[name] for row in rows]) for name in source.spec}
                )

    return BatchStream(generate(), source, start_step, batch_size)


def tf_batches(
    records: list[Record],
    tokenizers: Tokenizers,
    *,
    batch_size: int,
    start_step: int = 0,
    process_index: int = 0,
    process_count: int = 1,
    workers: int | None = None,
    **source_options,
) -> BatchStream:
    """The same Batches as ``batches``, made ahead by tf.data on ``workers`` threads (all cores)."""
    source = ExampleSource(records, tokenizers, **source_options)
    numbers = _Numbers(batch_size, start_step, process_index, process_count)
    tf = _tensorflow()
    spec, failures = source.spec, []

    def make(i):
        try:
            example = flatten(source.example(numbers.number(int(i))))
        except Exception as error:
            failures.append(error)  # TensorFlow would hand on a text with a trace inside
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
    # TensorFlow's threads call Python. They have to end before the interpreter does, or it hangs.
    weakref.finalize(stream, running.clear)
    return stream


class _Numbers:
    """Which example stands in this process's i-th row, counted from ``start_step`` on."""

    def __init__(self, batch_size: int, start_step: int, process_index: int, process_count: int):
        if batch_size < 1 or batch_size % process_count:
            raise ValueError(
                f"batch_size {batch_size} cannot be shared out evenly to {process_count} processes"
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
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")  # unused here, and it says so twice
    try:
        import tensorflow as tf
    except ImportError as error:
        raise ImportError(
            "tf.data needs TensorFlow: pip install 'persongen_jax[data]', or use the in-memory "
            "loader, which needs none"
        ) from error
    # JAX owns the accelerator; TensorFlow would take its memory.
    for kind in ("GPU", "TPU"):
        try:
            tf.config.set_visible_devices([], kind)
        except RuntimeError as error:
            raise RuntimeError(
                f"TensorFlow already holds the {kind}s of this machine; start the loader before "
                "anything else uses TensorFlow"
            ) from error
    return tf


def prefetch_to_device(iterator: Iterator, put: Callable, depth: int = 2) -> Iterator:
    """Yields ``put(item)`` for each item, up to ``depth`` of them made ahead by a thread.

    What the thread raises is raised here, after the items before it. ``close()`` on the result,
    or dropping it, ends the thread.
    """
    ready = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def hand_over(kind, value) -> bool:
        while not stop.is_set():
            try:
                ready.put((kind, value), timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work():
        try:
            for item in iterator:
                if not hand_over("item", put(item)):
                    return
            hand_over("end", None)
        except BaseException as error:  # the consumer is to see it, whatever it is
            hand_over("error", error)

    thread = threading.Thread(target=work, name="prefetch_to_device", daemon=True)
    thread.start()

    def shut_down():
        stop.set()
        thread.join(timeout=10)

    atexit.register(shut_down)  # a thread still at work would hold up the interpreter's end
    try:
        while True:
            kind, value = ready.get()
            if kind == "end":
                return
            if kind == "error":
                raise value
            yield value
    finally:
        atexit.unregister(shut_down)
        shut_down()
