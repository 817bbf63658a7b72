"""A small training's config, and the system of each method."""

import functools

import pytest

from persongen_jax.systems.open import open_system
from tests.helpers.training_runs import changed, small_base, small_config


@pytest.fixture(scope="module")
def config(tmp_path_factory, sample_photos):
    config = small_config(small_base(tmp_path_factory), sample_photos)
    config.ema_decay = 0.0
    return config


@pytest.fixture(scope="module")
def build(config):
    """Maps name to the system with this method, each opened once."""

    @functools.cache
    def build(name):
        return open_system(changed(config, method=name))

    return build
