"""The miniature's trainings and their losses. Its networks are judged by their figures."""

import json
import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax.miniature import stages
from persongen_jax.miniature.__main__ import main
from persongen_jax.miniature.losses import arcface_losses
from persongen_jax.miniature.pool import open_pool
from persongen_jax.miniature.stages import NEEDS, TRAINED, World
from persongen_jax.miniature.systems import vae
from persongen_jax.miniature.systems.base import open_network
from persongen_jax.miniature.systems.clip import contrastive_loss
from persongen_jax.miniature.systems.keypoint_net import NOBODY, Keypoints
from persongen_jax.miniature.systems.vae import CROP, box_mask
from persongen_jax.models.faces.keypoint_net import KeypointOutput
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.open import system_class
from persongen_jax.train import train
from persongen_jax.training.partition import leaf_paths
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.training_runs import metrics
from tests.miniature.small import STEPS, shrink_networks, small_config

# The first compiles quickly; the others take minutes.
EACH = [s if s == "face_net" else pytest.param(s, marks=pytest.mark.slow) for s in TRAINED]
SHAPES = [
    "vae",
    "clip",
    pytest.param("faces", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def small():
    """Small networks, short trainings, fast compilation."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        shrink_networks(monkeypatch)
        monkeypatch.setattr(stages, "get_config", small_config)
        monkeypatch.setattr(vae, "WHOLE", 0.5)
        jax.config.update("jax_disable_most_optimizations", True)
        yield monkeypatch
        jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(scope="module")
def world(small, tmp_path_factory):
    work = tmp_path_factory.mktemp("miniature")
    open_pool(work, people=3)
    return World(work)


def trained(workdir):
    """Arrays by path."""
    return jax.tree.map(np.asarray, load_trained(workdir, replicated(make_mesh()))[0])


def assert_same(a, b):
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path], err_msg=path)


# ---- Runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", EACH)
def test_a_run_that_was_cut_short_ends_as_the_whole_one(world, stage, tmp_path):
    world.network(stage)
    whole, cut = world.work / stage, tmp_path / stage
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "checkpoints" / str(STEPS))  # stopped after the first checkpoint
    train(small_config(stage, world.work), cut)
    assert_same(trained(cut), trained(whole))
    assert metrics(cut) == metrics(whole)
    assert [row["step"] for row in metrics(whole)] == [*range(1, STEPS + 1)]
    assert not any(row["skipped"] for row in metrics(whole))


@pytest.mark.parametrize("stage", SHAPES)
def test_a_step_in_shapes_alone(world, stage):
    """What is trained, and that the step accepts the examples, of every shape."""
    for needed in NEEDS.get(stage, ()):
        world.network(needed)
    config = small_config(stage, world.work)
    system = system_class(config.system).abstract(config)
    parts = assemble(system, make_mesh())
    for spec in system.source().specs:
        batch = {n: jax.ShapeDtypeStruct((6, *s), d) for n, (s, d) in spec.items()}
        step = jax.ShapeDtypeStruct((), jnp.int32)
        state, told = jax.eval_shape(parts.step, parts.state, parts.frozen, batch, step)
        assert told["loss"].shape == ()
        assert state.trainable.keys() == moving(leaf_paths(system.model), stage)


@pytest.mark.parametrize("stage", [pytest.param("vae", marks=pytest.mark.slow), "face_net"])
def test_the_loss_falls(world, stage):
    world.network(stage)
    losses = [row["loss"] for row in metrics(world.work / stage)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.slow
def test_a_signal_ends_the_command_which_then_goes_on(world, small, tmp_path, capsys):
    """``python -m persongen_jax.miniature``, stopped while its sixth batch is made.

    Earlier batches may be prefetched while a signal still simply ends the process.
    """
    shutil.copytree(world.work / "pool", tmp_path / "pool")
    example = Keypoints.example

    def and_stop(self, rng, n):
        if n == 5 * self.config.batch_size:
            os.kill(os.getpid(), signal.SIGTERM)
        return example(self, rng, n)

    command = ["--work", str(tmp_path), "--only", "keypoint_net"]
    with small.context() as patch:
        patch.setattr(Keypoints, "example", and_stop)
        assert main(command) == 0
        assert "the same command continues" in capsys.readouterr().out
        with pytest.raises(ValueError, match=r"keypoint_net: \d of 8 steps are done; .*--only"):
            open_network(tmp_path, "keypoint_net")
    assert main(command) == 0
    world.network("keypoint_net")
    assert_same(trained(tmp_path / "keypoint_net"), trained(world.work / "keypoint_net"))


def test_a_finished_run_is_not_trained_again(world):
    first = world.network("keypoint_net")
    log = (world.work / "keypoint_net" / "metrics.jsonl").read_text()
    again = World(world.work).network("keypoint_net")
    for path, leaf in leaf_paths(first).items():
        np.testing.assert_array_equal(leaf[...], leaf_paths(again)[path][...])
    assert (world.work / "keypoint_net" / "metrics.jsonl").read_text() == log


def test_a_run_of_another_network_is_refused(world, small):
    world.network("keypoint_net")
    with small.context() as patch:
        patch.setitem(stages.sizes.KEYPOINT_NET, "widths", (8, 16))
        with pytest.raises(ValueError, match=r"keypoint_net/.* other arrays: .* remove that one"):
            World(world.work).network("keypoint_net")


def test_a_run_with_other_settings_is_refused(world, small):
    world.network("keypoint_net")

    def other(stage, work):
        config = small_config(stage, work)
        config.seed += 1
        return config

    with small.context() as patch:
        patch.setattr(stages, "get_config", other)
        with pytest.raises(ValueError, match="another config .* seed: 4 -> 5"):
            World(world.work).network("keypoint_net")


PARTS = {
    "vae": ("",),
    "clip": ("",),
    "faces": ("vision/", "people/"),
}


def moving(paths, stage):
    """The paths of what a stage trains."""
    return {path for path in paths if path.startswith(PARTS[stage])}


@pytest.mark.slow
def test_only_the_image_tower_learns_faces(world):
    before, after = leaf_paths(world.network("clip")), leaf_paths(world.network("faces"))
    same = {path for path in after if np.array_equal(before[path][...], after[path][...])}
    assert same == after.keys() - moving(after, "faces")


def test_the_face_net_keeps_its_running_statistics(world):
    net = world.network("face_net").net
    assert np.abs(net.bn1.running_mean[...]).max() > 0.01
    assert {"net/bn1/running_mean", "net/bn1/running_var"} < trained(world.work / "face_net").keys()


def test_crops_come_first_and_whole_pictures_last(world):
    config = small_config("vae", world.work)
    source = system_class(config.system).abstract(config).source()
    shapes = [source.example(n * config.batch_size)["image"].shape for n in range(STEPS)]
    assert shapes == [(CROP, CROP, 3)] * (STEPS // 2) + [(64, 64, 3)] * (STEPS // 2)
    assert [spec["image"][0] for spec in source.specs] == [shapes[0], shapes[-1]]


def test_costs_are_read_from_the_log(tmp_path):
    rows = [{"step": 50, "images_per_second": 100.0}, {"step": 80, "images_per_second": 50.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "config.json").write_text(json.dumps({"batch_size": 10}))
    assert stages.cost_of(tmp_path) == {"steps": 80, "seconds": 50 * 10 / 100 + 30 * 10 / 50}


@pytest.mark.slow
def test_what_is_written_opens(world, tmp_path):
    from persongen_jax.pipeline import Pipeline
    from persongen_jax.weights.formats.arcface import load_arcface
    from persongen_jax.weights.formats.clip import load_clip
    from persongen_jax.weights.formats.keypoint_net import load_keypoint_net

    stages.write(world, tmp_path)
    pipe = Pipeline.from_pretrained(tmp_path / "sdxl")
    image = pipe("a photo of a man", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3) and np.isfinite(image).all()
    assert pipe.model.vae.config["scaling_factor"] != 1.0
    load_clip(tmp_path / "clip")
    load_arcface(tmp_path / "face_net" / "model.safetensors", input_size=40)
    load_keypoint_net(tmp_path / "sdxl" / "face_detector")
    judges = tmp_path / "judges"
    load_clip(judges / "clip")
    load_arcface(judges / "face_net" / "model.safetensors", input_size=40)
    parts = load_arcface(judges / "face_parts" / "model.safetensors", input_size=48).model
    assert parts.config["embedding_dim"] == 5
    load_keypoint_net(judges / "face_detector")
    costs = json.loads((tmp_path / "miniature.json").read_text())["trained"]
    assert costs.keys() == set(TRAINED)
    assert all(cost["steps"] == STEPS and cost["seconds"] > 0 for cost in costs.values())


@pytest.mark.slow
def test_the_shipped_unet_is_trained_further(world, tmp_path):
    stages.write(world, tmp_path)
    config = small_config("unet", world.work)
    config.assets, config.go_on = str(tmp_path), True
    system = system_class(config.system).open(config)
    shipped = leaf_paths(load_sdxl(tmp_path / "sdxl").model.unet)
    found = leaf_paths(system.model.unet)
    assert found.keys() == shipped.keys()
    for path, leaf in shipped.items():
        np.testing.assert_array_equal(found[path][...], leaf[...])
    example = system.source().example(0)
    names = world.work / "shipped" / "face_features.npy"
    assert names.exists() and np.isfinite(example["name"]).all()
    config.go_on = False
    other = leaf_paths(system_class(config.system).open(config).model.unet)
    assert any((other[path][...] != leaf[...]).any() for path, leaf in shipped.items())
    config.assets, config.go_on = "", True
    with pytest.raises(ValueError, match=r"name the folder .*, config\.assets"):
        system_class(config.system).open(config)
    stages.train_longer(world.work, tmp_path)
    longer = leaf_paths(open_network(world.work, "unet_longer").unet)
    for path, leaf in leaf_paths(load_sdxl(tmp_path / "sdxl").model.unet).items():
        expected = longer[path][...].astype(np.float16)
        np.testing.assert_array_equal(leaf[...].astype(np.float16), expected)
    costs = json.loads((tmp_path / "miniature.json").read_text())["trained"]
    assert costs["unet_longer"]["steps"] == STEPS


# ---- Losses ------------------------------------------------------------------------------------


def test_arcface_loss_is_the_papers_formula():
    rng = np.random.default_rng(0)
    embeddings, centres = rng.normal(size=(6, 8)), rng.normal(size=(5, 8))
    people = rng.integers(0, 5, 6)
    a = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    b = centres / np.linalg.norm(centres, axis=1, keepdims=True)
    angle = np.arccos(a @ b.T)
    assert angle.max() + 0.3 < np.pi  # beyond it another branch holds
    angle[np.arange(6), people] += 0.3
    logits = 24.0 * np.cos(angle)
    expected = np.log(np.exp(logits).sum(1)) - logits[np.arange(6), people]
    found = jax.jit(arcface_losses)(embeddings, centres, people)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_arcface_loss_still_falls_towards_the_centre_at_the_far_end():
    centres = jnp.array([[1.0, 0, 0], [0, 0, 1.0]])  # the other one is always at a right angle

    def loss(angle):
        here = jnp.array([[jnp.cos(angle), jnp.sin(angle), 0.0]])
        return arcface_losses(here, centres, jnp.array([0]))[0]

    assert jax.jit(jax.grad(loss))(3.1) > 0


def test_contrast_is_the_mean_of_both_directions():
    rng = np.random.default_rng(1)
    images, texts = rng.normal(size=(2, 5, 8)).astype(np.float32)
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, texts))
    logits = 7 * a @ b.T
    of_images = np.log(np.exp(logits).sum(1)) - np.diag(logits)
    of_texts = np.log(np.exp(logits).sum(0)) - np.diag(logits)
    losses, right = jax.jit(contrastive_loss)(images, texts, 7.0)
    np.testing.assert_allclose(losses, (of_images + of_texts) / 2, rtol=1e-4)
    np.testing.assert_array_equal(right, logits.argmax(1) == np.arange(5))


def test_positions_count_where_there_is_a_face():
    """The mean over the batch of values missing without a face equals that over the others."""
    b = 2 * NOBODY
    somebody = (np.arange(b) % NOBODY > 0).astype(np.float32)
    places = {"face_box": (4,), "landmarks": (5, 2), "keypoints": (12, 2)}
    truth = {name: np.zeros((b, *shape), np.float32) for name, shape in places.items()}
    off = 0.1 + np.arange(b, dtype=np.float32)
    found = {k: x + off.reshape(-1, *[1] * (x.ndim - 1)) for k, x in truth.items()}
    out = KeypointOutput(np.zeros(b, "f4"), *found.values(), np.zeros((b, 12), "f4"))
    batch = {"image": np.zeros((b, 64, 64, 3), np.uint8), "somebody": somebody, **truth}
    batch["visibility"] = np.ones((b, 12), "f4")
    losses = jax.jit(lambda batch: Keypoints.losses(None, lambda _: out, batch, {}))(batch)
    np.testing.assert_allclose(losses["box"].mean(), off[somebody > 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(losses["landmarks"].mean(), 2 * off[somebody > 0].mean(), rtol=1e-5)
    np.testing.assert_allclose(losses["present"], np.log(2), rtol=1e-5)


# ---- Crops -------------------------------------------------------------------------------------


def test_crops_hold_the_face_they_point_at():
    rng = np.random.default_rng(1)
    image = np.zeros((64, 64, 3), np.uint8)
    image[20:28, 30:40] = 255
    box = np.array([30, 20, 40, 28], np.float32)
    corners = [vae.crop_corner(rng, box) for _ in range(32)]
    pieces = np.stack([vae.crop(image, corner) for corner in corners])
    assert pieces.shape == (32, CROP, CROP, 3)
    mask = np.asarray(box_mask(np.stack([vae.shift_box(box, corner) for corner in corners]), CROP))
    np.testing.assert_array_equal(mask > 0, pieces[..., 0] > 0)
    assert (mask.sum((1, 2)) == 80).sum() >= 16  # half of them are around the face
