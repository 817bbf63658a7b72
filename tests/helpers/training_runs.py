"""A training run shared by several test modules: made once, on a base smaller than "tiny"."""

import json
from unittest import mock

from configs.first_light import get_config
from persongen_jax import train
from persongen_jax.weights import random_base
from tests.helpers.made_once import made_once

# The tiny UNet has three levels of two layers; compilation is most of a test's cost.
SMALLER_UNET = {
    "attention_head_dim": [1, 1],
    "block_out_channels": [32, 64],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "transformer_layers_per_block": [1, 1],
}
STEPS = 40
PROMPTS = ("a photo of a {word} img", "a {word} img in a red coat")
TIMES = ("images_per_second", "data_wait", "mfu")


def small_base(tmp_path_factory):
    """A directory like that of the fixture tiny_base, with a UNet that compiles faster."""
    configs = random_base.make_configs

    def smaller(*args):
        made = configs(*args)
        return {**made, "unet": {**made["unet"], **SMALLER_UNET}}

    with mock.patch.object(random_base, "make_configs", smaller):
        return made_once(tmp_path_factory, "small-sdxl", random_base.write_random_base)


def small_config(base, photos):
    """Checkpoints and lines of the log are at different steps."""
    config = get_config()
    config.base, config.data, config.loader = str(base), str(photos), "memory"
    config.batch_size, config.rank = 4, 4
    config.warmup_steps, config.ema_decay, config.clip_norm = 5, 0.5, 1.0
    config.steps, config.log_every, config.checkpoint_every = STEPS, 3, 5
    return config


def changed(config, **changes):
    """A copy with other values."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.update(changes)
    return config


def whole_run(tmp_path_factory, photos):
    """The working directory of a run from the first step to the last, with all its logs."""
    config = small_config(small_base(tmp_path_factory), photos)
    config.tensorboard = config.metrics_csv = True
    config.validate_in_train, config.validation_every = str(photos), 25
    config.validation_people = config.validation_images = 1
    config.validation_steps, config.validation_merge_step = 2, 0
    config.sample_prompts, config.sample_every, config.sample_images = PROMPTS, 20, 2
    return made_once(tmp_path_factory, "whole-run", lambda workdir: train.train(config, workdir))


def metrics(workdir):
    """The lines of metrics.jsonl without clock-dependent values."""
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
