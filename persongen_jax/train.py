"""Train a system. Read from top to bottom, in the order of execution.

    python -m persongen_jax.train --config configs/mini/photomaker_bg.py
    python -m persongen_jax.train --config configs/base.py --config.base=/path/to/sdxl --dry_run

Any key of the config can be overridden with --config.KEY=VALUE. The same command resumes from the
last checkpoint. The config's System defines what is trained (the model, its examples, its losses);
the loop knows none of it (persongen_jax/systems/base.py).
"""

import argparse
import functools
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from data_pipeline.examples.prefetch import prefetch_to_device
from persongen_jax.cli import command, parse_with_config, restart_with_huge_pages
from persongen_jax.config import import_object
from persongen_jax.config_ranges import check_ranges
from persongen_jax.evaluation.progress.best import Best
from persongen_jax.evaluation.progress.samples import open_samples
from persongen_jax.evaluation.validation import Validator
from persongen_jax.files import warn_if_full
from persongen_jax.metrics.registry import find_class
from persongen_jax.parallel import distributed
from persongen_jax.parallel.sharding import make_mesh, put_batch
from persongen_jax.settings import check_resumable, check_steps
from persongen_jax.systems.assembly import assemble, summary
from persongen_jax.systems.open import (
    complete_config,
    config_of_run,
    open_system,
    system_class,
)
from persongen_jax.training import flop_count
from persongen_jax.training.bad_steps import BadSteps
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.logs.metrics_file import MetricsFile, loss_summary
from persongen_jax.training.logs.stopwatch import Stopwatch
from persongen_jax.training.logs.writers import open_writers
from persongen_jax.training.step import CompiledSteps, TrainState
from persongen_jax.training.stopping import StopSignals
from persongen_jax.training.unused_keys import unused_keys
from persongen_jax.training.workdir_lock import lock_workdir
from persongen_jax.weights.licences import add_terms_option
from persongen_jax.weights.saver import write_json

log = logging.getLogger(__name__)


# ---- The run -----------------------------------------------------------------------------------


def train(config: ConfigDict, workdir: Path, dry_run: bool = False) -> bool:
    """Train with ``config``, with checkpoints and metrics.jsonl in ``workdir``.

    Returns whether all is done: False if a signal ended it, even in the last validation.
    """
    if dry_run or not distributed.is_first():
        return train_locked(config, workdir, dry_run)
    with lock_workdir(workdir):
        return train_locked(config, workdir)


