"""An IP-Adapter for style beside a method: what it adds, and that nothing else changes."""

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from configs.first_light import get_config
from persongen_jax.models.branches import CascadeCrossAttention, add_branch, branch_names
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.checks import CallWarning
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model
from persongen_jax.weights.errors import UnsupportedAdapter
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.photomaker_files import write_random_photomaker
from tests.helpers.training_runs import small_base

PROMPT, MARKED = "a man in a red hat", "a man img in a red hat"
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 5.0, "output_type": "np", "seed": 3}


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base(tmp_path_factory)


@pytest.fixture(scope="module")
def adapter(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("style") / "plus.safetensors"
    write_ip_adapter(path, UNet2DConditionModel.from_pretrained(base / "unet"), "plus", 64)
    return path


@pytest.fixture(scope="module")
def pictures():
    coarse = np.random.default_rng(0).integers(0, 256, (2, 5, 5, 3), np.uint8)
    return [Image.fromarray(image).resize((40, 40), Image.BICUBIC) for image in coarse]


@pytest.fixture(scope="module")
def photomaker(base, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker.safetensors"
    write_random_photomaker(base, path)
    return path


@pytest.fixture(scope="module")
def pipe(base, photomaker, adapter):
    """PhotoMaker and the style; the order of loading is the other one than in ``reloaded``."""
    pipe = Pipeline.from_pretrained(base)
    pipe.load_method("photomaker", photomaker)
    pipe.load_style(adapter)
    return pipe


def paint(pipe, prompt=PROMPT, **settings):
    return pipe(prompt, "blurry", **SETTINGS, **settings).images


@pytest.mark.slow
def test_alone_it_is_the_ip_adapter_of_that_file(base, adapter, pictures):
    alone = Pipeline.from_pretrained(base)
    plain = paint(alone)
    alone.load_style(adapter)
    with pytest.warns(CallWarning, match="no style_image is given"):
        np.testing.assert_array_equal(paint(alone), plain)
    own = paint(alone, style_image=[pictures])
    assert np.abs(own - plain).max() > 0.01
    alone.unload_style()
    np.testing.assert_array_equal(paint(alone), plain)
    # The method prompts the unconditional side with "", which the negative prompt replaces.
    alone.load_method("ip_adapter", adapter)
    theirs = paint(alone, references=[pictures], start_merge_step=-1)
    np.testing.assert_allclose(own, theirs, atol=1e-5)


@pytest.mark.slow
def test_beside_photomaker_each_has_its_own_strength(pipe, adapter, pictures):
    face, look = pictures
    both = {"references": [[face]], "style_image": [look], "start_merge_step": 0}
    together = paint(pipe, MARKED, **both)
    with pytest.warns(CallWarning, match="'style' is 0 in every step"):
        without = paint(pipe, MARKED, **both, scales={"style": 0.0})
    pipe.unload_style()
    method = paint(pipe, MARKED, references=[[face]], start_merge_step=0)
    pipe.load_style(adapter)
    np.testing.assert_allclose(without, method, atol=1e-5)
    late = paint(pipe, MARKED, **both, scales={"style": [(0.0, 0.5, 0.0)]})
    nobody = paint(pipe, MARKED, **both, scales={"identity": 0.0, "lora": 0.0})
    for one, other in ((together, method), (late, together), (late, method), (nobody, together)):
        assert np.abs(one - other).max() > 1e-3


@pytest.mark.slow
def test_a_region_keeps_the_rest_nearer_to_the_picture_without_it(pipe, pictures):
    left = np.zeros((8, 8), bool)
    left[:, :4] = True
    plain = paint(pipe)
    inside = paint(pipe, style_image=[pictures[1]], style_region=[left])
    nowhere = paint(pipe, style_image=[pictures[1]], style_region=[np.ones((8, 8), bool)])
    whole = paint(pipe, style_image=[pictures[1]])
    np.testing.assert_allclose(nowhere, whole, atol=1e-5)
    changed = np.abs(inside - plain).mean((0, 1, 3))
    assert changed[: len(changed) // 2].mean() > 1.2 * changed[len(changed) // 2 :].mean()


@pytest.mark.slow
def test_a_method_comes_and_goes_beside_it(base, adapter, photomaker, pictures, pipe):
    other = Pipeline.from_pretrained(base)
    other.load_style(adapter)
    styled = paint(other, style_image=[pictures[1]])
    other.load_method("photomaker", photomaker)
    both = {"references": [[pictures[0]]], "style_image": [pictures[1]]}
    np.testing.assert_array_equal(paint(other, MARKED, **both), paint(pipe, MARKED, **both))
    other.unload_method()
    np.testing.assert_array_equal(paint(other, style_image=[pictures[1]]), styled)


def test_what_cannot_be_done_is_said(pipe, base, adapter, pictures, tmp_path):
    for asked, said in (
        ({"style_image": pictures[0]}, "give a list, for each of 1 prompts"),
        ({"style_image": [[pictures[0]] * 5]}, "5 images; give one to 4"),
        ({"scales": {"style": 0.5}}, "without style_image"),
        ({"style_region": [np.ones((8, 8), bool)]}, "without style_image"),
    ):
        with pytest.raises(ValueError, match=said):
            paint(pipe, **asked)
    with pytest.raises(ValueError, match="load_style"):
        paint(Pipeline.from_pretrained(base), style_image=[pictures[0]])
    faces = tmp_path / "faceid.safetensors"
    unet = UNet2DConditionModel.from_pretrained(base / "unet")
    write_ip_adapter(faces, unet, "faceid", 128)
    taken = pipe.style
    with pytest.raises(UnsupportedAdapter, match="is faceid, which reads faces"):
        pipe.load_style(faces)
    with_lora = tmp_path / "plus.safetensors"
    write_ip_adapter(with_lora, unet, "plus", 64, rank=4)
    with pytest.raises(UnsupportedAdapter, match="has a LoRA on the base's layers"):
        pipe.load_style(with_lora)
    assert pipe.style is taken and "style" in branch_names(pipe.model.unet)


def test_it_is_refused_next_to_layers_that_follow_each_other(base, adapter):
    other = Pipeline.from_pretrained(base)
    add_branch(other.model.unet, "identity", CascadeCrossAttention)
    with pytest.raises(ValueError, match=r"plus\.safetensors: .*follow each other \(the cascade\)"):
        other.load_style(adapter)
    assert other.style is None and branch_names(other.model.unet) == ["identity"]


@pytest.mark.slow
def test_a_cascade_is_refused_next_to_it_and_nothing_is_half_loaded(base, adapter, pipe, tmp_path):
    config = get_config()
    config.base, config.method = str(base), "cascade"
    system = open_system(config)
    checkpoints = Checkpoints(tmp_path)
    trainable = split_model(system.model, system.table)[1]
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config.to_dict())
    checkpoints.close()
    other = Pipeline.from_pretrained(base)
    other.load_style(adapter)
    with pytest.raises(ValueError, match="after unload_style"):
        other.load_method(None, tmp_path)
    assert other.method is None and branch_names(other.model.unet) == ["style"]
    other.unload_style()
    other.load_method(None, tmp_path)
    assert {"identity"} < set(branch_names(other.model.unet))


@pytest.mark.slow
def test_prompts_with_the_same_images_are_read_once(pipe, pictures):
    first, second = map(np.asarray, pictures)
    tokens, mask, nothing = pipe.style.read([[first], [first, second], [first]])
    for row, own in enumerate(([first], [first, second])):
        alone, there, absent = pipe.style.read([own])
        np.testing.assert_array_equal(tokens[row], alone[0])
        np.testing.assert_array_equal(mask[row], there[0])
        assert all(map(np.array_equal, nothing, absent))
    np.testing.assert_array_equal(tokens[2], tokens[0])
    assert mask[1].sum() == 2 * mask[0].sum()
    assert np.abs(tokens[1][mask[1]][-1] - tokens[0][mask[0]][-1]).max() > 1e-3
