"""Training a ControlNet: dropping on its own; a run loaded, exported and read by diffusers."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax import train
from persongen_jax.convert.__main__ import main as convert
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.diffusion import OWN_DROP
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
def run(settings, tmp_path_factory):
    """(the folder of a run, the system as it began)."""
    workdir = tmp_path_factory.mktemp("controlnet")
    assert train.train(settings, workdir)
    return workdir, open_system(settings)


def test_the_pose_is_dropped_on_its_own_and_stays_on_the_unconditional_side(run):
    _, system = run
    batch = next(system.examples(0))
    draws = system.draw(keys_of(system.config.seed, 0), batch)
    again = system.draw(keys_of(system.config.seed, 1), batch)
    assert draws["drop/pose"].shape == draws["drop"].shape == (4,) and OWN_DROP
    assert any(not np.array_equal(draws[n], again[n]) for n in ("drop/pose", "timesteps"))
    flags = jnp.array([True, False, True, False])
    dropped = system.drop(batch, jnp.array([True, True, False, False]), {"pose": flags})
    assert batch["pose"].any(axis=(1, 2, 3)).all()
    assert dropped["pose"].any(axis=(1, 2, 3)).tolist() == [False, True, False, True]
    empty = system.drop(batch, jnp.ones(4, bool))["input_ids"]["text"]
    same = [bool((dropped["input_ids"]["text"][i] == empty[i]).all()) for i in range(4)]
    assert same == [True, True, False, False]
    assert np.array_equal(system.drop(batch, jnp.ones(4, bool))["pose"], batch["pose"])


def test_a_run_is_loaded_exported_and_read_by_diffusers(run, tmp_path, capsys):
    workdir, system = run
    out = tmp_path / "exported"
    convert(["export", str(workdir), "--format", "controlnet", str(out)])
    assert "ControlNet in diffusers' format" in capsys.readouterr().out
    from diffusers import ControlNetModel

    theirs = ControlNetModel.from_pretrained(out)
    image, found = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8), []
    for path in (workdir, out):
        pipe = Pipeline.from_pretrained(system.config.base)
        pipe.load_controlnet(path)
        (net,) = pipe.controlnets.nets.values()
        mine = np.asarray(net.controlnet_mid_block.kernel[...])[0, 0].T
        weight = theirs.controlnet_mid_block.weight.detach().numpy()[..., 0, 0]
        assert np.array_equal(mine, weight) and mine.any()
        settings = {"num_inference_steps": 2, "output_type": "latent"}
        found.append(pipe("a man", control_image=image, **settings).images)
    assert np.array_equal(*found)
    # The same by the method, which reads the image by its name.
    pipe = Pipeline.from_pretrained(system.config.base)
    pipe.load_method(None, workdir)
    assert not pipe.reads_references
    by_method = pipe("a man", negative_prompt="", pose=[image], **settings).images
    pipe.unload_method()
    pipe.load_controlnet(workdir)
    by_net = pipe("a man", negative_prompt="", control_image=image, **settings).images
    assert np.abs(by_method - by_net).max() < 1e-5


def test_it_starts_from_a_controlnet_in_diffusers_format(run, settings, tmp_path):
    workdir, _ = run
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


def test_a_run_of_another_method_is_refused(config, tmp_path):
    other = changed(config, method="ip_lora", steps=1, warmup_steps=0, checkpoint_every=1)
    assert train.train(other, tmp_path)
    pipe = Pipeline.from_pretrained(config.base)
    with pytest.raises(ValueError, match="trained no ControlNet, but ip_lora"):
        pipe.load_controlnet(tmp_path)
