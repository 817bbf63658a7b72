"""The base as a pipeline, and what a training run of zero steps leaves behind."""

import numpy as np
import pytest

from configs.first_light import get_config
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model


@pytest.fixture(scope="module")
def method_weights(small_base, tmp_path_factory):
    """What a training run of zero steps leaves behind."""
    config = get_config()
    config.base = str(small_base)
    system = open_system(config)
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir)
    trainable = split_model(system.model, system.table)[1]
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config.to_dict())
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def pipe(small_base):
    return Pipeline.from_pretrained(small_base)
