"""What frozen networks make of the data, computed once and kept in ``config.cache``.

    python -m persongen_jax.features --config configs/photomaker_bg.py --config.cache=DIR
    python -m persongen_jax.features --config ... --worker 3 --workers 8

goes over the records and stores, as far as the weights that they depend on are frozen under the
config's table of what is trained: the VAE's moments of every target, the image tower's features of
every reference crop, both text towers' states of every row of token ids that the loader can make.
It can be stopped and started again, and several may share the work. docs/cache.md says more.

The trainer takes what is there; what is not, it computes when it is first needed and stores it.
"""

import functools
import itertools
import json
import logging
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from data_pipeline.cache import KEY_BYTES, FeatureTable, digest_of
from data_pipeline.schema import MAX_REFERENCES, example_spec, unflatten
from data_pipeline.transforms import ImageError
from persongen_jax.full_disk import is_full
from persongen_jax.methods.base import one_class_token
from persongen_jax.partition import assign_groups, leaf_paths

log = logging.getLogger(__name__)

MOMENTS, REFERENCES, TEXT = KINDS = ("moments", "references", "text")
FLUSH_SECONDS = 120  # of a pass' work are lost at most, when it is killed
VERSION = 1  # of how pictures and prompts are prepared and rows are laid out; part of every key


# ---- What can be cached, and its shapes --------------------------------------------------------


def cached_kinds(config, model, method) -> dict[str, str]:
    """Kind to "" where it can be cached, else to why it is not; in the order of ``KINDS``.

    Raises:
        ValueError: a name in ``config.cache_kinds`` that is none of ``KINDS``.
    """
    unknown = sorted(set(config.cache_kinds) - set(KINDS))
    if unknown:
        raise ValueError(f"config.cache_kinds: {', '.join(unknown)} is unknown; use {KINDS}")
    trained = assign_groups(leaf_paths(model), config.trainable or method.groups)
    reasons = {}
    for kind in KINDS:
        roots = depends_on(kind, method)
        moving = [path for path in trained if path.startswith(roots)]
        if kind not in config.cache_kinds:
            reasons[kind] = "config.cache_kinds does not name it"
        else:
            reasons[kind] = f"{len(moving)} of its arrays are trained" if moving else ""
    return reasons


def depends_on(kind: str, method) -> tuple[str, ...]:
    """Beginnings of the paths of all parameters that a kind is computed from."""
    return {
        MOMENTS: ("vae/encoder/", "vae/quant_conv/"),
        REFERENCES: (f"{method.image_tower}/",),
        TEXT: ("text_encoder/", "text_encoder_2/"),
    }[kind]


def encode_moments(model, method, pixel_values):
    """Pictures [b, h, w, 3] to {"moments": [b, h/8, w/8, 2c]}: mean and logvar."""
    return {"moments": jnp.concatenate(model.vae.encode(pixel_values), axis=-1)}


def encode_references(model, method, id_pixel_values):
    """Face crops [b, s, s, 3] to {"features": [b, ...]}."""
    return {"features": method.encode_references(model, id_pixel_values[:, None])[:, 0]}


def encode_text(model, method, input_ids):
    """Token ids [b, 2, n] to {"states": [b, n, d], "pooled": [b, p]}."""
    states, pooled = model.encode_prompt(input_ids)
    return {"states": states, "pooled": pooled}


ENCODERS = {MOMENTS: encode_moments, REFERENCES: encode_references, TEXT: encode_text}


def row_specs(model, method, kind: str, input_shape, dtype) -> dict:
    """Name to (shape, dtype) of what ENCODERS[kind] makes of one input; nothing is computed."""
    encode, state = open_encoder(model, method, kind)
    made = jax.eval_shape(encode, state, jax.ShapeDtypeStruct((1, *input_shape), dtype))
    return {name: (a.shape[1:], np.dtype(a.dtype)) for name, a in made.items()}


