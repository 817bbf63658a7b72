"""Initial weights of a method's parts: an ID encoder on CLIP's weights, and ``config.start_from``.

``start_from`` names a PhotoMaker file, or the working directory of an earlier run of this project
(staged training). That run may itself have started from another, and the first of them from a file.
Checkpoints hold only what was trained, so all of them are read again whenever a model is assembled.
"""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.experimental import multihost_utils
from ml_collections import ConfigDict

from persongen_jax.methods.base import Model
from persongen_jax.models.encoders.id_encoder import PhotoMakerIDEncoder
from persongen_jax.models.lora import lora_layers
from persongen_jax.parallel import distributed
from persongen_jax.settings import check_version
from persongen_jax.training.partition import leaf_paths, set_leaves
from persongen_jax.weights.errors import KeyMismatch, MissingFile, UnsupportedAdapter
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.clip import load_vision_tower
from persongen_jax.weights.licences import say_terms_of


def add_id_encoder(model: Model, config: ConfigDict, rngs: nnx.Rngs) -> None:
    """Adds PhotoMaker's whole ID encoder, so that its files fit; unused parts stay frozen.

    Reads config.base, id_encoder (a CLIP directory; default: ``<base>/image_encoder``), id_gain
    and dtype.
    """
    towers = model.text_encoder, model.text_encoder_2
    widths = towers[0].config["hidden_size"], towers[1].config["hidden_size"]
    folder = config.id_encoder or image_encoder_of(config)
    dtype = jnp.dtype(config.dtype)
    tower, projection = load_vision_tower(folder, dtype=dtype)
    encoder = PhotoMakerIDEncoder(tower, widths, dtype=dtype, rngs=rngs)
    if projection is not None and projection.shape == encoder.visual_projection.kernel.shape:
        # PhotoMaker starts its first head from CLIP's own.
        encoder.visual_projection.kernel.set_value(projection.astype(jnp.float32))
    for head in (encoder.visual_projection, encoder.visual_projection_2):
        head.kernel.set_value(head.kernel.get_value() * config.get("id_gain", 1.0))
    model.id_encoder = encoder


def image_encoder_of(config: ConfigDict) -> Path:
    """The base's image tower: next to its configs, also if the base itself is a single file."""
    return Path(config.get("base_config") or config.base) / "image_encoder"


class Origin(NamedTuple):
    """The result of :func:`find_origin`.

    source: config.start_from; file: the weight file at the very beginning (or a component's folder
    in diffusers' format), or ""; trained: arrays by path from the runs since then; if several runs
    trained a path, the last one's.
    """

    source: str
    file: str
    trained: dict


def is_abstract(model: Model) -> bool:
    """Whether only shapes are made, so that no file has been read."""
    return isinstance(jax.tree.leaves(nnx.state(model.unet))[0], jax.core.Tracer)


def find_origin(config: ConfigDict) -> Origin:
    """Follow ``config.start_from`` to its beginning; all fields are empty if that is "".

    Raises:
        MissingFile: it, or the start of a run on the way, does not exist.
        FileNotFoundError: a run on the way has no checkpoint, or lacks the needed one.
        ValueError: the runs started from each other.
    """
    from persongen_jax.parallel.sharding import make_mesh, replicated
    from persongen_jax.training.trained import load_trained

    first = source = config.get("start_from", "")
    step, whose, trained, seen = config.get("start_from_step", 0), "", {}, set()
    while source and not _is_weights(Path(source)):
        if not _run_folder(source).is_dir():
            raise MissingFile(
                f"{whose}config.start_from={source}: no such file or folder. It must be "
                "a weight file such as photomaker-v1.bin, or the --workdir of an earlier run: "
                "train that first, give another path, or restore what was there"
            )
        if Path(source).resolve() in seen:
            raise ValueError(
                f"{whose}config.start_from={source}: these runs started from each other, so that "
                "their initial weights are lost; give another --config.start_from"
            )
        seen.add(Path(source).resolve())
        try:
            arrays, saved = load_trained(source, replicated(make_mesh()), step or None)
            check_version(saved, source)
        except FileNotFoundError as error:
            if not step:
                raise
            raise FileNotFoundError(
                f"{whose}config.start_from_step={step}: {error}. A run needs the checkpoint that "
                "it started from for its frozen weights: restore a copy of it"
            ) from error
        trained = {**arrays, **trained}
        whose = f"{source}: "
        source, step = saved.get("start_from", ""), saved.get("start_from_step", 0)
    return Origin(str(first), str(source), trained)


