"""A run with plausible trained weights, and the command's errors and files."""

import json

import numpy as np
import pytest

from configs.first_light import get_config
from persongen_jax.convert import __main__ as convert
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model
from persongen_jax.weights.files.directory import open_file
from tests.evaluation.tiny import moved

RANK, ALPHA = 4, 2.0  # the scale is a half, so that a file without it is detected


def write_run(workdir, base, name, steps=(10, 20)):
    """What a run of a method leaves, with plausible trained weights."""
    config = get_config()
    config.base, config.method = str(base), name
    config.rank, config.lora_alpha = RANK, ALPHA
    system = open_system(config)
    _, trainable, _, _ = split_model(system.model, system.table)
    checkpoints = Checkpoints(workdir)
    settings = json.loads(config.to_json())
    for step in steps:
        checkpoints.save(step, moved(trainable, step), {"count": np.zeros(1)}, settings)
    checkpoints.close()
    (workdir / "config.json").write_text(json.dumps(settings))
    return workdir


def fails(*options) -> str:
    """The message that the command ends with."""
    with pytest.raises(SystemExit) as caught:
        convert.main([str(option) for option in options])
    assert str(caught.value.code).startswith("error: ")
    return str(caught.value.code)


def tensors(path):
    with open_file(path) as file:
        return {key: file.read(key) for key in file.keys()}


def same(first, second):
    assert first.keys() == second.keys()
    for key, array in first.items():
        assert array.dtype == second[key].dtype and np.array_equal(array, second[key]), key
