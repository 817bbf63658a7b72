"""config.losses: what is refused, in one sentence each."""

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
    config = config_of(**{name: {"weight": 0.5} for name in LOSSES})
    made = DecodedLosses(config, EPSILON, abstract=True)
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
    plain, hidden = record(), record(visibility=(False,) * 12)
    for useless in (plain, hidden):
        with pytest.raises(ValueError, match="keypoints compares visible keypoints, and no record"):
            check_records(losses, [useless] * 3, "DATA")
    assert check_records(losses, [], "DATA") == []
    lines = check_records(losses, [plain, hidden, record(visibility=None)], "DATA")
    assert lines == [
        "keypoints does not act on 2 of 3: no visible keypoints",
        "identity does not act on 1 of 3: no landmarks or face box",
    ]


def record(**own):
    """Without anything known; with joints, and a face box, for what is given."""
    if own:
        joints = tuple((float(k), 2.0 * k) for k in range(12))
        own = {"keypoints": joints, "face_box": (0, 0, 9, 9), **own}
    return Record("a.png", "ann", "a woman", **own)


def test_proportions_need_a_torso_and_a_facenet_a_box():
    (loss,) = (LOSSES[name](config_of()) for name in ("proportions",))
    but_a_hip = tuple(k != 7 for k in range(12))
    torso_alone = tuple(k in (0, 1, 6, 7) for k in range(12))
    for seen, wanted in ((None, True), (but_a_hip, False), (torso_alone, True)):
        assert loss.comparable(record(visibility=seen)) == wanted
    assert not loss.comparable(record())
    face = LOSSES["identity"](config_of())
    marked = Record("a.png", "ann", "a woman", landmarks=((1.0, 1.0),) * 5)
    assert face.comparable(marked) and not face.comparable(record())
    face.by_box = True
    assert face.comparable(record(visibility=None)) and not face.comparable(marked)
