"""The pipeline with an identity method: loaded, replaced, scaled, and wrong arguments."""

import os
import shutil
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Call
from data_pipeline.prompts import PromptError
from persongen_jax.config import VERSION
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.models.branches import branch_names
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.lora import lora_layers
from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.images import sample_steps
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.adapters import extract_adapter
from persongen_jax.weights.formats.lora.kinds import LoraWeights
from persongen_jax.weights.formats.lora.writing import write_lora
from persongen_jax.weights.formats.photomaker import load_photomaker_into, save_photomaker
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from persongen_jax.weights.saver import save_module
from tests.helpers.photomaker_files import write_random_photomaker
from tests.pipeline.pictures import (
    TIGHT,
)

FACE = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)

IDENTITY = "a woman img in a red hat"


@pytest.fixture(scope="module")
def photomaker(small_base, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker.safetensors"
    write_random_photomaker(small_base, path)
    return path


@pytest.fixture(scope="module")
def personal(small_base, photomaker):
    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_method(None, photomaker)
    return pipe


def paint(pipe, **settings):
    # Shared with generate's tests: one program.
    same = {"num_inference_steps": 2, "batch_size": 1, "start_merge_step": 0, "output_type": "np"}
    return pipe(IDENTITY, references=[[FACE]], **{**same, **settings}).images


def test_a_photomaker_file_is_a_method(personal, photomaker, small_base):
    loaded = load_sdxl(small_base)
    other, parts = loaded.model, Parts(loaded.model, loaded.tokenizers)
    config = {"base": str(small_base), "id_encoder": "", "rank": 3, "lora_alpha": 3.0}
    personal.method.attach(parts, ConfigDict({**config, "dtype": "float32"}), nnx.Rngs(0))
    load_photomaker_into(other, photomaker)
    found, wanted = extract_adapter(personal.model.unet), extract_adapter(other.unet)
    assert found.keys() == wanted.keys()
    assert all(np.array_equal(found[k].up, wanted[k].up) for k in wanted)
    first = nnx.state(personal.model.id_encoder), nnx.state(other.id_encoder)
    assert all(map(np.array_equal, *map(jax.tree.leaves, first)))
    assert list(personal.adapters) == ["method:photomaker"] and personal.streams == ("text",)


def test_a_method_that_has_more_than_photomaker_starts_from_its_file(photomaker, small_base):
    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_method("photomaker_bg", photomaker)
    assert pipe.streams == ("text", "background")
    assert branch_names(pipe.model.unet) == ["background"]
    with pytest.raises(ValueError, match="photo.*photomaker_bg"):
        pipe.load_method("photo", photomaker)
    with pytest.raises((FileNotFoundError, MissingFile), match="nowhere"):
        pipe.load_method(None, "/nowhere")


def test_a_run_that_started_from_a_file_has_its_image_tower(personal, small_base, tmp_path):
    """A checkpoint holds what was trained, and the tower is not."""
    config = {"base": str(small_base), "id_encoder": "", "rank": 3, "lora_alpha": 3.0}
    config |= {
        "dtype": "float32",
        "method": "photomaker",
        "version": VERSION,
        "trigger_word": "img",
        "trainable": [],
    }
    loaded = load_sdxl(small_base)
    model, parts = loaded.model, Parts(loaded.model, loaded.tokenizers)
    personal.method.attach(parts, ConfigDict(config), nnx.Rngs(0))
    bias = model.id_encoder.vision_model.post_layernorm.bias
    bias.set_value(bias.get_value() + 3)
    save_photomaker(model, tmp_path / "photomaker.safetensors")
    checkpoints = Checkpoints(tmp_path / "run")
    trainable = split_model(model, personal.method.groups)[1]
    config["start_from"] = str(tmp_path / "photomaker.safetensors")
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config)
    checkpoints.close()
    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_method(None, tmp_path / "run")
    found = pipe.model.id_encoder.vision_model.post_layernorm.bias
    assert np.array_equal(found.get_value(), bias.get_value())


