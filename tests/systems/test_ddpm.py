"""The DDPM on attributes: conditioning, training, resuming, validation, on several devices."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from configs.attributes import celeba, digits, drawn_faces
from persongen_jax import evaluate
from persongen_jax.aot.programs import training, with_batch
from persongen_jax.diffusion.plan import make_plan
from persongen_jax.diffusion.schedule import training_target
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.platform import compile_for
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.systems import ddpm
from persongen_jax.systems.assembly import assemble, step_spec
from persongen_jax.systems.open import open_system
from persongen_jax.training import flop_count
from persongen_jax.training.partition import leaf_paths
from persongen_jax.training.trained import load_trained
from tests.parallel.test_sharding import MESHES, assert_same, finish, start
from tests.pipeline.test_saving import source_type
from tests.systems.ddpm_config import get_config

ROOT = Path(__file__).parents[2]

FIGURES = Path("validation", "metrics.jsonl")

SEED_UNET = {
    "sample_size": 64,
    "in_channels": 3,
    "out_channels": 3,
    "layers_per_block": 2,
    "block_out_channels": [32, 32, 32, 64],
    "down_block_types": ["DownBlock2D", *["AttnDownBlock2D"] * 3],
    "up_block_types": [*["AttnUpBlock2D"] * 3, "UpBlock2D"],
}


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def command(workdir, judge):
    options = [f"--workdir={workdir}", f"--config.classifier={judge}"]
    file = "--config=tests/systems/ddpm_config.py"
    return [sys.executable, "-m", "persongen_jax.train", file, *options]


def attribute_unet(conditioning, null, attributes=40):
    return nnx.eval_shape(
        lambda: ddpm.AttributeUNet(
            SEED_UNET,
            attributes,
            conditioning=conditioning,
            width=5,
            null=null,
            rngs=UnusedRngs(),
        )
    )


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))


def test_the_seed_s_network_has_its_number_of_parameters():
    """1,380,080: a UNet2DModel with five additional channels, and Linear(40, 5)."""
    assert count(attribute_unet("input", null=False)) == 1_380_080
    assert count(attribute_unet("input", null=True)) == 1_380_080 + 5


def test_celeba_s_config_is_the_seed_s():
    config = celeba.get_config()
    unet = ddpm.unet_config_of(config, config.size, 3)
    assert {name: unet[name] for name in SEED_UNET} == SEED_UNET
    assert (config.lr_model, config.batch_size, config.beta_schedule) == (
        1e-3,
        128,
        "squaredcos_cap_v2",
    )


def batch_of(system, n=4):
    batch = next(system.examples(0))
    return jax.tree.map(lambda a: jnp.asarray(a)[:n], batch)


def test_nothing_known_is_the_learned_embedding(system):
    k = len(system.data.vocabulary)
    known = jnp.zeros((2, k)).at[1, 0].set(1)
    embedded = system.model.embed(jnp.ones((2, k)), known)
    assert np.allclose(embedded[0], 0.3)
    assert not np.allclose(embedded[1], 0.3)


def test_values_of_unknown_attributes_do_not_matter(system):
    k = len(system.data.vocabulary)
    known = jnp.zeros((1, k)).at[0, 2].set(1)
    a, b = (system.model.embed(jnp.full((1, k), v).at[0, 2].set(1), known) for v in (0.0, 1.0))
    assert np.array_equal(a, b)


def test_the_attributes_reach_the_output(system):
    batch, (b, h, w, c) = batch_of(system), (4, 8, 8, 1)
    x, t = jax.random.normal(jax.random.key(0), (b, h, w, c)), jnp.full((b,), 500)
    asked = system.denoise(system.model, x, t, system.condition(system.model, batch))
    dropped = system.drop(batch, jnp.array([True, True, False, False]))
    without = system.denoise(system.model, x, t, system.condition(system.model, dropped))
    assert np.abs(asked - without)[:2].max() > 1e-4
    assert np.allclose(asked[2:], without[2:], atol=1e-6)


def test_an_unconditional_model_reads_no_attributes():
    config = get_config()
    config.conditioning, config.validation_guidance = "none", 0.0
    system = open_system(config)
    assert all(path.startswith("unet/") for path in leaf_paths(system.model))
    assert system.condition(system.model, batch_of(system)) is None
    noise = jax.random.normal(jax.random.key(0), (2, 8, 8, 1))
    inputs = {"batch": batch_of(system, 2), "guidance": None}
    plan = make_plan(system.scheduler_config, 2, "ddim")
    images = system.sample(system.model, inputs, noise, plan, None)
    assert images.shape == (2, 8, 8, 1) and float(images.min()) >= 0 and float(images.max()) <= 1


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("beta", ["linear", "squaredcos_cap_v2"])
def test_schedules_and_predictions(prediction, beta):
    """The loss of a model with the right answer is 0, for every kind of prediction."""
    config = get_config()
    config.prediction_type, config.beta_schedule, config.hide_prob = prediction, beta, 0.0
    system = open_system(config)
    batch, key = batch_of(system), jax.random.key(1)
    draws = system.draw(lambda purpose: jax.random.fold_in(key, purpose), batch)
    latents = batch["pixel_values"]
    target = training_target(system.schedule, latents, draws["noise"], draws["timesteps"])
    system.denoise = lambda *_: target
    assert float(jnp.abs(system.losses(system.model, batch, draws)["loss"]).max()) == 0
    ends = system.schedule.alphas_cumprod[[0, -1]]
    assert ends[0] > 0.999 and ends[1] < 1e-4


def hidden_of(config):
    config.hide_prob, config.batch_size = 1.0, 512
    system = ddpm.Ddpm.abstract(config)
    batch = {name: jnp.zeros(s.shape) for name, s in system.abstract_batch().items()}
    return np.asarray(system.draw(jax.random.key, batch)["hidden"])


def test_any_number_of_attributes_is_hidden_in_training():
    hidden = hidden_of(drawn_faces.get_config())
    numbers = np.bincount(hidden.sum(1), minlength=8) / len(hidden)
    assert (numbers > 0.06).all()  # an eighth each
    assert (np.abs(hidden.mean(0) - 0.5) < 0.1).all()


def test_a_class_is_hidden_as_a_whole():
    hidden = hidden_of(digits.get_config())
    assert (hidden.all(1) | ~hidden.any(1)).all() and 0.4 < hidden.mean() < 0.6


def test_it_trains_validates_and_opens(run, judge, tmp_path, capsys):
    log = rows(run / "metrics.jsonl")
    assert [row["step"] for row in log] == [3, 6, 9, 12]
    assert all(np.isfinite(row["loss"]) for row in log)
    first, last = rows(run / FIGURES)
    assert (first["step"], last["step"], last["set"]) == (0, 12, "seen")
    measure = last["metrics"]["attribute_accuracy"]
    assert measure["n"] == 24 and measure["judge"] == str(judge)
    assert set(measure["parts"]) <= {f"digit={i}" for i in range(10)}
    assert last["metrics"]["frechet_attributes"]["n_real"] == 300
    assert {"precision_attributes", "recall_attributes"} <= last["metrics"].keys()
    assert (run / "validation" / "step_000012_seen.png").stat().st_size > 1000

    evaluate.main(["--run", str(run), "--out", str(tmp_path)])
    said = capsys.readouterr().out
    assert "| attribute accuracy | seen |" in said and f"by {judge}" in said
    (row,) = json.loads((tmp_path / "metrics.json").read_text())
    assert row["metrics"]["attribute_accuracy"]["mean"] == measure["mean"]


def test_the_classifier_is_measured_on_pictures_held_out(judge, tmp_path, capsys):
    evaluate.main(["--run", str(judge), "--out", str(tmp_path), "--pictures"])
    (row,) = json.loads((tmp_path / "metrics.json").read_text())
    measure = row["metrics"]["accuracy"]
    real = list((tmp_path / "pictures").glob("*.png"))  # nothing is generated here
    assert real and all(source_type(path) is None for path in real)
    assert row["set"] == "held_out" and measure["n"] == 300 and len(measure["parts"]) == 10
    assert measure["mean"] > 0.3  # a moment's training; chance is 0.1
    assert "held-out" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_was_killed_ends_as_one_that_was_not(run, judge, tmp_path):
    words = command(tmp_path / "killed", judge)
    with subprocess.Popen(words, cwd=ROOT, start_new_session=True) as process:
        deadline = time.time() + 120
        while not (tmp_path / "killed" / "checkpoints" / "6").is_dir() and time.time() < deadline:
            assert process.poll() is None
            time.sleep(0.005)
        os.killpg(process.pid, signal.SIGKILL)
    subprocess.run(words, check=True, cwd=ROOT)
    folders = [tmp_path / "killed", run]
    ours, theirs = (load_trained(w, replicated(make_mesh()), 12)[0] for w in folders)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[path], theirs[path]) for path in ours)
    files = [folder / FIGURES for folder in folders]
    assert files[0].read_text() == files[1].read_text()


@pytest.mark.slow
def test_aot_builds_the_same_step():
    config, mesh = get_config(), make_mesh(jax.devices()[:1])
    program = training(with_batch(config, 16, 1), mesh, cached=False)
    parts = assemble(open_system(config, mesh), mesh)
    batch = next(parts.system.examples(0))
    with compile_for("tpu"):  # a CPU convolves upsampled images by fewer products
        real = flop_count.of_function(parts.step, parts.state, parts.frozen, batch, step_spec(mesh))
    assert program.flops() == real > 1e6


@pytest.mark.slow
def test_devices_change_nothing(tmp_path):
    meshes = MESHES[:3]  # the others shard frozen weights, which it does not have
    finish(start([tmp_path, "ddpm", "", *meshes], 8))
    for name in meshes[1:]:
        assert_same(tmp_path, name)


@pytest.mark.slow
def test_a_cpu_may_count_as_several_devices(run, judge, tmp_path):
    """Training and validation are the same up to rounding."""
    words = [*command(tmp_path, judge), "--config.cpu_devices=2"]
    told = subprocess.run(words, check=True, cwd=ROOT, capture_output=True, text=True)
    assert "2 x cpu" in told.stdout
    ours, theirs = (
        [row["loss"] for row in rows(folder / "metrics.jsonl")] for folder in (tmp_path, run)
    )
    np.testing.assert_allclose(ours, theirs, rtol=1e-3)
    ours, theirs = (
        [row["metrics"]["frechet_attributes"]["mean"] for row in rows(folder / FIGURES)]
        for folder in (tmp_path, run)
    )
    np.testing.assert_allclose(ours, theirs, rtol=0.02)
