"""Runs and pictures on a base whose frozen kernels are held in 8 bits."""

import re

import jax
import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.lora import loras, quantised_as
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.open import abstract_system, open_run, open_system
from persongen_jax.train import train
from persongen_jax.training.partition import leaf_paths
from persongen_jax.training.trained import load_trained
from tests.helpers.training_runs import changed, small_config

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def config(small_base, sample_photos):
    config = small_config(small_base, sample_photos)
    config.quantize, config.steps, config.checkpoint_every = "int8", 4, 2
    return config


def test_a_run_goes_on_bit_by_bit_and_is_opened_as_it_was_trained(config, tmp_path):
    def trained(workdir):
        return load_trained(workdir, replicated(make_mesh()))[0]

    assert train(config, tmp_path / "whole")
    assert train(changed(config, steps=2), tmp_path / "parts")
    with pytest.raises(ValueError, match="quantize: 'int8' -> 'fp8'"):
        train(changed(config, quantize="fp8"), tmp_path / "parts")
    assert train(config, tmp_path / "parts")
    whole, parts = trained(tmp_path / "whole"), trained(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    assert all(np.array_equal(whole[path], parts[path]) for path in whole)
    run = open_run(tmp_path / "whole")
    assert not quantised_as(run.system.model.unet.conv_in)
    assert quantised_as(run.system.model.unet.down_blocks[0].resnets[0].conv1) == "int8"


def test_shapes_alone_are_those_of_the_opened_system(config):
    shapes, system = abstract_system(config).model, open_system(config)
    parts = ("unet", "text_encoder", "text_encoder_2", "vae")

    def stored(model):
        leaves = jax.tree_util.tree_leaves_with_path([nnx.state(getattr(model, p)) for p in parts])
        return {jax.tree_util.keystr(path): (x.shape, x.dtype) for path, x in leaves}

    assert stored(shapes) == stored(system.model)
    assert not any(x.dtype == "int8" for x in jax.tree.leaves(nnx.state(system.model.vae)))
    assert loras(system.model.unet)
    codes = [x for x in jax.tree.leaves(nnx.state(system.model.unet)) if x.dtype == "int8"]
    kernels = [path for path in leaf_paths(system.model.unet) if path.endswith("/kernel")]
    whole = [path for path in kernels if re.match("conv_(in|out)|(time|add)_embedding", path)]
    assert len(codes) == len(kernels) - len(whole) and len(whole) == 6


def test_pictures_and_what_is_refused(small_base, tmp_path):
    call = {"num_inference_steps": 2, "height": 64, "width": 64, "output_type": "np", "seed": 1}
    whole = Pipeline.from_pretrained(small_base)("a face", **call).images
    pipe = Pipeline.from_pretrained(small_base, quantize="fp8")
    assert quantised_as(pipe.model.text_encoder_2.text_projection) == "fp8"
    error = np.sqrt(np.square(pipe("a face", **call).images - whole).mean())
    assert 0 < error < 0.05
    with pytest.raises(ValueError, match="the base cannot be saved: .* fp8; open the base without"):
        pipe.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()
    with pytest.raises(ValueError, match="quantize='int3': use 'int8', 'fp8'"):
        Pipeline.from_pretrained(small_base, quantize="int3")