@pytest.fixture
def other_encoder(small_base, tmp_path):
    """The base with another image encoder next to it, as for an IP-Adapter; and its own."""
    base, own = tmp_path / "base", small_base / "image_encoder"
    ignore = shutil.ignore_patterns("image_encoder")
    shutil.copytree(small_base, base, ignore=ignore, copy_function=os.symlink)
    config = {**read_config(own), "num_hidden_layers": 3}
    tower = CLIPVisionModel(config, with_projection=True, rngs=nnx.Rngs(0))
    save_module(tower, base / "image_encoder", config, file_name="model.safetensors")
    return base, own


def test_the_image_encoder_beside_the_base_may_be_another_than_the_files(
    other_encoder, personal, photomaker
):
    base, own = other_encoder
    pipe = Pipeline.from_pretrained(base)
    pipe.load_method(None, photomaker)
    tower, wanted = (p.model.id_encoder.vision_model for p in (pipe, personal))
    first = nnx.state(tower), nnx.state(wanted)
    assert all(map(np.array_equal, *map(jax.tree.leaves, first)))
    pipe.load_method(None, photomaker, encoder=own)
    assert len(pipe.model.id_encoder.vision_model.encoder.layers) == 2


def test_the_image_encoder_of_a_run_may_have_moved(other_encoder, tmp_path):
    base, own = other_encoder
    config = {"base": str(base), "id_encoder": str(own), "rank": 3, "lora_alpha": 3.0}
    config |= {
        "dtype": "float32",
        "method": "photomaker",
        "version": VERSION,
        "trigger_word": "img",
        "trainable": [],
    }
    pipe = Pipeline.from_pretrained(base)
    method = get_method("photomaker")
    method.attach(Parts(pipe.model, pipe.base.tokenizers), ConfigDict(config), nnx.Rngs(0))
    checkpoints = Checkpoints(tmp_path / "run")
    trainable = split_model(pipe.model, method.groups)[1]
    config["id_encoder"] = str(tmp_path / "moved")
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config)
    checkpoints.close()
    pipe = Pipeline.from_pretrained(base)
    with pytest.raises(MissingFile, match="moved: .*--image-encoder"):
        pipe.load_method(None, tmp_path / "run")
    pipe.load_method(None, tmp_path / "run", encoder=own)
    assert len(pipe.model.id_encoder.vision_model.encoder.layers) == 2


def test_a_method_that_cannot_be_loaded_leaves_none_and_all_loras(photomaker, small_base, tmp_path):
    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_method("photomaker_bg", photomaker)
    kernel = pipe.model.unet.mid_block.attentions[0].proj_in.kernel
    weights = LoraWeights(np.ones((2, kernel.shape[0])), np.ones((kernel.shape[1], 2)))
    write_lora(tmp_path / "lora.safetensors", {"unet": {"mid_block.attentions.0.proj_in": weights}})
    pipe.load_lora(tmp_path / "lora.safetensors", name="mine")
    run = {
        "version": VERSION,
        "method": "id_branch",
        "dtype": "float32",
        "id_encoder": "",
        "trigger_word": "img",
    }
    checkpoints = Checkpoints(tmp_path / "run")
    other = {"id_tokens/id_norm/scale": np.ones(3, np.float32)}
    checkpoints.save(0, other, {"count": np.zeros(1)}, {**run, "trainable": []})
    checkpoints.close()
    with pytest.raises(KeyMismatch, match="id_norm/scale"):
        pipe.load_method(None, tmp_path / "run")
    assert pipe.method is None and pipe.streams == ("text",)
    assert list(pipe.adapters) == ["mine"] and branch_names(pipe.model.unet) == []
    assert [".".join(map(str, path)) for path in lora_layers(pipe.model.unet)] == [
        "mid_block.attentions.0.proj_in"
    ]
    assert {name for name, part in vars(pipe.model).items() if isinstance(part, nnx.Module)} == {
        *COMPONENTS
    }
    with pytest.raises(ValueError, match="load_method"):
        pipe("a man img", references=[[FACE]])
    # An unknown method name changes nothing.
    pipe.load_method("photomaker_bg", photomaker)
    with pytest.raises(ValueError, match="photo"):
        pipe.load_method("photo", photomaker)
    assert pipe.streams == ("text", "background")


