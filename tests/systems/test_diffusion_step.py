"""The inputs of losses: the clean latents that a prediction implies, and their image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.schedule import NoiseSchedule, add_noise, training_target
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.vae import AutoencoderKL
from persongen_jax.systems.diffusion import VAE, DiffusionSystem, Pixels, Step
from persongen_jax.systems.drawn_weights import with_random_weights

SHAPE = (3, 4, 4, 4)
SMALL_VAE = {
    "block_out_channels": [8, 8],
    "down_block_types": ["DownEncoderBlock2D"] * 2,
    "up_block_types": ["UpDecoderBlock2D"] * 2,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
    "scaling_factor": 1.0,
}


def make_step(prediction_type, decode=None):
    """With ``pred`` the target, at an early, a middle and the last timestep."""
    schedule = NoiseSchedule.from_config({"prediction_type": prediction_type})
    latents, noise = jax.random.normal(jax.random.key(0), (2, *SHAPE))
    timesteps = jnp.array([5, 500, 999])
    noisy = add_noise(schedule, latents, noise, timesteps)
    target = training_target(schedule, latents, noise, timesteps)
    mse = jnp.zeros(len(latents))
    return Step(mse, target, target, latents, noisy, timesteps, None, schedule, decode)


class Half(DiffusionSystem):
    """Predicts half of what it sees."""

    codec, fields, schedule = Pixels(1), (), NoiseSchedule.from_config({})

    def __init__(self, config):
        self.config, self.model = config, nnx.Module()

    def source(self):
        raise AssertionError("it is given batches")

    def condition(self, model, batch):
        return None

    def denoise(self, model, x, t, condition, step=None):
        return x / 2


def test_an_objective_on_x0_weights_the_loss_of_a_system():
    rng = np.random.default_rng(0)
    pixels, noise = rng.standard_normal((2, 3, 4, 4, 1), np.float32)
    draws = {"latents": noise, "noise": noise, "timesteps": np.array([5, 500, 999])}
    draws["drop"] = np.zeros(3, bool)

    def loss(**settings):
        config = Half.defaults()
        config.update(settings)
        system = Half(config)
        system.check_objective()
        return np.asarray(system.losses(system.model, {"pixel_values": pixels}, draws)["loss"])

    plain = loss()
    signal = Half.schedule.alphas_cumprod[draws["timesteps"]]
    for name, weights in (("constant", 1), ("truncated_snr", np.maximum(signal / (1 - signal), 1))):
        wanted = plain * weights * (1 - signal) / signal
        np.testing.assert_allclose(loss(x0_weighting=name), wanted, rtol=1e-4)
    with pytest.raises(ValueError, match="'snr' and config.min_snr_gamma=5 both weight by"):
        loss(x0_weighting="snr", min_snr_gamma=5.0)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_perfect_prediction_means_the_clean_latents(prediction_type):
    step = make_step(prediction_type)
    # At the last timestep epsilon's error is divided by a signal of 0.07; float32.
    assert np.allclose(step.x0(), step.latents, atol=1e-4)
    assert not np.allclose(step.noisy, step.latents, atol=0.1)


def test_the_image_is_differentiable():
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    model = nnx.Module()
    model.vae = with_random_weights(nnx.eval_shape(lambda: AutoencoderKL(SMALL_VAE, **kw)))
    codec = VAE(model.vae)
    step = make_step("epsilon", lambda latents: codec.decode(model, latents))
    side = SHAPE[1] * codec.factor

    def first_image(pred):
        image = Step(**{**vars(step), "pred": pred}).image()
        return jnp.square(image[0]).mean(), image

    slope = jax.jit(jax.value_and_grad(first_image, has_aux=True))
    (_, image), gradient = slope(step.pred)
    assert image.shape == (3, side, side, 3) and image.min() >= 0 and image.max() <= 1
    gradient = np.asarray(gradient)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0]).max() > 0 and not gradient[1:].any()  # its own image alone
    # The slope along the gradient equals its length.
    length, size = np.linalg.norm(gradient), 0.02
    ends = [slope(step.pred + sign * size * gradient / length)[0][0] for sign in (1, -1)]
    assert np.isclose((ends[0] - ends[1]) / (2 * size), length, rtol=0.05)
