"""Decoding within a step: windows, finite gradients, sizes; gradients by finite differences."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.losses.base import Decoded
from persongen_jax.losses.decoded import LOSSES, DecodedLosses, add_to, reduced
from persongen_jax.losses.keypoints import Keypoints
from persongen_jax.losses.pose_readers import KeypointReader
from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.vae import AutoencoderKL, decode_batch
from persongen_jax.systems.diffusion import Step
from persongen_jax.systems.sdxl_config import sdxl_defaults

TINY_VAE = {
    "block_out_channels": [8],
    "down_block_types": ["DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D"],
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 1.0,
    "mid_block_add_attention": False,
}
SHAPE, LATE, FACTOR = (4, 4, 4, 3), 999, 2


def step_of(timesteps, **schedule):
    """Random latents, and a prediction that is somewhat off."""
    schedule = NoiseSchedule.from_config({"beta_schedule": "scaled_linear", **schedule})
    latents, noise, error = np.random.default_rng(0).standard_normal((3, *SHAPE), np.float32)
    signal = schedule.alphas_cumprod[np.array(timesteps)].reshape(-1, 1, 1, 1)
    noisy = np.sqrt(signal) * latents + np.sqrt(1 - signal) * noise
    arrays = (noise + 0.1 * error, noise, latents, noisy, np.array(timesteps))
    mse = jnp.full(SHAPE[0], 2.0)
    return Step(mse, *map(jnp.asarray, arrays), None, schedule, None)


def x0_of(step):
    """What the prediction of noise implies, in NumPy."""
    signal = step.schedule.alphas_cumprod[np.asarray(step.timesteps)].reshape(-1, 1, 1, 1)
    return (np.asarray(step.noisy) - np.sqrt(1 - signal) * np.asarray(step.pred)) / np.sqrt(signal)


def decode(latents, xp=jnp):
    """Twice the side; in place of a decoder, to show what reaches it."""
    return 1 / (1 + xp.exp(-xp.repeat(xp.repeat(latents, 2, 1), 2, 2)))


def losses_of(step, downscale=1, **table):
    config = sdxl_defaults()
    config.losses, config.losses_downscale = {"reconstruction": table}, downscale
    return DecodedLosses(config, step.schedule)


def run(losses, step, **batch):
    """Compiled as a whole, which is faster than operation by operation."""
    return jax.jit(lambda: losses(None, batch, step, decode, FACTOR))()


def pixels():
    return np.random.default_rng(1).uniform(-1, 1, (4, 8, 8, 3)).astype(np.float32)


def mean_square(a, b):
    return np.mean((a - b) ** 2, (1, 2, 3))


def test_a_term_acts_in_its_window_and_adds_its_weight():
    step = step_of([0, 200, 500, LATE])
    levels = np.sqrt(1 - step.schedule.alphas_cumprod[np.array(step.timesteps)])
    losses = losses_of(step, weight=0.3, noise_from=float(levels[1]) - 1e-4, noise_to=0.9)
    out = run(losses, step, pixel_values=pixels())
    wanted = 0.3 * mean_square(decode(x0_of(step), np), pixels() / 2 + 0.5)
    acts = np.array([False, True, True, False])
    np.testing.assert_allclose(out["loss_reconstruction"], wanted * acts, rtol=1e-4)
    assert out["loss_reconstruction_rows"].tolist() == acts.tolist()
    both = add_to({"loss": step.mse, "far": step.mse}, out)
    np.testing.assert_allclose(both["loss"], 2 + np.asarray(out["loss_reconstruction"]))
    assert add_to({"loss": step.mse}, {}) == {"loss": step.mse}


def test_without_pixels_the_target_is_decoded():
    step = step_of([10, 20, 30, 40])
    out = run(losses_of(step, weight=1.0), step)
    wanted = mean_square(decode(x0_of(step), np), decode(np.asarray(step.latents), np))
    np.testing.assert_allclose(out["loss_reconstruction"], wanted, rtol=1e-4)


def test_no_signal_at_all_leaves_values_and_gradients_finite():
    """Noise is predicted, and the last timestep has no signal: its x̂₀ is infinite."""
    step = step_of([0, 100, LATE, LATE], rescale_betas_zero_snr=True)
    with np.errstate(divide="ignore"):
        assert not np.isfinite(x0_of(step)[2:]).any()
    losses = losses_of(step, weight=1.0)

    def total(pred):
        out = losses(None, {}, replace(step, pred=pred), decode, FACTOR)
        return out["loss_reconstruction"].sum()

    value, gradient = jax.jit(jax.value_and_grad(total))(step.pred)
    assert np.isfinite(value) and np.isfinite(gradient).all()
    gradient = np.abs(gradient)
    assert gradient[:2].max() > 0 and (gradient[2:] == 0).all()


def test_a_reduced_decode_sees_averaged_latents_and_the_target_smaller():
    step = step_of([10, 20, 30, 40])
    out = run(losses_of(step, downscale=2, weight=1.0), step, pixel_values=pixels())

    def average(x):
        return x.reshape(4, x.shape[1] // 2, 2, x.shape[2] // 2, 2, 3).mean((2, 4))

    wanted = mean_square(decode(average(x0_of(step)), np), average(pixels() / 2 + 0.5))
    np.testing.assert_allclose(out["loss_reconstruction"], wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="losses_downscale=3: latents of 4 x 4 cannot"):
        reduced(step.latents, 3)


@pytest.mark.parametrize("reads_condition", [True, False])
def test_what_compares_with_the_condition_does_not_act_where_that_was_dropped(reads_condition):
    step = replace(step_of([10, 20, 30, 40]), drop=jnp.array([True, False, False, True]))
    losses = losses_of(step, weight=1.0)
    losses.losses["reconstruction"].reads_condition = reads_condition
    out = run(losses, step)
    wanted = [0, 1, 1, 0] if reads_condition else [1] * 4
    assert out["loss_reconstruction_rows"].tolist() == wanted
    assert (np.asarray(out["loss_reconstruction"]) > 0).tolist() == wanted


def test_losses_on_prompt_or_references_are_those_that_compare_with_them():
    assert {name for name, loss in LOSSES.items() if loss.reads_condition} == {"clip", "identity"}


def test_little_is_kept_between_the_passes():
    """By the activations that a traced backward function holds; nothing is compiled."""
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    config = {**TINY_VAE, "block_out_channels": [8, 8]}
    config |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    config |= {"down_block_types": ["DownEncoderBlock2D"] * 2}
    graphdef, state = nnx.split(nnx.eval_shape(lambda: AutoencoderKL(config, **kw)))
    latents = jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32)

    def kept(remat):
        def back(state, latents):
            vae = nnx.merge(graphdef, state)
            return jax.vjp(lambda x: vae.decode(x, remat=remat), latents)[1]

        leaves = jax.tree.leaves(jax.eval_shape(back, state, latents))
        return sum(leaf.size for leaf in leaves if leaf.ndim and leaf.shape[0] == 2)

    assert kept(remat=True) < kept(remat=False) / 3


@pytest.mark.slow
def test_gradients_through_keypoint_net_and_decoder_by_finite_differences():
    with jax.enable_x64(True):
        kw = {"dtype": jnp.float64, "param_dtype": jnp.float64, "rngs": nnx.Rngs(0)}
        vae = AutoencoderKL(TINY_VAE, **kw)
        config = {"image_size": 8, "widths": (8,), "hidden_features": 8}
        reader = KeypointReader(KeypointNet(config, **kw))
        settings = sdxl_defaults()
        settings.loss_pose_net = "keypoints:x"
        loss = Keypoints(settings)
        rng = np.random.default_rng(0)
        latents = jnp.asarray(0.3 * rng.standard_normal((1, 6, 6, 4)))
        batch = {"keypoints": jnp.asarray(6 * rng.random((1, 12, 2)))}
        batch["keypoints_mask"] = jnp.asarray(rng.random((1, 12)) < 0.7)

        @jax.jit
        @jax.value_and_grad
        def slope(latents):
            images = decode_batch(vae, latents)
            given = Decoded(images, (6, 6), lambda: None, batch)
            return jax.checkpoint(lambda: loss(reader, given)[0].sum())()

        gradient = slope(latents)[1]
        assert gradient.dtype == jnp.float64 and np.abs(gradient).max() > 0
        for _ in range(4):
            direction = jnp.asarray(rng.standard_normal(latents.shape))
            there, back = (slope(latents + s * 1e-5 * direction)[0] for s in (1, -1))
            wanted = (there - back) / 2e-5
            assert abs((gradient * direction).sum() - wanted) < 1e-4 * abs(wanted)
