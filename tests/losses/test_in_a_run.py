"""Any method takes the losses: a run logs them, resumes, and names their networks as no judges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax import train
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.sdxl.vae import AutoencoderKL
from persongen_jax.parallel.sharding import make_mesh, put_batch, replicated
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.diffusion import VAE
from persongen_jax.systems.open import open_system
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.formats.keypoint_net import save_keypoint_net
from tests.helpers.training_runs import changed, metrics, small_config
from tests.losses.test_decoded import TINY_VAE

NAMES = ("reconstruction", "keypoints", "proportions", "clip", "identity")


@pytest.fixture
def settings(small_base):
    config = small_config(small_base, "people:in_train?identities=4&pictures=3&framing=figures")
    config.lr_hint = 1e-2
    return changed(
        config,
        **{"method": "tests.losses.plain:Plain", "ema_decay": 0.0, "cpu_devices": 1},
        **{"steps": 2, "warmup_steps": 0, "checkpoint_every": 1, "log_every": 1},
        losses={name: {"weight": 1.0, "noise_to": 0.99} for name in NAMES},
        loss_pose_net=f"keypoints:{ASSETS / 'sdxl' / 'face_detector'}",
        loss_clip=str(ASSETS / "clip"),
        loss_face_net=str(ASSETS / "face_net" / "model.safetensors"),
    )


def test_a_loss_alone_moves_what_is_trained(settings, tmp_path):
    """A whole training step in which the denoising loss does not count."""
    sizes = {"image_size": 16, "widths": (8, 8), "hidden_features": 8}
    save_keypoint_net(KeypointNet(sizes, dtype=jnp.float32, rngs=nnx.Rngs(0)), tmp_path)
    own = changed(
        settings,
        **{"method": "tests.losses.plain:Alone", "loss_pose_net": f"keypoints:{tmp_path}"},
        losses_downscale=2,
    )
    with own.unlocked():
        own.losses = {"keypoints": {"weight": 3.0, "noise_to": 0.999}}
    mesh = make_mesh(jax.devices()[:1])
    system = open_system(own, mesh)
    # One layer compiles sooner than the base's; its latents are as large as the image.
    system.model.vae = AutoencoderKL(TINY_VAE, dtype=jnp.float32, rngs=nnx.Rngs(0))
    system.codec = VAE(system.model.vae)
    parts = assemble(system, mesh)
    before = {path: np.array(array) for path, array in parts.state.trainable.items()}
    batch = put_batch(mesh, next(iter(system.examples(0))))
    with jax.set_mesh(mesh):
        state, logged = parts.step(parts.state, parts.frozen, batch, np.int32(0))
    assert logged["loss"] == logged["loss_keypoints"] > 0 and logged["loss_keypoints_rows"] == 1
    assert logged["grad_norm"] > 0 and not logged["skipped"]
    assert before and all(np.any(state.trainable[path] != old) for path, old in before.items())


@pytest.mark.slow
def test_a_run_logs_its_losses_and_resumes(settings, tmp_path):
    # Those that compile soon; the others' values are in test_values.py.
    names = ("reconstruction", "keypoints", "proportions")
    with settings.unlocked():
        settings.losses = {name: settings.losses[name] for name in names}
    assert train.train(settings, tmp_path / "whole")
    for row in metrics(tmp_path / "whole"):
        assert all(row[f"loss_{name}"] > 0 for name in names)
        assert all(0 < row[f"loss_{name}_rows"] <= 1 for name in names)
    assert train.train(changed(settings, steps=1), tmp_path / "resumed")
    assert train.train(settings, tmp_path / "resumed")
    whole, resumed = (
        load_trained(tmp_path / name, replicated(make_mesh()))[0] for name in ("whole", "resumed")
    )
    assert whole and all(np.array_equal(resumed[path], array) for path, array in whole.items())


def test_networks_of_losses_are_no_judges_and_condition_nothing(settings):
    system = open_system(settings)
    assert "loss_networks" in system.trained_against
    assert not hasattr(system.model.conditioner(), "loss_networks")
    # One network serves both losses on joints.
    assert not hasattr(system.model.loss_networks, "proportions")
    names = [field.name for field in system.fields]
    assert sorted(names[-3:]) == ["caption_ids", "keypoints", "landmarks"]
    assert "vae/decoder/" not in system.unread()
