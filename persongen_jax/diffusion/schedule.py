"""The forward diffusion process: noise schedule, training targets and face boxes.

Everything after `NoiseSchedule.from_config` works on traced arrays and can be jitted. Images and
latents are [b, h, w, c].
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from persongen_jax.diffusion.scheduler_config import (
    PREDICTION_TYPES,
    SCHEDULE_DEFAULTS,
    check_choice,
    check_parametrisation,
    checked_values,
)

BETA_SCHEDULES = ("linear", "scaled_linear", "squaredcos_cap_v2")


# eq=False: comparing arrays field by field is ambiguous; identity also makes it hashable.
@dataclasses.dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """How much signal is left at each training timestep.

    Attributes:
      alphas_cumprod: [T] float32 numpy, the signal's share of the variance, falling from about 1 to
        about 0 (exactly 0 at the end if rescaled to zero terminal SNR).
      prediction_type: what the model predicts, one of `PREDICTION_TYPES`.
      num_train_timesteps: T.
    """

    alphas_cumprod: np.ndarray
    prediction_type: str = "epsilon"
    num_train_timesteps: int = 1000

    @classmethod
    def from_config(cls, scheduler_config: dict) -> "NoiseSchedule":
        """Reads the schedule's keys of a diffusers scheduler_config.json; others are not its own.

        Raises:
          ValueError: another parametrisation than betas', a value of the wrong type, unknown
            beta_schedule or prediction_type, or trained_betas of another length.
        """
        check_parametrisation(scheduler_config)
        config = SCHEDULE_DEFAULTS | checked_values(scheduler_config, SCHEDULE_DEFAULTS)
        check_choice("prediction_type", config["prediction_type"], PREDICTION_TYPES)
        betas = _betas(config)
        if config["rescale_betas_zero_snr"]:
            betas = _rescale_zero_terminal_snr(betas)
        return cls(_cumulative_signal(betas), config["prediction_type"], len(betas))


def _betas(config: dict) -> np.ndarray:
    """[T] float32 variances added per step."""
    steps, start, end = (config[k] for k in ("num_train_timesteps", "beta_start", "beta_end"))
    if config["trained_betas"] is not None:
        betas = np.asarray(config["trained_betas"], np.float32)
        if betas.shape != (steps,):
            raise ValueError(
                f"trained_betas has shape {betas.shape}, but num_train_timesteps={steps}; "
                f"give {steps} betas or set num_train_timesteps to their number"
            )
        return betas
    check_choice("beta_schedule", config["beta_schedule"], BETA_SCHEDULES)
    if config["beta_schedule"] == "linear":
        return _linspace_float32(start, end, steps)
    if config["beta_schedule"] == "scaled_linear":
        return _linspace_float32(start**0.5, end**0.5, steps) ** 2
    # Nichol & Dhariwal 2102.09672, eq. 17: the signal follows a squared cosine, betas capped.
    signal = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    return np.minimum(1 - signal[1:] / signal[:-1], 0.999).astype(np.float32)


def _linspace_float32(start: float, end: float, steps: int) -> np.ndarray:
    # Rounded as torch rounds it (float32 step, each half counted from its own end), which makes the
    # table equal to the published models' to the last bit.
    first, last = np.float32(start), np.float32(end)
    step = np.float64((last - first) / np.float32(max(steps - 1, 1)))
    index = np.arange(steps)
    values = np.where(index < steps / 2, first + step * index, last - step * (steps - 1 - index))
    return values.astype(np.float32)


def _cumulative_signal(betas: np.ndarray) -> np.ndarray:
    # The subtraction rounds to float32 on purpose: models were trained and published with tables
    # rounded this way, and near t = 0 the rounding changes sigma in its fifth digit.
    return np.cumprod(np.float32(1) - betas, dtype=np.float64).astype(np.float32)


def _rescale_zero_terminal_snr(betas: np.ndarray) -> np.ndarray:
    """Shifts and scales sqrt(alphas_cumprod) to end at 0 (Lin et al. 2305.08891, alg. 1)."""
    root = np.sqrt(_cumulative_signal(betas))
    first, last = root[0], root[-1]
    signal = ((root - last) * (first / (first - last))) ** 2
    return np.float32(1) - np.concatenate([signal[:1], signal[1:] / signal[:-1]])


def signal_and_noise(schedule: NoiseSchedule, timesteps: jax.Array) -> tuple[jax.Array, jax.Array]:
    """[b] timesteps → (sqrt(alphas_cumprod), sqrt(1 - alphas_cumprod)), each [b, 1, 1, 1]."""
    signal = jnp.asarray(schedule.alphas_cumprod)[timesteps][:, None, None, None]
    return jnp.sqrt(signal), jnp.sqrt(1 - signal)


def add_noise(
    schedule: NoiseSchedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """Draws from q(x_t | x_0) (DDPM 2006.11239, eq. 4).

    Args:
      schedule: the noise schedule.
      latents: [b, h, w, c] clean latents x_0, scaled to about unit variance.
      noise: [b, h, w, c] standard normal.
      timesteps: [b] int in 0..T-1 (a traced index outside is clamped by jax, not reported).

    Returns:
      [b, h, w, c] float32 noisy latents.
    """
    alpha, sigma = signal_and_noise(schedule, timesteps)
    return alpha * latents.astype(jnp.float32) + sigma * noise.astype(jnp.float32)


def training_target(
    schedule: NoiseSchedule, latents: jax.Array, noise: jax.Array, timesteps: jax.Array
) -> jax.Array:
    """What the model should predict at `add_noise(...)`: noise, latents, or v (2202.00512, app. D).

    Arguments as for `add_noise`; returns [b, h, w, c] float32.
    """
    latents, noise = latents.astype(jnp.float32), noise.astype(jnp.float32)
    if schedule.prediction_type == "epsilon":
        return noise
    if schedule.prediction_type == "sample":
        return latents
    alpha, sigma = signal_and_noise(schedule, timesteps)
    return alpha * noise - sigma * latents


def x0_and_eps(
    prediction_type: str,
    noisy: jax.Array,
    model_output: jax.Array,
    alpha: jax.Array,
    sigma: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """Splits noisy = alpha * x0 + sigma * eps by the model's output.

    `alpha`**2 + `sigma`**2 = 1, broadcastable against the latents. An epsilon prediction needs
    alpha > 0 and a sample prediction sigma > 0, else the result is not finite.
    """
    if prediction_type == "epsilon":
        return (noisy - sigma * model_output) / alpha, model_output
    if prediction_type == "sample":
        return model_output, (noisy - alpha * model_output) / sigma
    return alpha * noisy - sigma * model_output, alpha * model_output + sigma * noisy


def face_box_mask(
    face_box: jax.Array, image_size: tuple[int, int], latent_size: tuple[int, int]
) -> tuple[jax.Array, jax.Array]:
    """Marks the latent cells that a face box touches.

    A box that is empty, not finite or wholly outside the image has no face to point at: that
    example falls back to the whole image and is flagged, so that the caller can count it. A box
    partly outside is cut at the border.

    Args:
      face_box: [b, 4] x0, y0, x1, y1 in pixels, x1 and y1 exclusive.
      image_size: (h, w) in pixels.
      latent_size: (h, w) in cells.

    Returns:
      ([b, h, w] float32 mask of zeros and ones with at least one cell set, [b] bool fell back).
    """
    box = face_box.astype(jnp.float32)

    def cells_touched(low, high, pixels, cells):
        low, high = jnp.clip(low, 0, pixels), jnp.clip(high, 0, pixels)
        # Multiplying first keeps whole cells whole in float32; floor and ceil give at least one.
        first, end = jnp.floor(low * cells / pixels), jnp.ceil(high * cells / pixels)
        index = jnp.arange(cells)
        return (index >= first[:, None]) & (index < end[:, None]), high > low

    columns, some_columns = cells_touched(box[:, 0], box[:, 2], image_size[1], latent_size[1])
    rows, some_rows = cells_touched(box[:, 1], box[:, 3], image_size[0], latent_size[0])
    usable = some_columns & some_rows & jnp.isfinite(box).all(-1)
    mask = rows[:, :, None] & columns[:, None, :]
    return jnp.where(usable[:, None, None], mask, True).astype(jnp.float32), ~usable