def open_encoder(model, method, kind: str):
    """(encode, state): ENCODERS[kind] as a function of (state, inputs), without the UNet."""
    view = model.conditioner()
    if kind == MOMENTS:
        view = nnx.Module()
        view.vae = model.vae
    graphdef, state = nnx.split(view)

    def encode(state, inputs):
        return ENCODERS[kind](nnx.merge(graphdef, state), method, inputs)

    return encode, state


def cached_spec(plain: dict, rows: dict) -> dict:
    """An example's spec with cached kinds: ``plain`` is example_spec's, ``rows`` kind to specs."""
    spec = dict(plain)
    if MOMENTS in rows:
        del spec["pixel_values"]
        spec["moments"] = rows[MOMENTS]["moments"]
    if REFERENCES in rows:
        del spec["id_pixel_values"]
        shape, dtype = rows[REFERENCES]["features"]
        spec["id_features"] = ((MAX_REFERENCES, *shape), dtype)
    if TEXT in rows:
        streams = [name.removeprefix("input_ids/") for name in plain if "input_ids/" in name]
        for stream in streams:
            del spec[f"input_ids/{stream}"]
            spec[f"text_states/{stream}"] = rows[TEXT]["states"]
        spec["text_states/empty"] = rows[TEXT]["states"]
        spec["text_states/pooled"] = spec["text_states/empty_pooled"] = rows[TEXT]["pooled"]
    return spec


def abstract_batch(config, model, method, cached: bool, shape: tuple[int, int] | None = None):
    """The batch of a config as ShapeDtypeStructs, over all devices: [config.batch_size, ...] each.

    Args:
        model: StableDiffusionXL with the method attached, in arrays or ShapeDtypeStructs.
        cached: with cached features of every kind that the config's table leaves frozen; with
            pictures and token ids otherwise.
        shape: (height, width) of the target in pixels, for one of several buckets; default:
            squares of ``config.size``.
    """
    shape = shape or (config.size, config.size)
    id_size = method.reference_size(model)
    length = model.text_encoder.config["max_position_embeddings"]
    sizes = {"size": shape, "id_size": id_size, "text_length": length}
    spec = example_spec(**sizes, streams=method.streams)
    if cached:
        reasons = cached_kinds(config, model, method)
        kinds = [kind for kind in KINDS if not reasons[kind]]
        inputs = input_specs(shape, id_size, length)
        rows = {kind: row_specs(model, method, kind, *inputs[kind]) for kind in kinds}
        spec = cached_spec(spec, rows)
    b = config.batch_size
    return unflatten({n: jax.ShapeDtypeStruct((b, *s), d) for n, (s, d) in spec.items()})


def input_specs(shape: tuple[int, int], id_size: int, length: int) -> dict:
    """Kind to shape and dtype of what its encoder reads of one example."""
    return {
        MOMENTS: ((*shape, 3), np.float32),
        REFERENCES: ((id_size, id_size, 3), np.float32),
        TEXT: ((2, length), np.int32),
    }


# ---- The cache of a run ------------------------------------------------------------------------


class Picture(NamedTuple):
    """A decoded picture: a digest of its pixels, and (height, width)."""

    digest: bytes
    size: tuple[int, int]


