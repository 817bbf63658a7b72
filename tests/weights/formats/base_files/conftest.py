"""The tiny base's tensors by component and as one checkpoint, and its folder without weights."""

import shutil

import pytest

from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.formats.sdxl.opening import NORMALISE
from tests.weights.formats.sgm import checkpoint


@pytest.fixture(scope="session")
def state(tiny_base):
    out = {}
    for name in COMPONENTS:
        with open_component(tiny_base / name) as file:
            source = NORMALISE[name](file)
            out[name] = {key: source.read(key) for key in source.keys()}
    return out


@pytest.fixture(scope="session")
def whole(state, tiny_base):
    """A whole checkpoint's tensors, with sgm's names."""
    return checkpoint(state, read_config(tiny_base / "unet"))


@pytest.fixture(scope="session")
def bare(tiny_base, tmp_path_factory):
    """The directory without any weights."""
    folder = tmp_path_factory.mktemp("bare") / "base"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder
