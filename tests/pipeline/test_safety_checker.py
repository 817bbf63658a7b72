"""The safety checker against diffusers', on seeded weights."""

import numpy as np
import pytest
import torch
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig

from data_pipeline.pictures.transforms import clip_preprocess
from persongen_jax.pipeline.safety_checker import SafetyChecker
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from tests.helpers.twins import randomise

VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
VISION |= {"num_attention_heads": 2, "image_size": 24, "patch_size": 8}
IMAGES = np.random.default_rng(3).integers(0, 256, (9, 40, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def theirs():
    config = CLIPConfig(vision_config=VISION, projection_dim=12)
    model = randomise(StableDiffusionSafetyChecker(config)).eval()
    with torch.no_grad():
        # Thresholds amid the cosines, so that all cases occur.
        model.concept_embeds_weights.fill_(0.62)
        model.special_care_embeds_weights.fill_(0.3)
    return model


@pytest.fixture(scope="module")
def folder(theirs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("safety")
    theirs.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("limit", [0.3, 0.5, 0.9])
def test_as_diffusers_judges(theirs, folder, limit):
    with torch.no_grad():
        theirs.concept_embeds_weights.fill_(limit)
    theirs.save_pretrained(folder)
    pixels = np.stack([clip_preprocess(image, 24) for image in IMAGES]).transpose(0, 3, 1, 2)
    _, wanted = theirs(torch.from_numpy(pixels.copy()), [image.copy() for image in IMAGES])
    ours = SafetyChecker(folder)
    assert ours(list(IMAGES)).tolist() == wanted
    embeds = theirs.visual_projection(theirs.vision_model(torch.from_numpy(pixels.copy()))[1])
    cosines = (
        torch.nn.functional.normalize(embeds)
        @ torch.nn.functional.normalize(theirs.concept_embeds).T
    )
    assert np.abs(ours.cosines(list(IMAGES))[0] - cosines.detach().numpy()).max() < 1e-5


def test_a_concept_of_special_care_lowers_all_thresholds(theirs, folder):
    highest = SafetyChecker(folder).cosines(list(IMAGES))[0].max(1)
    pixels = np.stack([clip_preprocess(image, 24) for image in IMAGES]).transpose(0, 3, 1, 2)
    found = {}
    for near, special in ((True, -1.0), (False, 2.0)):
        with torch.no_grad():
            theirs.special_care_embeds_weights.fill_(special)
            theirs.concept_embeds_weights.fill_(float(np.median(highest)) + 0.005)
        theirs.save_pretrained(folder)
        _, wanted = theirs(torch.from_numpy(pixels.copy()), [image.copy() for image in IMAGES])
        found[near] = SafetyChecker(folder)(list(IMAGES)).tolist()
        assert found[near] == wanted
    assert sum(found[True]) > sum(found[False])


def test_another_folder_is_named(folder, tmp_path):
    with pytest.raises(MissingFile, match="nothing"):
        SafetyChecker(tmp_path / "nothing")
    from safetensors.numpy import load_file, save_file

    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    tensors = load_file(folder / "model.safetensors")
    del tensors["concept_embeds"]
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(KeyMismatch, match="concept_embeds"):
        SafetyChecker(tmp_path)