class Features:
    """Cached features of a config's data; safe to use from several threads.

    What is not there is computed, one row at a time, and stored; :meth:`fill` does many at once.

    Args:
        config: its ``cache`` is the folder, ``cache_kinds`` what is cached of what can be.
        model: StableDiffusionXL with the method attached, and all its weights.
        empty_ids: [2, 77] int32, the empty prompt's token ids.
        stamps: sources.picture_stamps of the data.

    Attributes:
        kinds: those of ``KINDS`` that are cached.
        counts: how many rows were computed and how many read, by kind; and what was not stored.
    """

    def __init__(self, config, model, method, empty_ids, stamps: Callable[[str], str | None]):
        self._reasons = cached_kinds(config, model, method)
        self.kinds = tuple(kind for kind in KINDS if not self._reasons[kind])
        self.method, self.folder = method, Path(config.cache)
        self.counts = Counter()
        self._empty_ids, self._stamps = np.asarray(empty_ids), stamps
        self._lock, self._opening = threading.Lock(), threading.Lock()
        self._tables, self._rows, self._known = {}, {}, {}
        self._encoders = {k: _Encoder(config, model, method, k) for k in self.kinds}
        spec = {"digest": ((KEY_BYTES,), np.uint8), "size": ((2,), np.int32)}
        self._pictures = FeatureTable(self.folder / f"pictures-{VERSION}", spec)

    def __str__(self):
        said = [f"{kind} in {self._encoders[kind].name}" for kind in self.kinds]
        said += [f"{kind} not cached, as {why}" for kind, why in self._reasons.items() if why]
        return f"{self.folder}: {'; '.join(said)}"

    def used(self) -> str:
        """The counts, for the log."""
        return ", ".join(f"{what}: {n:,}" for what, n in sorted(self.counts.items())) or "none used"

    def spec(self, plain: dict, shape: tuple[int, int]) -> dict:
        """example_spec's ``plain`` for targets of (height, width), with the cached kinds."""
        id_shape = plain["id_pixel_values"][0][1:]
        sizes = {MOMENTS: (*shape, 3), REFERENCES: id_shape, TEXT: self._empty_ids.shape}
        return cached_spec(plain, {kind: self._row_spec(kind, sizes[kind]) for kind in self.kinds})

    def picture(self, name: str, decode: Callable[[], np.ndarray]) -> Picture:
        """Digest and size of a picture; it is decoded only if its file was never seen."""
        if name in self._known:
            return self._known[name]
        stamp = self._stamps(name)
        key = None if stamp is None else digest_of("picture", stamp)
        row = None if key is None else self._pictures.get(key)
        if row is None:
            image = decode()
            digest = np.frombuffer(digest_of(image), np.uint8)
            row = {"digest": digest, "size": np.array(image.shape[:2], np.int32)}
            if key is not None:
                self._store(self._pictures, key, row)
        picture = Picture(row["digest"].tobytes(), tuple(map(int, row["size"])))
        self._known[name] = picture
        return picture

    def moments(self, picture: Picture, crop, pixels) -> np.ndarray:
        """[h/8, w/8, 2c] of a target crop; ``pixels`` makes [h, w, 3] in [-1, 1] if need be."""
        return self._get(*self.moments_job(picture, crop, pixels), store=crop.certain)["moments"]

    def moments_job(self, picture: Picture, crop, pixels):
        height, width = crop.size
        place = (picture.digest, *crop.resized, crop.top, crop.left, height, width)
        return (MOMENTS, (height, width, 3)), digest_of(VERSION, MOMENTS, *place), pixels

    def reference(self, picture: Picture, face_box, id_size: int, pixels) -> np.ndarray:
        """A reference's features; ``pixels`` makes [s, s, 3] normalised for CLIP if need be."""
        return self._get(*self.reference_job(picture, face_box, id_size, pixels))["features"]

    def reference_job(self, picture: Picture, face_box, id_size: int, pixels):
        box = face_box and tuple(map(float, face_box))
        key = digest_of(VERSION, REFERENCES, picture.digest, box, id_size)
        return (REFERENCES, (id_size, id_size, 3)), key, pixels

    def text_states(self, input_ids: dict, class_tokens_mask) -> dict[str, np.ndarray]:
        """A batch's "text_states" for one example: ids [2, 77] of each stream, mask [77]."""
        empty, text = (
            self._get(*self.text_job(ids, mask))
            for ids, mask in ((self._empty_ids, None), (input_ids["text"], class_tokens_mask))
        )
        states = {"text": text["states"], "pooled": text["pooled"]}
        for stream, ids in input_ids.items():
            if stream != "text":
                states[stream] = self._get(*self.text_job(ids))["states"]
        return {**states, "empty": empty["states"], "empty_pooled": empty["pooled"]}

    def text_job(self, ids, class_tokens_mask=None):
        if class_tokens_mask is not None and not self.method.needs_trigger:
            ids = one_class_token(ids[None], class_tokens_mask[None])[0]
        return (TEXT, ids.shape), digest_of(VERSION, TEXT, ids), lambda: ids

    def empty_job(self):
        """text_job of the empty prompt."""
        return self.text_job(self._empty_ids)

    def fill(self, jobs, batch_size: int = 16, threads: int = 8) -> None:
        """Computes and stores what is missing of ``jobs``, an iterable of lists of jobs."""
        waiting, promised = {}, set()
        flushed = time.monotonic()
        try:
            with ThreadPoolExecutor(threads) as pool:
                for table, key, make in itertools.chain.from_iterable(jobs):
                    if key in self._table(table) or (table, key) in promised:
                        continue
                    promised.add((table, key))
                    waiting.setdefault(table, []).append((key, make))
                    if len(waiting[table]) == batch_size:
                        self._fill_one(table, waiting.pop(table), batch_size, pool)
                    if time.monotonic() - flushed > FLUSH_SECONDS:
                        self.flush()
                        flushed = time.monotonic()
                for table, rest in waiting.items():
                    self._fill_one(table, rest, batch_size, pool)
        finally:
            self.flush()

    def flush(self) -> None:
        """Puts on disk what was computed."""
        for table in (self._pictures, *self._tables.values()):
            table.flush()

    def _fill_one(self, table, jobs, batch_size, pool):
        def made(job):
            try:
                return job[1]()
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
        made = self._encoders[table[0]](np.stack(inputs))
        for i, (key, _) in enumerate(jobs):
            self._table(table).put(key, {name: array[i] for name, array in made.items()})
        self.counts[f"{table[0]} computed"] += len(jobs)

    def _store(self, rows, key, row):
        """A training does not end because there is no room for what it could compute again."""
        try:
            rows.put(key, row)
        except OSError as error:
            if not is_full(error):
                raise
            log.warning("%s: no space left on the device; rows are forgotten", rows.folder)
            rows.forget()

    def _get(self, table, key: bytes, make, store: bool = True) -> dict[str, np.ndarray]:
        kind, rows = table[0], self._table(table)
        row = rows.get(key)
        if row is None:
            with self._lock:  # one at a time, and nothing twice
                row = rows.get(key)
                if row is None:
                    made = self._encoders[kind](np.asarray(make())[None])
                    row = {name: array[0] for name, array in made.items()}
                    self.counts[f"{kind} computed"] += 1
                    if store:
                        self._store(rows, key, row)
        else:
            self.counts[f"{kind} read"] += 1
        return row

    def _table(self, table) -> FeatureTable:
        with self._opening:
            if table not in self._tables:
                kind, shape = table
                name = self._encoders[kind].name
                if kind == MOMENTS:
                    name += f"-{shape[1]}x{shape[0]}"
                self._tables[table] = FeatureTable(self.folder / name, self._row_spec(kind, shape))
            return self._tables[table]

    def _row_spec(self, kind: str, shape) -> dict:
        if (kind, shape) not in self._rows:
            self._rows[kind, shape] = self._encoders[kind].row_spec(shape)
        return self._rows[kind, shape]