def test_of_the_method_before_nothing_stays(photomaker, small_base, tmp_path):
    config = {"base": str(small_base), "id_encoder": "", "dtype": "float32", "trainable": []}
    config |= {"version": VERSION, "method": "id_branch", "trigger_word": "img"}
    loaded, method = load_sdxl(small_base), get_method("id_branch")
    method.attach(Parts(loaded.model, loaded.tokenizers), ConfigDict(config), nnx.Rngs(0))
    checkpoints = Checkpoints(tmp_path)
    trainable = split_model(loaded.model, method.groups)[1]
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config)
    checkpoints.close()
    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_method(None, tmp_path)
    assert hasattr(pipe.model, "id_tokens")
    pipe.load_method(None, photomaker)
    assert not hasattr(pipe.model, "id_tokens") and hasattr(pipe.model, "id_encoder")


def test_the_identitys_scale_is_the_way_to_the_fused_token(personal):
    ids = np.array([[64, 64, 0, 0, 64, 64]], np.float32)
    call = Call([IDENTITY], {}, [[[FACE, FACE]]], ids, (64, 64))
    guidance = personal.conditioner.guidance(call, None, None, [0])

    def tokens(scale):
        at = replace(guidance, scales={"identity": np.array([scale], np.float32)})
        return np.asarray(at.conditional(0, -1).streams["text"].tokens[0])

    plain, half, whole = tokens(0.0), tokens(0.5), tokens(1.0)
    changed = np.flatnonzero((plain != whole).any(-1))
    _, mask, _ = personal.base.tokenizers.encode_with_trigger(IDENTITY, 2)
    assert np.array_equal(changed, np.flatnonzero(mask)) and len(changed) == 2
    assert np.allclose(half, (plain + whole) / 2, atol=1e-5)


def test_scales_change_the_picture_and_compile_nothing(personal):
    whole = paint(personal)
    never = paint(personal, start_merge_step=9)
    compiled = sample_steps._cache_size()
    # By default the identity acts after a fifth of the steps: here after the first of two.
    assert np.array_equal(paint(personal, start_merge_step=None), whole)
    assert np.array_equal(paint(personal, scales={"identity": 1, "lora": 1}), whole)
    # With one reference, the prompt without it is the prompt used until the merge step.
    assert np.abs(paint(personal, scales={"identity": 0}) - never).max() < TIGHT
    half = paint(personal, scales={"identity": 0.5})
    assert not np.allclose(half, whole) and not np.allclose(half, never)
    silent = paint(personal, scales={"lora": 0})
    assert not np.allclose(silent, whole)
    # The scale applies only to that call.
    assert personal.adapters["method:photomaker"][1] == 1
    assert np.array_equal(paint(personal), whole)
    personal.set_lora_weights({"method:photomaker": 0})
    assert np.array_equal(paint(personal), silent)
    personal.set_lora_weights({"method:photomaker": 1})
    assert sample_steps._cache_size() == compiled


@pytest.mark.parametrize(
    ("prompt", "settings", "named"),
    [
        (IDENTITY, {"scales": {"background": 1}}, "'background'"),
        (IDENTITY, {"scales": {"identity": 1}, "references": None}, "references"),
        (IDENTITY, {"references": [[FACE]] * 2}, "2 lists of references for 1 prompts"),
        (IDENTITY, {"references": [[FACE] * 5]}, "5 references"),
        ("a woman", {}, 'appears 0 times in the prompt "a woman"'),
        ("img of a woman", {}, 'opens the prompt "img of a woman"'),
    ],
)
def test_bad_arguments_of_a_method_are_named(prompt, settings, named, personal):
    with pytest.raises(ValueError, match=named):
        personal(prompt, **{"references": [[FACE]], **settings})


def test_a_bad_prompt_ends_the_run_before_its_first_picture(personal):
    with pytest.raises(PromptError, match="two img img"):
        personal(
            [IDENTITY, "two img img"],
            references=[[FACE]] * 2,
            batch_size=1,
            num_inference_steps=2,
            on_batch=lambda _: pytest.fail("painted"),
        )
