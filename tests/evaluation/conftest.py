"""Judges, config and model of a validation on tiny random networks."""

import json

import pytest
import torch

from configs.first_light import get_config
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import split_model
from persongen_jax.weights.formats.arcface import load_arcface
from persongen_jax.weights.saver import save_module
from tests.evaluation.tiny import FACE_NET, METRICS, OWN, SET
from tests.helpers.encoders.tiny_clip import write_tiny_clip
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.keypoint_nets import write_keypoint_net
from tests.helpers.twins import randomise


@pytest.fixture(scope="session")
def encoders(tmp_path_factory):
    """Folders ``clip`` and, as in the miniature, ``face_net`` and ``face_detector``."""
    folder = tmp_path_factory.mktemp("encoders")
    write_tiny_clip(folder / "clip")
    twin = randomise_statistics(randomise(TorchIResNet(**FACE_NET)))
    torch.save(twin.state_dict(), folder / "backbone.pth")
    net = load_arcface(folder / "backbone.pth").model
    save_module(net, folder / "face_net", {"licence": "none"}, file_name="model.safetensors")
    write_keypoint_net(folder / "face_detector", present=3.0)
    return folder


@pytest.fixture(scope="module")
def config(small_base, encoders, tmp_path_factory):
    prompts = tmp_path_factory.mktemp("prompts") / "prompts.json"
    entries = [
        {"general": "a photo of a {word} img", "background": "a beach behind {him}"},
        {"general": "a {word} img, {his} face", "body": "{he} is in a coat"},
    ]
    prompts.write_text(json.dumps(entries))
    config = get_config()
    config.base, config.method = str(small_base), "photomaker_bg"
    config.validate_out_of_train = SET.format("out_of_train", 3)
    config.validate_out_of_domain = SET.format("out_of_domain", 2)
    config.validation_gallery = SET.format("out_of_train", 5)
    config.validation_people = 2
    config.validation_prompts = str(prompts)
    config.validation_images, config.validation_steps = 2, 3
    config.validation_merge_step, config.validation_batch = 0, 4
    config.clip, config.face_net = str(encoders / "clip"), str(encoders / "face_net")
    config.pose_net = f"keypoints:{encoders / 'face_detector'}"
    config.metrics = tuple(OWN.get(name, name) for name in METRICS)
    return config


@pytest.fixture(scope="module")
def trained(config):
    """(system, graphdef, trainable, frozen), as in the trainer."""
    system = open_system(config)
    graphdef, trainable, frozen, _ = split_model(system.model, system.table)
    return system, graphdef, trainable, frozen