def _is_weights(path: Path) -> bool:
    """Whether it is weights and not a run: a file, or a network's folder in diffusers' format."""
    if not (path / "config.json").is_file():
        return path.is_file()
    return "_class_name" in read_config(path)


def _run_folder(source: str) -> Path:
    """The working directory of a run, which its RUN/checkpoints/best may name too."""
    from persongen_jax.training.checkpoint import split_step

    return split_step(source)[0]


def load_start(model: Model, config: ConfigDict) -> Origin:
    """Fill the existing parts; call it before others are made as copies of them.

    The ID encoder comes from the file, and so does LoRA if the model has it; then come the weights
    that runs have trained. :func:`load_remaining` fills in parts that do not exist yet.

    Raises:
        WeightsError: a file of another kind or, if the config itself names it, of another rank.
        FileNotFoundError, ValueError: see :func:`find_origin`.
    """
    from persongen_jax.weights.formats.photomaker import load_photomaker_into

    origin = find_origin(config)
    fitting, _, misshapen = _split_by_fit(model, origin)
    if origin.file:
        # A run may have another rank than the file; its LoRA then starts from scratch.
        direct = origin.file == origin.source
        if lora_layers(model.unet) and (direct or _has_rank(origin, config.rank, misshapen)):
            load_photomaker_into(model, origin.file)
        else:
            _load_id_encoder(model, origin.file)
    set_leaves(model, fitting)
    return origin


def load_remaining(model: Model, origin: Origin) -> None:
    """Fill in all weights that runs have trained, once all parts exist; skips LoRA of another rank.

    Says, once, the terms of the file at the beginning.

    Raises:
        KeyMismatch: a run trained parts that this model does not have.
    """
    fitting, unknown, misshapen = _split_by_fit(model, origin)
    others = {path: shapes for path, shapes in misshapen.items() if "/lora/" not in path}
    if unknown or others:
        remedy = "It trained another method, or on another base."
        raise KeyMismatch(origin.source, (), unknown, misshapen, remedy)
    set_leaves(model, fitting)
    if origin.file and not is_abstract(model):
        say_terms_of(origin.file)


def _split_by_fit(model, origin):
    """(arrays that fit the model, paths that it lacks, path to (shape, the model's shape))."""
    leaves = leaf_paths(model)
    fitting, unknown, misshapen = {}, [], {}
    for path, array in origin.trained.items():
        if path not in leaves:
            unknown.append(path)
        elif array.shape == leaves[path].shape:
            fitting[path] = array
        else:
            misshapen[path] = tuple(array.shape), tuple(leaves[path].shape)
    return fitting, sorted(unknown), misshapen


def _has_rank(origin, rank: int, misshapen) -> bool:
    """Whether the file's LoRA fits, and no run since then has had another rank."""
    from persongen_jax.weights.formats.photomaker import read_photomaker

    with read_photomaker(origin.file) as file:
        return file.rank == rank and not any("/lora/" in path for path in misshapen)


def _version(model) -> int:
    """Of the PhotoMaker whose ID encoder the model has."""
    return 2 if hasattr(model.id_encoder, "qformer_perceiver") else 1


def _load_id_encoder(model, path):
    """The ID encoder of a PhotoMaker file, without its LoRA (thesis, 5.2.1)."""
    from persongen_jax.weights.formats.photomaker import read_photomaker
    from persongen_jax.weights.slots import fill_slots, module_slots

    with read_photomaker(path) as file:
        version = _version(model)
        if file.version != version:
            raise UnsupportedAdapter(
                f"{file.describe()}: is PhotoMaker v{file.version}; this method starts from "
                f"photomaker-v{version}.bin"
            )
        fill_slots(module_slots(model.id_encoder, ""), file.id_encoder)


def pin_start_step(config: ConfigDict, before: dict | None) -> ConfigDict:
    """The config with ``start_from_step`` fixed, as the earlier run may be trained further.

    With several processes the first one looks; all of them must call it.

    Args:
        before: the config in the run's own checkpoint, whose step is kept; None when the run
            begins, which uses the newest.
    """
    source, step = config.get("start_from", ""), config.get("start_from_step", 0)
    if step or not source:
        return config
    if before is not None:
        step = before.get("start_from_step", 0)
    elif _run_folder(source).is_dir() and not _is_weights(Path(source)):
        step = _newest_step(source)
    config = config.copy_and_resolve_references()
    config.start_from_step = step
    return config


def _newest_step(workdir) -> int:
    from persongen_jax.training.checkpoint import find_run

    step = find_run(workdir)[1] if distributed.is_first() else 0
    if jax.process_count() > 1:
        step = int(multihost_utils.broadcast_one_to_all(np.int64(step)))
    return step
