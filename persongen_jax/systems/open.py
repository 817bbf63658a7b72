"""Opens a config, or a finished or interrupted run, as a System."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from persongen_jax.config import import_object
from persongen_jax.diffusion.scheduler_config import check_choice
from persongen_jax.methods.start import pin_start_step
from persongen_jax.parallel.sharding import load_shardings, make_mesh, mesh_for, replicated
from persongen_jax.settings import check_version, pin_references, pin_schedule_steps
from persongen_jax.systems.base import System
from persongen_jax.training.checkpoint import find_run
from persongen_jax.training.partition import fill_trained
from persongen_jax.training.trained import read_trained

SYSTEMS = {
    "sdxl": "persongen_jax.systems.sdxl:Sdxl",
    "ddpm": "persongen_jax.systems.ddpm:Ddpm",
    "attribute_classifier": "persongen_jax.systems.attribute_classifier:Classifier",
}
DTYPES = ("float32", "bfloat16", "float16")


def system_class(name: str) -> type[System]:
    """The class of ``config.system``: a name of ``SYSTEMS``, or "package.module:Class"."""
    if ":" not in name and name not in SYSTEMS:
        known = ", ".join(SYSTEMS)
        raise ValueError(f"config.system={name!r}: use {known}, or package.module:Class")
    return import_object(SYSTEMS.get(name, name), "config.system")


def open_system(config: ConfigDict, mesh: jax.sharding.Mesh | None = None) -> System:
    """The system of a config, with its initial weights.

    Args:
        mesh: where to put frozen weights; None: on the default device.

    Raises:
        ValueError: an unknown system or method, or a key without a value.
        WeightsError: a file that is missing or does not fit.
    """
    check_choice("config.dtype", config.dtype, DTYPES)
    shardings = None if mesh is None else load_shardings(mesh, config)
    system = system_class(config.system).open(config, shardings)
    system.check_objective()
    return system


def abstract_system(config: ConfigDict) -> System:
    """The same with a ShapeDtypeStruct for every array."""
    check_choice("config.dtype", config.dtype, DTYPES)
    system = system_class(config.system).abstract(config)
    system.check_objective()
    return system


def complete_config(saved: dict, where: str | Path = "the run") -> ConfigDict:
    """A run's saved config, with today's defaults for keys that it lacks.

    Args:
        where: the run's working directory, for messages.

    Raises:
        OldRun: the config is one of an earlier version.
    """
    check_version(saved, where)
    defaults = json.loads(system_class(saved.get("system", "sdxl")).defaults().to_json())
    return ConfigDict({**defaults, **saved})


def config_of_run(config: ConfigDict, before: dict | None) -> ConfigDict:
    """The config with what a run fills in by itself: it keeps this from its beginning to its end.

    With several processes all of them must call it.

    Args:
        before: the config that the run began with, complete; None when it begins.

    Raises:
        ValueError: the data contradict the config.
    """
    config = pin_schedule_steps(pin_start_step(config, before), before)
    return pin_references(system_class(config.system).resolve_config(config), before)


class TrainedRun(NamedTuple):
    """The result of :func:`open_run`.

    workdir: of the run; step: of the checkpoint; config: ConfigDict, with today's defaults for
    keys that the run lacks; system: with the trained weights (the running average if the run
    kept one).
    """

    workdir: Path
    step: int
    config: ConfigDict
    system: System


def open_run(
    path: str | Path,
    step: int | None = None,
    change: Callable[[ConfigDict], object] = lambda config: None,
) -> TrainedRun:
    """Load what a run has trained.

    Args:
        path: its working directory.
        step: of the checkpoint; None: the newest intact one.
        change: called with the config before anything is loaded, to change it in place.

    Raises:
        FileNotFoundError: there is no checkpoint, or none of ``step``.
        CorruptCheckpoint: the checkpoint is damaged.
        WeightsError: the base is no longer the one that the run was trained on.
    """
    workdir, step = find_run(path, step)
    trained, saved = read_trained(workdir, step, replicated(make_mesh()))
    config = complete_config(saved, workdir)
    change(config)
    system = open_system(config, mesh_for(config))
    fill_trained(system.model, trained, system.table, str(workdir))
    return TrainedRun(workdir, step, config, system)