class _Encoder:
    """One kind's networks on one device; ``name`` tells of their weights."""

    def __init__(self, config, model, method, kind: str):
        self.name = f"{kind}-{_model_digest(config, model, method, kind).hex()[:16]}"
        encode, self._state = open_encoder(model, method, kind)
        self._encode = jax.jit(encode)
        self._dtype = np.int32 if kind == TEXT else np.float32
        self._local = None
        self.row_spec = functools.partial(row_specs, model, method, kind, dtype=self._dtype)

    def __call__(self, inputs: np.ndarray) -> dict[str, np.ndarray]:
        """[b, ...] to what ENCODERS gives, in NumPy's arrays."""
        if self._local is None:
            self._local = jax.tree.map(_local, self._state)
        return jax.device_get(self._encode(self._local, jnp.asarray(inputs, self._dtype)))


def _local(array):
    """The array on this process' first device, whatever devices it lies on.

    An offloaded one (offload.py) stays on the host, so that it is on the device for one call only.
    """
    if isinstance(array, np.ndarray):
        return array
    if len(array.sharding.device_set) == 1:
        return array
    if array.is_fully_replicated:
        return array.addressable_data(0)
    if not array.is_fully_addressable:
        raise ValueError(
            "config.cache: the frozen weights are divided among processes (config.shard_frozen), "
            "where no single one can compute features; give --config.shard_frozen=False"
        )
    return jax.device_put(np.asarray(array), jax.local_devices()[0])