def train_locked(config: ConfigDict, workdir: Path, dry_run: bool = False) -> bool:
    """:func:`train`, when no other run is using ``workdir``."""
    check_ranges(config)
    mesh = make_mesh(fsdp=config.fsdp)
    check_batch_size(config, mesh.size)

    # Faults of the data are told before anything large is loaded.
    for line in system_class(config.system).check_data(config):
        print(line)

    # Where the last run ended.
    if not dry_run:
        workdir.mkdir(parents=True, exist_ok=True)
        checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
        start = checkpoints.newest()
        before = None
        if start is not None:
            before = json.loads(complete_config(checkpoints.config(start), workdir).to_json())
        config = config_of_run(config, before)
        settings = json.loads(config.to_json())
        if before is not None:
            check_resumable(workdir, before, settings)
        for line in check_steps(config, workdir, start or 0):
            print(line)

    # What is trained, on the devices.
    system = open_system(config, mesh)
    parts = assemble(system, mesh)
    state, frozen = parts.state, parts.frozen
    print(f"{system}, {mesh.size} x {jax.default_backend()}:")
    print(summary(parts.counts()))
    groups = set(parts.groups.values())
    for line in unused_keys(config, type(system).defaults(), groups, system.unused_keys):
        print(line)
    if dry_run:
        for name in config.metrics:
            find_class(name)
        print(config)
        print("dry run: everything opens; no run was written")
        return True

    progress = {}
    if start is None:
        start = 0
        print(f"starting from the beginning: no checkpoint in {workdir} yet")
    else:
        wanted = (state.trainable, state.opt_state, state.ema, state.stats)
        *restored, progress = checkpoints.restore(start, *wanted)
        state = TrainState(*restored)
        print(f"continuing from step {start}")
    if system.prepares:
        for line in import_object(system.prepares, "prepares")(system):
            print(line)
    examples = system.examples(start)
    if "data" in progress:
        examples.check(progress["data"])
    logs = distributed.log_folder(workdir)
    write_json(logs / "config.json", settings)
    validator = Validator(system, logs, start_step=start)
    best = Best(system, validator, logs)
    samples = open_samples(system, logs, start)
    writers = open_writers(config, workdir, logs, start, settings)

    # The step: a program per batch shape, compiled on its first batch.
    peak, origin = flop_count.peak_flops(jax.devices())

    def say(count, flops, seconds):
        print(
            f"compiled the step in {seconds:.1f} s ({count} of {program.expected}): "
            f"{flops / 1e9:.4g} GFLOP; peak {peak / 1e9:.4g} GFLOP/s ({origin})"
        )

    program = CompiledSteps(parts.step, examples.source.specs, say)
    stream = prefetch_to_device(examples, functools.partial(put_batch, mesh))
    ahead: Iterator = stream
    if start < config.steps and not best.ended:
        held = [next(stream)]
        with jax.set_mesh(mesh):
            program.prepare(state, frozen, held[0], np.int32(start))
        ahead = prepend(held, stream)

    watch, done, running = Stopwatch(), start, None
    bar = tqdm(initial=start, total=config.steps, unit="step", disable=not distributed.is_first())

    # Signals are handled between two steps. Before this point they may simply end the process, as
    # nothing would be lost.
    unlogged = progress.get("unlogged", ())
    rows = MetricsFile(logs / "metrics.jsonl", start, unlogged, table=config.metrics_csv)
    in_a_row = progress.get("bad_steps", ())
    bad_steps = BadSteps(config.max_bad_steps, in_a_row, workdir, examples.pictures_of)
    with StopSignals() as stop, checkpoints, rows:
        validator.should_stop = stop.sync
        if samples:
            samples.should_stop = stop.sync

        def is_due(every):
            return every > 0 and (done % every == 0 or done == config.steps)

        def save():
            bad_steps.check()
            with warn_if_full(config.get("cache")):  # rows not stored are computed again
                examples.flush()
            progress = {"data": examples.state(done), "unlogged": rows.kept()}
            progress["bad_steps"] = bad_steps.in_a_row
            saved = (state.trainable, state.opt_state, settings, state.average, progress)
            checkpoints.save(done, *saved, state.stats)

        def validation_due():
            return is_due(config.validation_every) and not distributed.broadcast_from_first(
                validator.has(done)
            )

        def samples_due():
            if not samples or not is_due(config.sample_every):
                return False
            return not distributed.broadcast_from_first(samples.has(done))

        def evaluate():
            if samples_due():
                with warn_if_full(samples.folder):
                    samples(parts.eval_model(state), done, writers.image)
            if validation_due():
                with warn_if_full(validator.folder):
                    validator(parts.eval_model(state), done, writers.scalar, writers.image)
            best.look()
            checkpoints.kept = best.step

        evaluate()
        watch.restart()
        while done < config.steps and not best.ended and not stop.sync():
            batch = watch.next_batch(ahead, running)
            with watch.paused(), jax.set_mesh(mesh):
                program.prepare(state, frozen, batch, np.int32(done))
            state, metrics = program(state, frozen, batch, np.int32(done))
            # At most one step runs while the next is prepared, so a signal leaves little to do.
            jax.block_until_ready(running)
            bad_steps.check()  # the steps before this one
            running = metrics["loss"]
            rows.keep(metrics)
            done += 1
            bad_steps.keep(done, metrics["skipped"])
            bar.update()
            if is_due(config.log_every):
                jax.block_until_ready(running)
                speeds = watch.read(config.batch_size, program.flops_per_step(), peak)
                row = rows.write(done, speeds)
                bar.set_postfix_str(progress_line(row))
                writers.scalars("training", row, done)
            to_save = is_due(config.checkpoint_every) or done == config.steps
            to_validate = is_due(config.validation_every)
            to_save |= to_validate and best.acts
            if to_save or to_validate or samples_due():
                jax.block_until_ready(running)
                with watch.paused():
                    if to_save:
                        save()
                    evaluate()
        bad_steps.check()
        left = not best.ended and (done < config.steps or validation_due() or samples_due())
        unfinished = bool(stop) and left
        if unfinished and not checkpoints.has(done):
            save()
    bar.close()
    stream.close()
    writers.close()
    if unfinished:
        print(f"saved at step {done}; the same command continues")
        return False
    for line in (*examples.report(), *best.report(done < config.steps)):
        print(line)
    print(loss_summary(logs / "metrics.jsonl"))
    print(f"trained weights: {workdir}")
    return True


def prepend(held: list, stream: Iterator) -> Iterator:
    """The batch that ``held`` holds, then the stream's; drops our reference so it can be freed."""
    yield held.pop()
    yield from stream


def check_batch_size(config: ConfigDict, devices: int) -> None:
    """ValueError unless the batch splits into ``grad_accum`` parts and each over the devices."""
    if config.grad_accum < 1 or config.batch_size % (config.grad_accum * devices):
        raise ValueError(
            f"config.batch_size={config.batch_size} does not divide evenly into "
            f"config.grad_accum={config.grad_accum} parts on {devices} devices; make it a multiple "
            f"of {max(1, config.grad_accum) * devices}"
        )


def progress_line(row: dict) -> str:
    """A line of the log for the progress bar."""
    return (
        f"loss {row['loss']:.4f}, {row['images_per_second']:.1f} img/s, "
        f"waiting for data {row['data_wait']:.0%}, MFU {row['mfu']:.1%}"
    )


# ---- The command -------------------------------------------------------------------------------


@command
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.train",
        description=__doc__.split(".")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", help="checkpoints and metrics; default runs/<config>")
    parser.add_argument(
        "--dry_run", action="store_true", help="print the config and parameter counts, and stop"
    )
    add_terms_option(parser.add_argument)
    # Orbax logs every rename, JAX every missing backend; errors are still logged.
    for name in (None, "absl"):
        logging.getLogger(name).setLevel(logging.WARNING)
    args, config = parse_with_config(parser, argv, "configs/mini/photomaker_bg.py")
    parts = Path(args.config).with_suffix("").parts
    if "configs" in parts:  # configs/mini/x.py runs in runs/mini/x
        parts = parts[parts.index("configs") + 1 :]
    else:
        parts = parts[-1:]
    name = "/".join(parts)
    workdir = Path(args.workdir or f"runs/{name}")
    if config.get("cpu_devices", 1) > 1:
        jax.config.update("jax_num_cpu_devices", config.cpu_devices)
    with distributed.run_distributed():
        finished = train(config, workdir, args.dry_run)
    return 0 if finished else distributed.unfinished_status()


if __name__ == "__main__":
    restart_with_huge_pages()
    sys.exit(main())
