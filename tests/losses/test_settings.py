"""config.losses: what is refused, in one sentence each."""

import numpy as np
import pytest
from ml_collections import ConfigDict

from data_pipeline.records.schema import Record
from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.losses.base import Settings, check_records
from persongen_jax.losses.decoded import LOSSES, DecodedLosses, read_settings
from persongen_jax.systems.sdxl_config import sdxl_defaults

EPSILON = NoiseSchedule.from_config({"beta_schedule": "scaled_linear"})
NETS = {"loss_pose_net": "keypoints:x", "loss_clip": "x", "loss_face_net": "x"}


def config_of(**losses):
    config = sdxl_defaults()
    config.update({**NETS, "losses": ConfigDict(losses)})
    return config


def test_every_loss_has_its_settings_and_the_defaults_add_none():
    assert not DecodedLosses(sdxl_defaults(), EPSILON)
    made = DecodedLosses(config_of(**{name: {"weight": 0.5} for name in LOSSES}), EPSILON)
    assert made.settings == {name: Settings(0.5, 0.0, 0.5) for name in LOSSES}
    assert set(LOSSES) == {"reconstruction", "keypoints", "proportions", "clip", "identity"}


@pytest.mark.parametrize(
    ("name", "table", "said"),
    [
        ("pose", {"weight": 1.0}, "'pose' is unknown; known: reconstruction, keypoints"),
        ("clip", 0.1, "clip is 0.1; give a table"),
        ("clip", {}, "clip has no weight"),
        ("clip", {"weight": 0}, "clip: weight=0 would only cost time"),
        ("clip", {"weight": -1.0}, "weight=-1 would only cost time"),
        ("clip", {"weight": float("nan")}, "weight is nan; give a finite number"),
        ("clip", {"weight": "much"}, "weight is 'much'; give a finite number"),
        ("clip", {"weight": 1.0, "until": 3}, "has no setting until; known: weight, noise_from"),
        ("clip", {"weight": 1.0, "noise_to": 0.001}, "no noise level of the schedule is from 0 to"),
        ("clip", {"weight": 1.0, "noise_from": 0.4, "noise_to": 0.3}, "from 0.4 to 0.3; they go"),
    ],
)
def test_bad_settings_are_one_sentence(name, table, said):
    with pytest.raises(ValueError, match=said) as raised:
        read_settings(name, table, EPSILON)
    assert "\n" not in str(raised.value)


def test_a_window_with_no_signal_is_refused_for_predictions_of_noise_alone():
    none_left = {"rescale_betas_zero_snr": True, "beta_schedule": "scaled_linear"}
    whole = {"weight": 1.0, "noise_to": 1.0}
    with pytest.raises(ValueError, match="give a noise_to below 1"):
        read_settings("clip", whole, NoiseSchedule.from_config(none_left))
    v = NoiseSchedule.from_config({**none_left, "prediction_type": "v_prediction"})
    assert read_settings("clip", whole, v).noise_to == 1


@pytest.mark.parametrize("name", ["keypoints", "proportions", "clip", "identity"])
def test_a_network_that_is_not_named_is_asked_for(name):
    config = config_of(**{name: {"weight": 1.0}})
    config.update({key: "" for key in NETS})
    with pytest.raises(ValueError, match=f"is empty: the loss '{name}'"):
        DecodedLosses(config, EPSILON)


def test_data_without_what_a_loss_compares_are_refused_before_the_first_step():
    losses = [LOSSES[name](config_of()) for name in ("reconstruction", "keypoints", "identity")]
    plain, known = Record("a.png", "ann", "a woman"), tuple(map(tuple, np.zeros((12, 2))))
    with pytest.raises(ValueError, match="keypoints compares keypoints, and no record of DATA"):
        check_records(losses, [plain] * 3, "DATA")
    posed = Record("b.png", "ann", "a woman", keypoints=known, face_box=(0, 0, 1, 1))
    lines = check_records(losses, [plain, posed, posed], "DATA")
    assert lines == [
        "keypoints does not act on 1 of 3: no keypoints",
        "identity does not act on 1 of 3: no landmarks or face_box",
    ]
