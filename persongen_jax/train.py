"""Train an identity method. Read from top to bottom, in the order in which it runs.

    python -m persongen_jax.train --config configs/first_light.py --workdir runs/first_light
    python -m persongen_jax.train --config configs/base.py --config.base=/path/to/sdxl --dry_run

Any key of the config can be overridden by --config.KEY=VALUE. The same command again continues
where the last checkpoint was made.
"""

import functools
import json
import logging
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags
from flax import nnx
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from data_pipeline.loader import batches, prefetch_to_device, tf_batches
from data_pipeline.manifest import read_manifest
from persongen_jax import diffusion
from persongen_jax.checkpoint import Checkpoints
from persongen_jax.methods import get_method
from persongen_jax.methods.base import drop_condition
from persongen_jax.models.vae import scale_latents
from persongen_jax.partition import make_optimizer, merge_model, split_model, summary
from persongen_jax.sharding import make_mesh, put_batch, replicated
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
    return base, method


# ---- The data: batches that are a function of (seed, step) -------------------------------------


def open_batches(config, base, method, start_step):
    """Host batches (data_pipeline/schema.py) from ``start_step`` on."""
    if not config.data:
        raise ValueError("config.data is empty; give --config.data=DIR with a manifest.jsonl")
    records = read_manifest(config.data, config.trigger_word)
    loaders = {"tf_data": tf_batches, "memory": batches}
    if config.loader not in loaders:
        raise ValueError(f"config.loader={config.loader!r}: use {' or '.join(loaders)}")
    return loaders[config.loader](
        records,
        base.tokenizers,
        batch_size=config.batch_size,
        start_step=start_step,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        seed=config.seed,
        size=config.size,
        id_size=method.reference_size(base.model),
        trigger_word=config.trigger_word,
        streams=method.streams,
    )


# ---- The loss ----------------------------------------------------------------------------------

# Each purpose draws from its own stream of random numbers.
LATENTS, NOISE, TIMESTEPS, DROP, FACE = range(5)


def step_key(seed, step, purpose):
    """A key that depends on these three and nothing else, so that a resumed run draws the same."""
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), step), purpose)


def example_losses(model, method, schedule, config, empty_ids, batch, step):
    """The noise-prediction loss of every example, [b], and counts for the log."""
    key = functools.partial(step_key, config.seed, step)
    b, *image_size, _ = batch["pixel_values"].shape

    moments = model.vae.encode(batch["pixel_values"])
    latents = jax.lax.stop_gradient(scale_latents(model.vae, moments.sample(key(LATENTS))))
    noise = jax.random.normal(key(NOISE), latents.shape)
    timesteps = jax.random.randint(key(TIMESTEPS), (b,), 0, schedule.num_train_timesteps)
    noisy = diffusion.add_noise(schedule, latents, noise, timesteps)

    drop = jax.random.bernoulli(key(DROP), config.drop_prob, (b,))
    conditioning = method.condition(model, drop_condition(batch, drop, empty_ids))
    model_pred = model.unet(noisy, timesteps, conditioning)

    face, fell_back = diffusion.face_box_mask(batch["face_box"], image_size, latents.shape[1:3])
    face_only = jax.random.bernoulli(key(FACE), config.face_loss_prob, (b,))
    mask = jnp.where(face_only[:, None, None], face, 1.0)
    target = diffusion.training_target(schedule, latents, noise, timesteps)
    losses = diffusion.per_example_loss(model_pred, target, mask)
    return losses, {"face_box_fallbacks": (face_only & fell_back).sum()}


# ---- The step: gradients for what is trained, and for nothing else -----------------------------


def make_train_step(losses_of, graphdef, tx):
    """step(trainable, opt_state, frozen, batch, step) to (trainable, opt_state, metrics)."""

    @functools.partial(jax.jit, donate_argnums=(0, 1))
    def train_step(trainable, opt_state, frozen, batch, step):
        def mean_loss(trainable):
            model = merge_model(graphdef, trainable, frozen)
            losses, counts = losses_of(model, batch, step)
            return losses.mean(), counts

        (loss, counts), grads = jax.value_and_grad(mean_loss, has_aux=True)(trainable)
        updates, opt_state = tx.update(grads, opt_state, trainable)
        trainable = jax.tree.map(jnp.add, trainable, updates)
        norm = jnp.sqrt(sum(jnp.vdot(g, g) for g in jax.tree.leaves(grads)))
        return trainable, opt_state, {"loss": loss, "grad_norm": norm, **counts}

    return train_step


# ---- The run -----------------------------------------------------------------------------------


