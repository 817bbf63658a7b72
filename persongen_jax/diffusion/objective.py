"""The denoising objective: the error of a prediction, its weight, and which timesteps are drawn.

The default is the mean squared error at uniformly drawn timesteps (DDPM, 2006.11239, eq. 14); all
else is an option that is off by default. Images and latents are [b, h, w, c].
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from persongen_jax.diffusion.schedule import NoiseSchedule

LOSS_TYPES = ("l2", "huber", "smooth_l1")
HUBER_SCHEDULES = ("constant", "exponential", "snr")
BIASES = ("later", "earlier", "range")
MOST_SNR = 1000.0  # at which debiased weights stop falling


def set_objective_defaults(config: ConfigDict) -> None:
    """Adds the config keys that this module reads."""
    config.min_snr_gamma = 0.0  # above 0: min-SNR weights (usually 5)
    # w_t of an objective on x̂₀ instead of the prediction: "constant", "snr", "snr_plus_1" or
    # "truncated_snr"; "": the prediction's own error.
    config.x0_weighting = ""
    config.debiased_weights = False  # 1 / √SNR for a prediction of noise, 1 / (SNR + 1) for v
    # The error: "l2", "huber" or "smooth_l1". A Huber error turns from a square into a line at
    # ``huber_c``, which is "constant", or reached from 1 as the noise grows: "exponential", "snr".
    config.loss_type = "l2"
    config.huber_schedule = "snr"
    config.huber_c = 0.1
    config.noise_offset = 0.0  # above 0: noise with a mean of its own (usually 0.05)
    # Timesteps that are drawn ``timestep_bias_multiplier`` times as often as the others: "later"
    # or "earlier" ones, ``timestep_bias_portion`` of all; or those of a "range", from
    # ``timestep_bias_begin`` to before ``timestep_bias_end``. "": all are drawn equally often.
    config.timestep_bias = ""
    config.timestep_bias_multiplier = 2.0
    config.timestep_bias_portion = 0.25
    config.timestep_bias_begin = 0
    config.timestep_bias_end = 1000
    # Rescale the noise schedule so that it ends without signal (arXiv 2305.08891), and sample from
    # its very end. The model has to predict v.
    config.zero_snr = False


# ---- The error -----------------------------------------------------------------------------------


def per_example_loss(
    model_pred: jax.Array,
    target: jax.Array,
    weight_mask: jax.Array | None = None,
    error: Callable[[jax.Array], jax.Array] = jnp.square,
) -> jax.Array:
    """Mean error in float32, one number per example.

    Args:
      model_pred: [b, h, w, c].
      target: [b, h, w, c].
      weight_mask: optional [b, h, w], non-negative; the mean is then taken over the masked cells
        only, so that a small box weighs as much as a whole image. An all-zero mask gives 0.
      error: of the differences, [b, h, w, c] to the same; default: their squares.

    Returns:
      [b] float32.
    """
    errors = error(model_pred.astype(jnp.float32) - target.astype(jnp.float32)).mean(-1)
    if weight_mask is None:
        return errors.mean((1, 2))
    weight = weight_mask.astype(jnp.float32)
    total = weight.sum((1, 2))
    return (errors * weight).sum((1, 2)) / jnp.where(total > 0, total, 1)


def error_of(
    config: ConfigDict, schedule: NoiseSchedule, timesteps: jax.Array
) -> Callable[[jax.Array], jax.Array]:
    """The ``error`` of :func:`per_example_loss` that ``config.loss_type`` names.

    Args:
        timesteps: [b] int in 0..T-1.
    """
    if config.loss_type == "l2":
        return jnp.square
    c = huber_c(schedule, timesteps, config.huber_schedule, config.huber_c)
    error = pseudo_huber if config.loss_type == "huber" else pseudo_smooth_l1
    return functools.partial(error, c=c[:, None, None, None])


def pseudo_huber(difference: jax.Array, c: jax.Array) -> jax.Array:
    """2 c (√(d² + c²) - c): d² where |d| is far below c, 2 c |d| far above (arXiv 2403.16728)."""
    return c * pseudo_smooth_l1(difference, c)


def pseudo_smooth_l1(difference: jax.Array, c: jax.Array) -> jax.Array:
    """2 (√(d² + c²) - c): d² / c where |d| is far below c, 2 |d| far above."""
    square = jnp.square(difference)
    # The difference of two nearly equal numbers, written without it.
    return 2 * square / (jnp.sqrt(square + jnp.square(c)) + c)


def huber_c(schedule: NoiseSchedule, timesteps: jax.Array, kind: str, c: float) -> jax.Array:
    """Where a Huber error turns from a square into a line, [b] float32 (arXiv 2403.16728, sec. 4).

    "constant": ``c``; "exponential": from 1 at timestep 0 to ``c`` at T; "snr": from nearly 1
    without noise to ``c`` where nothing but noise is left, by the ratio of noise to signal.

    Args:
        timesteps: [b] int in 0..T-1.
        kind: a name of HUBER_SCHEDULES.
        c: above 0.
    """
    if kind == "exponential":
        return jnp.float32(c) ** (timesteps.astype(jnp.float32) / schedule.num_train_timesteps)
    if kind == "snr":
        signal = jnp.asarray(schedule.alphas_cumprod)[timesteps]
        ratio = jnp.sqrt((1 - signal) / signal)
        return (1 - c) / jnp.square(1 + ratio) + c
    return jnp.full(timesteps.shape, c, jnp.float32)


# ---- Its weight by the noise level ---------------------------------------------------------------


def min_snr_weights(schedule: NoiseSchedule, timesteps: jax.Array, gamma: float) -> jax.Array:
    """Loss weight per example, [b] float32 (min-SNR; Hang et al., arXiv 2303.09556, section 3.4).

    With s the signal-to-noise ratio: min(s, gamma) for a model that predicts latents, min(s, gamma)
    / s for noise, min(s, gamma) / (s + 1) for v.

    Args:
        timesteps: [b] int in 0..T-1.
        gamma: above 0; the paper takes 5.
    """
    signal = jnp.asarray(schedule.alphas_cumprod)[timesteps]
    snr = signal / (1 - signal)
    capped = jnp.minimum(snr, gamma)
    if schedule.prediction_type == "sample":
        return capped
    if schedule.prediction_type == "v_prediction":
        return capped / (snr + 1)
    # As min(1, gamma / s), so that s = 0 (zero terminal SNR) has its limit, 1.
    return jnp.minimum(1.0, gamma / snr)


# w_t of an objective on x̂₀, from the signal-to-noise ratio: "snr" is the error of a prediction of
# noise, "snr_plus_1" of v, "truncated_snr" that of Salimans and Ho (arXiv 2202.00512, section 4).
X0_WEIGHTS = {
    "constant": jnp.ones_like,
    "snr": lambda snr: snr,
    "snr_plus_1": lambda snr: snr + 1,
    "truncated_snr": lambda snr: jnp.maximum(snr, 1),
}


def x0_factors(schedule: NoiseSchedule, timesteps: jax.Array, weighting: str) -> jax.Array:
    """What turns a prediction's squared error into w_t |x̂₀ - x₀|², [b] float32 per example.

    DreamBooth writes its objective so (arXiv 2208.12242, eq. 1), and BoLID after it (eq. 9).

    Args:
        timesteps: [b] int in 0..T-1.
        weighting: a name of X0_WEIGHTS; see :func:`check_x0_weighting`.
    """
    signal = jnp.asarray(schedule.alphas_cumprod)[timesteps]
    weight = X0_WEIGHTS[weighting](signal / (1 - signal))
    if schedule.prediction_type == "sample":
        return weight
    if schedule.prediction_type == "v_prediction":
        return weight * (1 - signal)  # |x̂₀ - x₀| = sigma |v̂ - v|
    # |x̂₀ - x₀| = sigma / alpha |ε̂ - ε|; written so that "snr" is exactly 1.
    return jnp.ones_like(signal) if weighting == "snr" else weight * (1 - signal) / signal


def check_x0_weighting(schedule: NoiseSchedule, weighting: str) -> None:
    """ValueError for an unknown weighting, or one that is infinite at a timestep."""
    if weighting not in X0_WEIGHTS:
        raise ValueError(
            f"config.x0_weighting={weighting!r} is unknown; give {', '.join(X0_WEIGHTS)}, or an "
            "empty one for the error of the prediction itself"
        )
    if schedule.prediction_type == "epsilon" and weighting != "snr":
        if not (schedule.alphas_cumprod > 0).all():
            raise ValueError(
                f"config.x0_weighting={weighting!r}: the schedule ends without signal, where a "
                "prediction of noise implies no image; give 'snr', or a model that predicts v"
            )


def debiased_weights(schedule: NoiseSchedule, timesteps: jax.Array) -> jax.Array:
    """Loss weight per example, [b] float32 (Debiased Estimation; arXiv 2310.08442, section 3.2).

    With s the signal-to-noise ratio, at most 1000: 1 / √s for a model that predicts noise,
    1 / (s + 1) for v.

    Args:
        timesteps: [b] int in 0..T-1.
    """
    signal = jnp.asarray(schedule.alphas_cumprod)[timesteps]
    snr = jnp.minimum(signal / (1 - signal), MOST_SNR)
    if schedule.prediction_type == "v_prediction":
        return 1 / (snr + 1)
    return 1 / jnp.sqrt(snr)


# ---- What is drawn -------------------------------------------------------------------------------


def timestep_weights(config: ConfigDict, timesteps: int) -> np.ndarray:
    """How often each timestep is to be drawn, [T] float32 with the sum 1.

    ``config.timestep_bias_multiplier`` times as often as the others are "later" ones (the last
    ``timestep_bias_portion`` of all, with the most noise), "earlier" ones (the first), or those of
    a "range" (from ``timestep_bias_begin`` to before ``timestep_bias_end``).
    """
    kind, many = config.timestep_bias, int(config.timestep_bias_portion * timesteps)
    weights = np.ones(timesteps, np.float32)
    if kind == "later":
        chosen = slice(timesteps - many, timesteps)
    elif kind == "earlier":
        chosen = slice(0, many)
    else:
        chosen = slice(config.timestep_bias_begin, config.timestep_bias_end)
    weights[chosen] *= config.timestep_bias_multiplier
    return weights / weights.sum()


def draw_timesteps(
    key: jax.Array, rows: int, config: ConfigDict, schedule: NoiseSchedule
) -> jax.Array:
    """[rows] int32 in 0..T-1, uniformly or as ``config.timestep_bias`` says."""
    if not config.timestep_bias:
        return jax.random.randint(key, (rows,), 0, schedule.num_train_timesteps)
    weights = timestep_weights(config, schedule.num_train_timesteps)
    return jax.random.categorical(key, jnp.log(weights), shape=(rows,))


def offset_noise(noise: jax.Array, offsets: jax.Array, strength: float) -> jax.Array:
    """Noise whose mean differs by image and channel, so that brightness is learned as well.

    Args:
        noise: [b, h, w, c] standard normal.
        offsets: [b, 1, 1, c] standard normal.
        strength: 0.05 to 0.1 is usual; each channel's mean gets this standard deviation.
    """
    return noise + strength * offsets


# ---- Settings that make no sense -----------------------------------------------------------------


def check_objective(config: ConfigDict, schedule: NoiseSchedule) -> None:
    """ValueError for unknown or contradicting settings, or ones that the schedule rules out."""
    _check_zero_snr(config, schedule)
    _check_bias(config, schedule.num_train_timesteps)
    _check_choice("loss_type", config.loss_type, LOSS_TYPES)
    _check_choice("huber_schedule", config.huber_schedule, HUBER_SCHEDULES)
    if config.huber_c <= 0:
        raise ValueError(f"config.huber_c={config.huber_c:g}: give a number above 0, usually 0.1")
    weightings = [
        name
        for name, acts in (
            (f"config.x0_weighting={config.x0_weighting!r}", config.x0_weighting),
            (f"config.min_snr_gamma={config.min_snr_gamma:g}", config.min_snr_gamma > 0),
            ("config.debiased_weights=True", config.debiased_weights),
        )
        if acts
    ]
    if len(weightings) > 1:
        raise ValueError(
            f"{' and '.join(weightings)} {'both' if len(weightings) == 2 else 'all'} weight by the "
            "noise level; give one of them"
        )
    if config.x0_weighting:
        check_x0_weighting(schedule, config.x0_weighting)
        if config.loss_type != "l2":
            raise ValueError(
                f"config.x0_weighting={config.x0_weighting!r} weights a squared error, and "
                f"config.loss_type={config.loss_type!r} is none; give one of them"
            )
    if config.debiased_weights:
        _check_debiased(schedule)


def _check_choice(key, value, known):
    if value not in known:
        raise ValueError(f"config.{key}={value!r} is unknown; give {', '.join(known)}")


def _check_zero_snr(config, schedule):
    if config.zero_snr and schedule.alphas_cumprod[-1] > 0:
        raise ValueError(
            "config.zero_snr=True: this system has a noise schedule of its own, which it does not "
            "rescale; leave it out"
        )


def _check_bias(config, timesteps):
    kind, portion = config.timestep_bias, config.timestep_bias_portion
    begin, end = config.timestep_bias_begin, config.timestep_bias_end
    if not kind:
        return
    _check_choice("timestep_bias", kind, BIASES)
    if config.timestep_bias_multiplier <= 0:
        raise ValueError(
            f"config.timestep_bias_multiplier={config.timestep_bias_multiplier:g}: give a number "
            "above 0; timesteps that are never drawn would not be trained at all"
        )
    if kind == "range" and not 0 <= begin < end <= timesteps:
        raise ValueError(
            f"config.timestep_bias_begin={begin} and config.timestep_bias_end={end} are no range "
            f"within 0 to {timesteps}"
        )
    if kind != "range" and not 1 <= int(portion * timesteps) <= timesteps:
        raise ValueError(
            f"config.timestep_bias_portion={portion:g} of {timesteps} timesteps: give more than 0, "
            "and at most 1"
        )


def _check_debiased(schedule):
    if schedule.prediction_type == "sample":
        raise ValueError(
            "config.debiased_weights=True is for models that predict noise or v, and this one "
            "predicts the clean image; config.x0_weighting has weights for it"
        )
    if schedule.prediction_type == "epsilon" and not (schedule.alphas_cumprod > 0).all():
        raise ValueError(
            "config.debiased_weights=True: the schedule ends without signal, where they are "
            "infinite for a prediction of noise; give config.min_snr_gamma=5, or a model that "
            "predicts v"
        )
