"""Decoding within a step: windows, finite gradients, sizes; gradients by finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.schedule import NoiseSchedule, add_noise, training_target
from persongen_jax.losses.base import Decoded
from persongen_jax.losses.decoded import DecodedLosses, add_to, reduced
from persongen_jax.losses.keypoints import Keypoints
from persongen_jax.losses.pose_readers import KeypointReader
from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.sdxl.vae import AutoencoderKL, decode_batch
from persongen_jax.systems.diffusion import Step
from persongen_jax.systems.sdxl_config import sdxl_defaults
from tests.systems.test_diffusion_step import SMALL_VAE

SHAPE, LATE = (4, 4, 4, 3), 999


def step_of(timesteps, **schedule):
    """Random latents, and a prediction that is somewhat off."""
    schedule = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", **schedule})
    latents, noise, error = jax.random.normal(jax.random.key(0), (3, *SHAPE))
    noisy = add_noise(schedule, latents, noise, timesteps)
    target = training_target(schedule, latents, noise, timesteps)
    mse = jnp.full(SHAPE[0], 2.0)
    pred = target + 0.1 * error
    return Step(mse, pred, target, latents, noisy, timesteps, None, schedule, None)


def decode(latents):
    """Twice the side; a stand-in that shows what reaches the decoder."""
    return jax.nn.sigmoid(jnp.repeat(jnp.repeat(latents, 2, 1), 2, 2))


def losses_of(step, downscale=1, **table):
    config = sdxl_defaults()
    config.losses, config.losses_downscale = {"reconstruction": table}, downscale
    return DecodedLosses(config, step.schedule)


def test_a_term_acts_in_its_window_and_adds_its_weight():
    timesteps = jnp.array([0, 200, 500, LATE])
    step = step_of(timesteps)
    levels = np.sqrt(1 - step.schedule.alphas_cumprod[np.array(timesteps)])
    losses = losses_of(step, weight=0.3, noise_from=float(levels[1]) - 1e-4, noise_to=0.9)
    pixels = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1)
    out = losses(None, {"pixel_values": pixels}, step, decode)
    wanted = np.mean((decode(step.x0()) - (pixels / 2 + 0.5)) ** 2, (1, 2, 3))
    acts = (levels >= levels[1] - 1e-4) & (levels <= 0.9)
    assert acts.tolist() == [False, True, True, False]
    np.testing.assert_allclose(out["loss_reconstruction"], 0.3 * wanted * acts, rtol=1e-4)
    assert out["loss_reconstruction_rows"].tolist() == acts.tolist()
    both = add_to({"loss": step.mse}, out)
    np.testing.assert_allclose(both["loss"], step.mse + out["loss_reconstruction"])
    assert add_to({"loss": step.mse}, {}) == {"loss": step.mse}


def test_without_pixels_the_target_is_decoded():
    step = step_of(jnp.array([10, 20, 30, 40]))
    out = losses_of(step, weight=1.0)(None, {}, step, decode)
    wanted = np.mean((decode(step.x0()) - decode(step.latents)) ** 2, (1, 2, 3))
    np.testing.assert_allclose(out["loss_reconstruction"], wanted, rtol=1e-4)


def test_no_signal_at_all_leaves_values_and_gradients_finite():
    """Noise is predicted, and the last timestep has no signal: its x̂₀ is infinite."""
    timesteps = jnp.array([0, 100, LATE, LATE])
    step = step_of(timesteps, rescale_betas_zero_snr=True)
    assert not np.isfinite(step.x0()).all()
    losses = losses_of(step, weight=1.0)

    def total(pred):
        out = losses(None, {}, Step(**{**vars(step), "pred": pred}), decode)
        return out["loss_reconstruction"].sum()

    value, gradient = jax.value_and_grad(total)(step.pred)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    assert np.abs(gradient[:2]).max() > 0 and (gradient[2:] == 0).all()


def test_a_reduced_decode_sees_averaged_latents_and_the_target_smaller():
    step = step_of(jnp.array([10, 20, 30, 40]))
    pixels = jax.random.uniform(jax.random.key(1), (4, 8, 8, 3), minval=-1)
    out = losses_of(step, downscale=2, weight=1.0)(None, {"pixel_values": pixels}, step, decode)

    def average(x):
        return np.asarray(x).reshape(4, x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean((2, 4))

    wanted = np.mean((decode(average(step.x0())) - average(pixels / 2 + 0.5)) ** 2, (1, 2, 3))
    np.testing.assert_allclose(out["loss_reconstruction"], wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="losses_downscale=3: latents of 4 x 4 cannot"):
        reduced(step.latents, 3)


def test_gradients_through_keypoint_net_and_decoder_by_finite_differences():
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        vae = AutoencoderKL({**SMALL_VAE, "mid_block_add_attention": False}, **kw)
        config = {"image_size": 16, "widths": (8, 8), "hidden_features": 8}
        reader = KeypointReader(KeypointNet(config, **kw))
        settings = sdxl_defaults()
        settings.loss_pose_net = "keypoints:x"
        loss = Keypoints(settings)
        rng = np.random.default_rng(0)
        latents = jnp.asarray(0.3 * rng.standard_normal((1, 4, 4, 4)))
        batch = {"keypoints": jnp.asarray(16 * rng.random((1, 12, 2)))}
        batch["keypoints_mask"] = jnp.asarray(rng.random((1, 12)) < 0.7)

        @jax.jit
        def total(latents):
            images = decode_batch(vae, latents)
            given = Decoded(images, (8, 8), lambda: None, batch)
            return jax.checkpoint(lambda: loss(reader, given)[0].sum())()

        gradient = jax.jit(jax.grad(total))(latents)
        assert gradient.dtype == jnp.float64 and np.abs(gradient).max() > 0
        for _ in range(4):
            direction = jnp.asarray(rng.standard_normal(latents.shape))
            there, back = (total(latents + s * 1e-5 * direction) for s in (1, -1))
            wanted = (there - back) / 2e-5
            assert abs((gradient * direction).sum() - wanted) < 1e-4 * abs(wanted)
