"""The tiny base as a pipeline, ours and diffusers', opened once for the whole folder."""

import numpy as np
import pytest

from persongen_jax.pipeline import Pipeline
from tests.helpers.lora_files import layer_shapes
from tests.pipeline.pictures import opened_when_called, paint


@pytest.fixture(scope="session")
def shared(tiny_base):
    return Pipeline.from_pretrained(tiny_base)


@pytest.fixture
def ours(shared):
    """Without LoRA before and after each test; for what changes the weights see ``fresh``."""
    yield shared
    if shared.adapters:
        shared.unload_lora()


@pytest.fixture
def fresh(tiny_base):
    return Pipeline.from_pretrained(tiny_base)


@pytest.fixture(scope="session")
def theirs(tiny_base):
    return opened_when_called(tiny_base)


@pytest.fixture(scope="session")
def latents():
    return np.random.default_rng(0).standard_normal((2, 8, 8, 4)).astype(np.float32)


@pytest.fixture(scope="session")
def plain(shared, latents):
    """What the base makes of ``latents`` without LoRA, in the steps of LoRA's tests."""
    return paint(shared, latents)


@pytest.fixture(scope="session")
def shapes(shared):
    """Of the UNet's layers, as PyTorch has them."""
    return layer_shapes(shared)["unet"]