def train(config: ConfigDict, workdir: Path, dry_run: bool = False):
    """Train by ``config``, with checkpoints and metrics.jsonl in ``workdir``."""
    mesh = make_mesh()
    base, method = build_model(config, replicated(mesh))
    schedule = diffusion.NoiseSchedule.from_config(base.scheduler_config)
    table = config.trainable or method.groups
    graphdef, trainable, frozen, groups = split_model(base.model, table)
    tx = make_optimizer(config, groups)
    print(f"{config.method} on {config.base}, {mesh.size} x {jax.default_backend()}:")
    print(summary(trainable, frozen, groups))
    if dry_run:
        print(config)
        return

    trainable = jax.device_put(trainable, replicated(mesh))
    frozen = jax.device_put(frozen, replicated(mesh))
    opt_state = jax.device_put(tx.init(trainable), replicated(mesh))

    workdir.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(workdir, keep=config.keep_checkpoints)
    start = checkpoints.latest_step() or 0
    if start:
        trainable, opt_state = checkpoints.restore(start, trainable, opt_state)
        print(f"continuing from step {start}")

    empty_ids = base.tokenizers.encode("")
    losses_of = functools.partial(_losses_of, method, schedule, config, empty_ids)
    train_step = make_train_step(losses_of, graphdef, tx)
    source = open_batches(config, base, method, start)
    stream = prefetch_to_device(source, functools.partial(put_batch, mesh))
    settings = json.loads(config.to_json())
    write_json(workdir / "config.json", settings)

    with MetricsFile(workdir / "metrics.jsonl", start) as metrics_file:
        bar = tqdm(range(start, config.steps), initial=start, total=config.steps, unit="step")
        for step in bar:
            batch = next(stream)
            with jax.set_mesh(mesh):
                trainable, opt_state, metrics = train_step(
                    trainable, opt_state, frozen, batch, np.int32(step)
                )
            done = step + 1
            metrics_file.keep(metrics)
            if step == start:
                jax.block_until_ready(metrics)
                clock = Clock(done)  # the first step was spent compiling
            if done % config.log_every == 0 or done == config.steps:
                row = metrics_file.write(done, clock.images_per_second(done, config.batch_size))
                bar.set_postfix(loss=f"{row['loss']:.4f}", img_s=f"{row['images_per_second']:.1f}")
            if done % config.checkpoint_every == 0 or done == config.steps:
                checkpoints.save(done, trainable, opt_state, settings)
    stream.close()
    checkpoints.close()
    if source.source.skipped:
        print(f"pictures passed over because they do not decode: {len(source.source.skipped)}")
    print(falling(workdir / "metrics.jsonl"))
    print(f"trained weights: {workdir}")


def _losses_of(method, schedule, config, empty_ids, model, batch, step):
    return example_losses(model, method, schedule, config, empty_ids, batch, step)


class Clock:
    """Images per second since the last question."""

    def __init__(self, step):
        self.time, self.step = time.perf_counter(), step

    def images_per_second(self, step, batch_size):
        now = time.perf_counter()
        rate = (step - self.step) * batch_size / max(now - self.time, 1e-9)
        self.time, self.step = now, step
        return rate


class MetricsFile:
    """metrics.jsonl: one line per ``log_every`` steps, the mean over them.

    On resuming, lines after the step continued from are dropped: they will be written again.
    """

    def __init__(self, path: Path, start: int):
        rows = [line for line in _lines(path) if json.loads(line)["step"] <= start]
        path.write_text("".join(rows))
        self.file = path.open("a")
        self.kept = []

    def keep(self, metrics: dict):
        """Remember one step's; they stay on the device, so that nothing waits for them."""
        self.kept.append(metrics)

    def write(self, step: int, images_per_second: float) -> dict:
        means = {k: float(np.mean([m[k] for m in self.kept])) for k in self.kept[0]}
        row = {"step": step, **means, "images_per_second": images_per_second}
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()
        self.kept = []
        return row

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.file.close()


def _lines(path: Path) -> list[str]:
    """Complete lines; a crash may have cut the last one short."""
    if not path.exists():
        return []
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")]


def falling(path: Path) -> str:
    """The loss at the beginning and at the end of a run, a tenth of its lines each."""
    losses = [json.loads(line)["loss"] for line in _lines(path)]
    tenth = max(1, len(losses) // 10)
    return f"loss: {np.mean(losses[:tenth]):.4f} at first, {np.mean(losses[-tenth:]):.4f} at last"


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
        sys.exit("--config is missing; try --config configs/first_light.py")
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    workdir = Path(WORKDIR.value or f"runs/{name}")
    try:
        train(config, workdir, DRY_RUN.value)
    except (ValueError, OSError) as error:
        # The user's files or settings: the message says which and what to do; a trace would not.
        log.debug("", exc_info=True)
        sys.exit(f"error: {error}")


def parse_flags(argv):
    """absl's parsing; a key that the config does not have ends in a line, not in a trace."""
    try:
        return flags.FLAGS(argv)
    except (AttributeError, KeyError) as error:
        sys.exit(f"error: the config has no such key: {error.args[0]}")
    except (TypeError, flags.Error, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    app.run(main, flags_parser=parse_flags)
