"""Options of the training objective that change noise or weights; all are off by default."""

import jax.numpy as jnp

from persongen_jax.diffusion import NoiseSchedule


def min_snr_weights(schedule: NoiseSchedule, timesteps, gamma: float):
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


def offset_noise(noise, offsets, strength: float):
    """Noise whose mean differs by image and channel, so that brightness is learned as well.

    Args:
        noise: [b, h, w, c] standard normal.
        offsets: [b, 1, 1, c] standard normal.
        strength: 0.05 to 0.1 is usual; each channel's mean gets this standard deviation.
    """
    return noise + strength * offsets
