"""Train an identity method. Read from top to bottom, in the order in which it runs.

    python -m persongen_jax.train --config configs/mini/photomaker_bg.py
    python -m persongen_jax.train --config configs/base.py --config.base=/path/to/sdxl --dry_run

Any key of the config can be overridden by --config.KEY=VALUE. The same command again continues
where the last checkpoint was made.
"""

import functools
import json
import logging
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from data_pipeline.buckets import bucket_shapes, check_shapes
from data_pipeline.loader import batches, prefetch_to_device, tf_batches
from data_pipeline.sources import open_records, picture_stamps
from persongen_jax import diffusion, distributed, flop_count
from persongen_jax.bad_steps import BadSteps
from persongen_jax.checkpoint import Checkpoints
from persongen_jax.command_flags import parse_flags
from persongen_jax.features import Features
from persongen_jax.full_disk import unless_full
from persongen_jax.methods import get_method
from persongen_jax.methods.start import settle_step
from persongen_jax.offload import offload, put_read
from persongen_jax.partition import make_optimizer, merge_model, split_model, summary
from persongen_jax.settings import check_same_run
from persongen_jax.sharding import (
    frozen_shardings,
    load_shardings,
    make_mesh,
    put,
    put_batch,
    replicated,
    state_shardings,
)
from persongen_jax.stopping import StopSignals
from persongen_jax.train_step import CompiledSteps, TrainState, build_step, latent_shape
from persongen_jax.training_log import EventFile, MetricsFile, Stopwatch, falling
from persongen_jax.validation import Validator
from persongen_jax.weights.saver import write_json
from persongen_jax.weights.sdxl import load_sdxl

log = logging.getLogger(__name__)


# ---- The model: a frozen base, and what the method adds to it ----------------------------------


def build_model(config, sharding=None):
    """(base, method): the loaded SDXL with the method's parts attached."""
    if not config.base:
        raise ValueError(
            "config.base is empty; give --config.base=DIR, a diffusers-format SDXL directory "
            "(python -m persongen_jax.weights.random_base writes a tiny one)"
        )
    base = load_sdxl(
        config.base,
        dtype=jnp.dtype(config.dtype),
        vae_dtype=jnp.dtype(config.vae_dtype),
        shardings=sharding,
    )
    method = get_method(config.method)
    method.attach(base.model, config, nnx.Rngs(config.seed))
    base.model.unet.set_remat(config.remat)
    return base, method


# ---- The data: batches that are a function of (seed, step) -------------------------------------


def open_batches(config, base, method, start_step, alone=False):
    """Host batches (data_pipeline/schema.py) from ``start_step`` on.

    Of each this process' rows; with ``alone`` all of them, however many processes there are.
    """
    if not config.data:
        raise ValueError(
            "config.data is empty; give --config.data=DIR, photographs with a manifest.jsonl or "
            "shards, or drawn people (see data_pipeline/sources.py)"
        )
    records, read_image = open_records(config.data, config.trigger_word)
    loaders = {"tf_data": tf_batches, "memory": batches}
    if config.loader not in loaders:
        raise ValueError(f"config.loader={config.loader!r}: use {' or '.join(loaders)}")
    shapes = bucket_shapes(config.buckets)
    unet, factor = base.model.unet, base.model.vae.vae_scale_factor
    check_shapes(shapes, factor * 2 ** (len(unet.config["block_out_channels"]) - 1))
    features = None
    if config.cache:
        empty_ids, stamps = base.tokenizers.encode(""), picture_stamps(config.data)
        features = Features(config, base.model, method, empty_ids, stamps)
        print(f"features: {features}")
    return loaders[config.loader](
        records,
        base.tokenizers,
        batch_size=config.batch_size,
        start_step=start_step,
        process_index=0 if alone else jax.process_index(),
        process_count=1 if alone else jax.process_count(),
        seed=config.seed,
        size=config.size,
        id_size=method.reference_size(base.model),
        trigger_word=config.trigger_word,
        streams=method.streams,
        read_image=read_image,
        random_crop=config.random_crop,
        buckets=shapes,
        features=features,
    )


# ---- The run -----------------------------------------------------------------------------------