def _model_digest(config, model, method, kind: str) -> bytes:
    """Of everything but its input that an encoder's result depends on."""
    roots = depends_on(kind, method)
    parts = [VERSION, kind, str(config.vae_dtype if kind == MOMENTS else config.dtype)]
    for owner in sorted({root.split("/")[0] for root in roots}):
        parts += _configs(getattr(model, owner))
    if kind == REFERENCES:
        reads = getattr(getattr(model, "image_proj", None), "reads", "")
        parts += [type(method).encode_references.__qualname__, reads]
    for path, leaf in sorted(leaf_paths(model).items()):
        if path.startswith(roots):
            parts += [path, np.asarray(_local(leaf.get_value()))]
    return digest_of(*parts)


def _configs(module) -> list[str]:
    """Of the module and its direct parts, those that have one."""
    parts = [module, *(part for part in vars(module).values() if isinstance(part, nnx.Module))]
    return [json.dumps(p.config.to_dict(), sort_keys=True) for p in parts if hasattr(p, "config")]


# ---- The pass over the records -----------------------------------------------------------------


def fill_cache(config, worker: int = 0, workers: int = 1, batch_size: int = 16) -> Features:
    """Computes and stores what the config's examples need: of every ``workers``-th record.

    Raises:
        ValueError: the config has no ``cache``, or what the trainer would refuse.
    """
    from tqdm import tqdm

    from persongen_jax import train

    if not config.cache:
        raise ValueError("config.cache is empty; give --config.cache=DIR, where features are kept")
    if not 0 <= worker < workers:
        raise ValueError(f"--worker {worker}: a number from 0 to --workers - 1 ({workers - 1})")
    base, method = train.build_model(config)
    source = train.open_batches(config, base, method, 0, alone=True).source
    rows = range(worker, len(source.records), workers)

    def jobs():
        if TEXT in source.features.kinds:
            yield [source.features.empty_job()]
        with ThreadPoolExecutor() as pool:
            # Some rows at a time: a picture that was never seen has to be decoded for its digest.
            for start in tqdm(range(0, len(rows), 64), unit="x64 records"):
                yield from pool.map(source.feature_jobs, rows[start : start + 64])

    source.features.fill(jobs(), batch_size)
    return source.features


def main(argv=None) -> int:
    from absl import flags
    from ml_collections import config_flags

    argv = sys.argv if argv is None else ["features", *argv]
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "an experiment", flag_values=values, sys_argv=argv
    )
    numbers = {
        "worker": (0, "which share of the records this process takes"),
        "workers": (1, "how many shares there are"),
        "batch": (16, "rows that are encoded at once"),
    }
    for name, (default, what) in numbers.items():
        flags.DEFINE_integer(name, default, what, lower_bound=0, flag_values=values)
    try:
        values(argv)
        if values.config is None:
            raise ValueError("--config is missing; try --config configs/mini/photomaker_bg.py")
        features = fill_cache(values.config, values.worker, values.workers, max(1, values.batch))
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: the config has no such key: {error.args[0]}")
    except (ValueError, TypeError, flags.Error, OSError, ImportError) as error:
        log.debug("", exc_info=True)
        sys.exit(f"error: {error}")
    print(features.used())
    return 0


if __name__ == "__main__":
    sys.exit(main())
