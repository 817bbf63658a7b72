"""Objects that a config names, and the config keys that every system has."""

import importlib
import importlib.util
import runpy
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

INSTALLED = Path(__file__).parents[1]


def import_object(name: str, key: str) -> Any:
    """The object that "package.module:Name" names.

    Args:
        key: the config's key, for the message.

    Raises:
        ValueError: no such module, or no such name in it.
    """
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ModuleNotFoundError as error:
        raise ValueError(f"{key}={name!r}: there is no module {error.name!r}") from error
    except AttributeError as error:
        raise ValueError(f"{key}={name!r}: {module} has no {attribute!r}") from error


def config_file(name: str | Path) -> str:
    """The config file that ``name`` means, found outside the checkout as well.

    A path below configs/ that the working directory does not have is looked up next to the
    installed package. What follows a colon is the config's argument, and stays.

    Raises:
        ValueError: another package named configs hides the one that these files import.
    """
    path, colon, argument = str(name).partition(":")
    installed = INSTALLED / path
    if Path(path).parts[:1] != ("configs",) or Path(path).exists() or not installed.exists():
        return str(name)
    spec = importlib.util.find_spec("configs")
    places = [spec.origin, *(spec.submodule_search_locations or ())] if spec else []
    found = Path(next(filter(None, places), installed))
    if found.resolve().parent != (INSTALLED / "configs").resolve():
        raise ValueError(
            f"{path}: Python finds another package named configs, {found}, which hides the one "
            "that this file imports; rename it, or delete its __init__.py"
        )
    return f"{installed}{colon}{argument}"


def load_config(file: str | Path, overrides: dict) -> ConfigDict:
    """A training's config with some keys changed.

    Raises:
        ValueError: no such file, or a key or type that the config does not have.
    """
    path = Path(config_file(file))
    if not path.is_file():
        raise ValueError(f"{file}: no such config; check the path")
    config = runpy.run_path(str(path))["get_config"]()
    for key, value in overrides.items():
        if key not in config:
            raise ValueError(f"{file}: has no key {key!r}")
        try:
            config[key] = value
        except TypeError as error:
            raise ValueError(f"{file}: {key}={value!r}: {error}") from error
    return config


VERSION = 2  # of the names in configs; convert upgrade rewrites those of earlier runs


def run_defaults() -> ConfigDict:
    """The keys that training reads from any config; a system adds its own."""
    config = ConfigDict()
    config.version = VERSION
    # What is trained: a name of systems/open.py, or "package.module:Class".
    config.system = "sdxl"
    config.dtype = "float32"
    config.data = ""
    config.loader = "memory"  # or "tf_data": prefetched by tf.data on all cores
    config.batch_size = 32  # over all devices
    config.grad_accum = 1  # a step in this many sequential parts: less memory
    config.trainable = ()  # overrides the system's own (path pattern, group) rows

    # Devices. Sharded weights are split over groups of ``fsdp`` devices: trained weights with the
    # optimizer's state; frozen weights too with ``shard_frozen``. With ``offload_encoders`` frozen
    # weights that a step does not read stay in host memory.
    config.fsdp = 1
    config.shard_frozen = False
    config.offload_encoders = False
    # A CPU counts as this many devices, which share the batch. With small layers, as many as there
    # are cores are faster than one that parallelises each layer.
    config.cpu_devices = 1

    # The optimizer, by its name in optax or optax.contrib: "adamw", "adafactor", "lion", "prodigy",
    # "schedule_free_adamw", "muon", ...; and its keyword arguments, on the command line as a whole:
    # --config.optimizer_options="{'b1': 0.5, 'weight_decay': 0.01}". Each group's learning rate is
    # ``lr_<group>``, with a linear warm-up, then constant or decaying to 0 at ``schedule_steps``;
    # 0 means the ``steps`` that the run starts with.
    config.optimizer = "adam"
    config.optimizer_options = ConfigDict()
    config.warmup_steps = 0
    config.lr_schedule = "constant"  # or "cosine", "linear"
    config.schedule_steps = 0
    config.clip_norm = 0.0  # above 0: clip the gradient's norm to this
    config.ema_decay = 0.0  # above 0: keep a running average of trained weights, and use it
    config.ema_warmup = False  # update n (from 0) decays with min(ema_decay, (1 + n) / (10 + n))

    # The run.
    config.seed = 42
    config.steps = 1000
    config.log_every = 10
    config.checkpoint_every = 1000
    config.keep_checkpoints = 3  # 0: all
    # A step whose loss or gradient is not finite changes nothing; this many in a row end the run.
    config.max_bad_steps = 10  # 0: never
    # Besides metrics.jsonl: metrics.csv; TensorBoard's events, with the extra "log"; a project of
    # Weights & Biases ("": none), with the extra "wandb", "online", "offline" or "disabled" ("": as
    # WANDB_MODE says).
    config.metrics_csv = False
    config.tensorboard = False
    config.wandb_project = ""
    config.wandb_mode = ""

    # Validation.
    config.validation_every = 0  # steps; 0: never
    config.validation_steps = 50  # of the sampler
    config.validation_seed = 42
    # Metrics, in the order of the tables' columns: names of metrics/registry.py, or
    # "package.module:Class" for your own.
    config.metrics = ()
    # The metric by which a checkpoint is the best, so that it is kept (RUN/checkpoints/best) and
    # every validation saves one; "": none. And the set that it is measured on; "": held-out people,
    # or the first set.
    config.best_metric = ""
    config.best_set = ""
    config.early_stopping = 0  # end after so many validations without a better one; 0: never
    # Metrics whose judge the method also reads or is trained with, admitted explicitly.
    config.judges_are_inputs = ()
    return config