def train(config: ConfigDict, workdir: Path, dry_run: bool = False) -> bool:
    """Train by ``config``, with checkpoints and metrics.jsonl in ``workdir``.

    Returns whether all is done: False if a signal ended it before, be it in the last validation.
    """
    mesh = make_mesh(fsdp=config.fsdp)
    check_parts(config, mesh.size)

    # Where the last run ended.
    if not dry_run:
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
        start = checkpoints.newest()
        before = None if start is None else checkpoints.config(start)
        config = settle_step(config, before)
        settings = json.loads(config.to_json())
        if before is not None:
            check_same_run(workdir, before, settings)

    base, method = build_model(config, load_shardings(mesh, config))
    offload(config, base.model, method)
    schedule = diffusion.NoiseSchedule.from_config(base.scheduler_config)
    table = config.trainable or method.groups
    graphdef, trainable, frozen, groups = split_model(base.model, table)
    tx = make_optimizer(config, groups)
    print(f"{config.method} on {config.base}, {mesh.size} x {jax.default_backend()}:")
    print(summary(trainable, frozen, groups))
    if dry_run:
        print(config)
        return True

    at_home = frozen_shardings(mesh, config, frozen)
    frozen = put_read(frozen, at_home)
    create = functools.partial(TrainState.create, tx=tx, ema_decay=config.ema_decay)
    places = state_shardings(mesh, config, jax.eval_shape(create, trainable))
    state = jax.jit(create, out_shardings=places)(put(trainable, places.trainable))

    progress = {}
    if start is None:
        start = 0
        print(f"starting from the beginning: no checkpoint in {workdir} yet")
    else:
        *saved, progress = checkpoints.restore(start, state.trainable, state.opt_state, state.ema)
        state = TrainState(*saved)
        print(f"continuing from step {start}")
    source = open_batches(config, base, method, start)
    if "data" in progress:
        source.check(progress["data"])
    logs = distributed.log_folder(workdir)
    write_json(logs / "config.json", settings)

    # The step: a program for each bucket, compiled on its first batch.
    empty_ids = base.tokenizers.encode("")
    parts = (base.model, method, schedule, empty_ids, graphdef, tx)
    train_step = build_step(config, *parts, out=(places, replicated(mesh)))
    peak, origin = flop_count.peak_flops(jax.devices())
    factor = base.model.vae.vae_scale_factor
    cells = [(height // factor, width // factor) for height, width in source.source.shapes]

    def say(count, flops, seconds):
        print(
            f"compiled the step in {seconds:.1f} s ({count} of {len(cells)}): {flops / 1e9:.4g} "
            f"GFLOP; peak {peak / 1e9:.4g} GFLOP/s ({origin})"
        )

    latents = functools.partial(latent_shape, base.model.vae)
    program = CompiledSteps(train_step, cells, latents, say)
    stream = ahead = prefetch_to_device(source, functools.partial(put_batch, mesh))
    if start < config.steps:
        held = [next(stream)]
        with jax.set_mesh(mesh):
            program.prepare(state, frozen, held[0], np.int32(start))
        ahead = led_by(held, stream)

    events = EventFile(logs / "tensorboard", start) if config.tensorboard else None
    write = (events.scalar, events.image) if events else (None, None)
    validator = Validator(config, base, method, logs, start_step=start)
    watch, done, running = Stopwatch(), start, None
    bar = tqdm(initial=start, total=config.steps, unit="step", disable=not distributed.is_first())

    # A signal is answered between two steps. Before this point it may just end the process, as
    # nothing would be lost.
    unlogged = progress.get("unlogged", ())
    rows = MetricsFile(logs / "metrics.jsonl", start, unlogged)
    bad_steps = BadSteps(config.max_bad_steps, progress.get("bad_steps", ()), workdir)
    with StopSignals() as stop, checkpoints, rows:
        validator.should_stop = stop.ask

        def is_due(every):
            return every > 0 and (done % every == 0 or done == config.steps)

        def save():
            bad_steps.check()
            if source.source.features:
                with unless_full(config.cache):  # what is not stored is computed again
                    source.source.features.flush()
            progress = {"data": source.state(done), "unlogged": rows.kept()}
            progress["bad_steps"] = bad_steps.in_a_row
            parts = (state.trainable, state.opt_state, settings, state.ema, progress)
            checkpoints.save(done, *parts)

        def to_validate():
            return is_due(config.validation_every) and not distributed.of_first(validator.has(done))

        def validate():
            if to_validate():
                with unless_full(validator.folder):
                    whole = put(frozen, at_home)  # what is offloaded, for as long as this lasts
                    validator(merge_model(graphdef, state.shown, whole), done, *write)

        validate()
        watch.restart()
        while done < config.steps and not stop.ask():
            batch = watch.next_batch(ahead, running)
            with watch.paused(), jax.set_mesh(mesh):
                program.prepare(state, frozen, batch, np.int32(done))
            state, metrics = program(state, frozen, batch, np.int32(done))
            # One step is under way while the next is prepared, and never more: then a signal finds
            # little left to finish.
            jax.block_until_ready(running)
            bad_steps.check()  # those before this one
            running = metrics["loss"]
            rows.keep(metrics)
            done += 1
            bad_steps.keep(done, metrics["skipped"])
            bar.update()
            if is_due(config.log_every):
                jax.block_until_ready(running)
                speeds = watch.read(config.batch_size, program.flops_per_step(), peak)
                row = rows.write(done, speeds)
                bar.set_postfix_str(in_short(row))
                if events:
                    events.scalars("training", row, done)
            to_save = is_due(config.checkpoint_every) or done == config.steps
            if to_save or is_due(config.validation_every):
                jax.block_until_ready(running)
                with watch.paused():
                    if to_save:
                        save()
                    validate()
        bad_steps.check()
        unfinished = bool(stop) and (done < config.steps or to_validate())
        if unfinished and not checkpoints.has(done):
            save()
    bar.close()
    stream.close()
    if events:
        events.close()
    if unfinished:
        print(f"saved at step {done}; the same command continues")
        return False
    if source.source.features:
        print(f"features: {source.source.features.used()}")
    if source.source.skipped:
        print(f"pictures passed over because they do not decode: {len(source.source.skipped)}")
    print(falling(logs / "metrics.jsonl"))
    print(f"trained weights: {workdir}")
    return True


def led_by(held: list, stream):
    """The one batch that ``held`` holds, and then the stream's; nothing holds it afterwards."""
    yield held.pop()
    yield from stream


def check_parts(config, devices: int):
    """ValueError unless the batch divides into ``grad_accum`` parts and each among the devices."""
    if config.grad_accum < 1 or config.batch_size % (config.grad_accum * devices):
        raise ValueError(
            f"config.batch_size={config.batch_size} does not divide evenly into "
            f"config.grad_accum={config.grad_accum} parts on {devices} devices; make it a multiple "
            f"of {max(1, config.grad_accum) * devices}"
        )


def in_short(row: dict) -> str:
    """A line of the log for the progress bar."""
    return (
        f"loss {row['loss']:.4f}, {row['images_per_second']:.1f} img/s, "
        f"waiting for data {row['data_wait']:.0%}, MFU {row['mfu']:.1%}"
    )


# ---- The command -------------------------------------------------------------------------------

CONFIG = config_flags.DEFINE_config_file("config", None, "an experiment, e.g. configs/base.py")
WORKDIR = flags.DEFINE_string("workdir", None, "checkpoints and metrics; default runs/<config>")
DRY_RUN = flags.DEFINE_bool("dry_run", False, "print the config and parameter counts, and stop")


def main(_):
    # Orbax tells of every file that it renames, JAX of every backend that is not there; what goes
    # wrong still comes through.
    for name in (None, "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)
    config = CONFIG.value
    if config is None:
        sys.exit("--config is missing; try --config configs/mini/photomaker_bg.py")
    parts = Path(config_flags.get_config_filename(flags.FLAGS["config"])).with_suffix("").parts
    if "configs" in parts:  # configs/mini/x.py runs in runs/mini/x
        parts = parts[parts.index("configs") + 1 :]
    else:
        parts = parts[-1:]
    name = "/".join(parts)
    workdir = Path(WORKDIR.value or f"runs/{name}")
    try:
        with distributed.together():
            finished = train(config, workdir, DRY_RUN.value)
    except (ValueError, OSError, ImportError) as error:
        # The user's files or settings: the message says which and what to do; a trace would not.
        log.debug("", exc_info=True)
        sys.exit(f"error: {error}")
    if not finished:
        sys.exit(distributed.unfinished_status())


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
