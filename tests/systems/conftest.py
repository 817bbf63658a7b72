"""A briefly trained classifier of digits, a run of the DDPM that it judges, and its system."""

import jax.numpy as jnp
import pytest

from configs.attributes import classifier
from persongen_jax.systems.open import open_system
from persongen_jax.train import train
from tests.systems.ddpm_config import get_config


@pytest.fixture(scope="session")
def judge(tmp_path_factory):
    """The folder of a briefly trained classifier of digits."""
    config = classifier.get_config("digits")
    config.widths, config.steps, config.batch_size = (8, 16), 40, 32
    config.warmup_steps, config.lr_model = 2, 1e-2
    config.validation_every = config.checkpoint_every = 40
    folder = tmp_path_factory.mktemp("judge") / "classifier"
    assert train(config, folder)
    return folder


@pytest.fixture(scope="session")
def run(judge, tmp_path_factory):
    """The folder of a complete run."""
    config = get_config()
    config.classifier = str(judge)
    folder = tmp_path_factory.mktemp("ddpm") / "run"
    assert train(config, folder)
    return folder


@pytest.fixture(scope="module", params=[pytest.param("input", marks=pytest.mark.slow), "blocks"])
def system(request):
    config = get_config()
    config.conditioning = request.param
    found = open_system(config)
    # Weights that start at zero would hide what reaches the output.
    found.model.null.set_value(jnp.full_like(found.model.null[...], 0.3))
    return found
