"""Training a ControlNet: dropping on its own; a run loaded, exported and read by diffusers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import persongen_jax
from persongen_jax import train
from persongen_jax.convert.__main__ import main as convert
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import leaf_paths
from persongen_jax.training.step import keys_of
from tests.helpers.training_runs import changed

DATA = "people:in_train?identities=4&pictures=3"


@pytest.fixture(scope="module")
def settings(config):
    changes = {"method": "controlnet", "data": DATA, "steps": 2, "warmup_steps": 0}
    changes |= {"checkpoint_every": 2, "lr_controlnet": 1e-2, "control_drop_prob": 0.5}
    return changed(config, **changes)


@pytest.fixture(scope="module")
def system(settings):
    return open_system(settings)


@pytest.fixture(scope="module")
def run(settings, tmp_path_factory):
    """The folder of a run."""
    workdir = tmp_path_factory.mktemp("controlnet")
    assert train.train(settings, workdir)
    return workdir


def test_the_pose_is_dropped_on_its_own_and_stays_on_the_unconditional_side(system):
    batch = next(system.examples(0))
    draws = [system.draw(keys_of(system.config.seed, step), batch) for step in range(8)]
    poses = np.stack([each["drop/pose"] for each in draws])
    assert poses.shape == (8, 4) and 0 < poses.mean() < 1
    assert not np.array_equal(poses, np.stack([each["drop"] for each in draws]))
    flags = jnp.array([True, False, True, False])
    dropped = system.drop(batch, jnp.array([True, True, False, False]), {"pose": flags})
    assert batch["pose"].any(axis=(1, 2, 3)).all()
    assert dropped["pose"].any(axis=(1, 2, 3)).tolist() == [False, True, False, True]
    empty = system.drop(batch, jnp.ones(4, bool))["input_ids"]["text"]
    same = [bool((dropped["input_ids"]["text"][i] == empty[i]).all()) for i in range(4)]
    assert same == [True, True, False, False]
    assert np.array_equal(system.drop(batch, jnp.ones(4, bool))["pose"], batch["pose"])


@pytest.mark.slow
def test_a_run_is_loaded_exported_and_read_by_diffusers(run, settings, tmp_path, capsys):
    workdir, base = run, settings.base
    out = tmp_path / "exported"
    convert(["export", str(workdir), "--format", "controlnet", str(out)])
    assert "ControlNet in diffusers' format" in capsys.readouterr().out
    from diffusers import ControlNetModel

    theirs = ControlNetModel.from_pretrained(out)
    image, found = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), []
    for path in (workdir, out):
        pipe = Pipeline.from_pretrained(base)
        pipe.load_controlnet(path)
        (net,) = pipe.controlnets.nets.values()
        mine = np.asarray(net.controlnet_mid_block.kernel[...])[0, 0].T
        weight = theirs.controlnet_mid_block.weight.detach().numpy()[..., 0, 0]
        assert np.array_equal(mine, weight) and mine.any()
        settings = {"num_inference_steps": 2, "output_type": "latent"}
        found.append(pipe("a man", control_image=image, **settings).images)
    assert np.array_equal(*found)
    # The same by the method, which reads the image by its name.
    pipe = Pipeline.from_pretrained(base)
    pipe.load_method(None, workdir)
    assert not pipe.reads_references
    by_method = pipe("a man", negative_prompt="", pose=[image], **settings).images
    pipe.unload_method()
    pipe.load_controlnet(workdir)
    by_net = pipe("a man", negative_prompt="", control_image=image, **settings).images
    assert np.abs(by_method - by_net).max() < 1e-5


@pytest.mark.slow
def test_it_starts_from_a_controlnet_in_diffusers_format(run, settings, tmp_path):
    workdir = run
    out = tmp_path / "exported"
    convert(["export", str(workdir), "--format", "controlnet", str(out)])
    first = open_system(changed(settings, start_from=str(out)))
    second = open_system(changed(settings, start_from=str(workdir)))
    assert first.model.controlnet.dtype == second.model.controlnet.dtype
    ours, theirs = leaf_paths(first.model.controlnet), leaf_paths(second.model.controlnet)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[p].get_value(), theirs[p].get_value()) for p in ours)
    # A run from it can be loaded when its start is there.
    assert train.train(changed(settings, start_from=str(out), steps=1), tmp_path / "run")
    pipe = Pipeline.from_pretrained(settings.base)
    pipe.load_method(None, Path(tmp_path / "run"))


@pytest.mark.slow
def test_a_run_of_another_method_is_refused(config, tmp_path):
    other = changed(config, method="ip_lora", steps=1, warmup_steps=0, checkpoint_every=1)
    assert train.train(other, tmp_path)
    pipe = Pipeline.from_pretrained(config.base)
    with pytest.raises(ValueError, match="trained no ControlNet, but ip_lora"):
        pipe.load_controlnet(tmp_path)


@pytest.mark.slow
def test_a_run_on_the_miniature_next_to_branches_and_a_lora(settings, tmp_path):
    """Its VAE makes latents of another size than SDXL's; the UNet has a method's layers by then."""
    assets = Path(persongen_jax.__file__).parent / "assets"
    here = changed(settings, base=str(assets / "sdxl"), id_encoder=str(assets / "clip"), steps=1)
    net, person = tmp_path / "net", tmp_path / "person"
    assert train.train(here, net)
    assert train.train(changed(here, method="ip_lora"), person)
    pipe = Pipeline.from_pretrained(here.base, param_dtype=jnp.bfloat16)
    pipe.load_method(None, person)
    pipe.load_controlnet(net)
    (loaded,) = pipe.controlnets.nets.values()
    assert loaded.controlnet_mid_block.kernel.dtype == jnp.bfloat16
