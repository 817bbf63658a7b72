"""Options of the objective against their formulas."""

import numpy as np
import pytest

from persongen_jax.diffusion.schedule import NoiseSchedule, min_snr_weights, offset_noise

# Signal-to-noise ratios 99, 9, 1, 1/4 and 0.
SIGNAL = np.array([0.99, 0.9, 0.5, 0.2, 0.0], np.float32)


@pytest.mark.parametrize(
    ("prediction_type", "wanted"),
    [
        ("epsilon", [5 / 99, 5 / 9, 1, 1, 1]),
        ("v_prediction", [5 / 100, 5 / 10, 1 / 2, 0.25 / 1.25, 0]),
        ("sample", [5, 5, 1, 0.25, 0]),
    ],
)
def test_min_snr(prediction_type, wanted):
    schedule = NoiseSchedule(SIGNAL, prediction_type, len(SIGNAL))
    weights = min_snr_weights(schedule, np.arange(len(SIGNAL)), 5.0)
    assert np.allclose(weights, wanted, rtol=1e-4)


def test_offset_noise_shifts_each_channel_of_each_image():
    rng = np.random.default_rng(0)
    noise = rng.standard_normal((500, 16, 16, 4))
    offsets = rng.standard_normal((500, 1, 1, 4))
    means = offset_noise(noise, offsets, 0.5).mean((1, 2))
    # The mean of 256 independent draws adds 1/256 to the variance 0.25; 2000 means: within 10 %.
    assert np.isclose(means.var(), 0.25 + 1 / 256, rtol=0.1)
    assert np.corrcoef(means.ravel(), offsets.ravel())[0, 1] > 0.98
