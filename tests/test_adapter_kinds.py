"""Adapters that are more than LoRA on the pipeline: live, with any strength, and off again."""

import warnings

import numpy as np
import pytest
from safetensors.numpy import load_file

from persongen_jax.models.lora import changed_layers
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.lora.reading import read_lora
from persongen_jax.weights.lora.writing import write_comfy_lora, write_lora, write_peft_folder
from tests.test_lora import layer_shapes, paint, random_lora
from tests.test_pipeline import PIXEL, latents  # noqa: F401
from tests.weights.test_lora_dialects import save
from tests.weights.test_lora_files import ATTENTION

LINEAR, CONV = f"{ATTENTION}.attn1.to_k", "down_blocks.0.resnets.1.conv1"
SGM = "input_blocks.4.1.transformer_blocks.0.attn1.to_k"
OUT = f"{ATTENTION}.attn2.to_out.0"


@pytest.fixture(scope="module")
def pipe(tiny_base):
    return Pipeline.from_pretrained(tiny_base)


@pytest.fixture
def ours(pipe):
    yield pipe
    pipe.unload_lora()


@pytest.fixture(scope="module")
def shapes(pipe):
    return layer_shapes(pipe)["unet"]


@pytest.fixture(scope="module")
def plain(pipe, latents):  # noqa: F811
    return paint(pipe, latents)


def draw(*shape, seed=0, size=0.2):
    return (size * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def everything(shapes):
    """A file in kohya's names with one layer of each kind."""
    out, inner = shapes[LINEAR]
    tensors = {
        (LINEAR, "lora_down.weight"): draw(3, inner),
        (LINEAR, "lora_up.weight"): draw(out, 3),
        (LINEAR, "dora_scale"): np.abs(draw(out, 1)) + 0.5,
        (OUT, "lokr_w1"): draw(2, 2, size=1),
        (OUT, "lokr_w2"): draw(out // 2, shapes[OUT][1] // 2),
        (CONV, "diff"): draw(*shapes[CONV]),
        (CONV, "diff_b"): draw(shapes[CONV][0], size=1),
    }
    for seed, half in enumerate(("w1_a", "w2_a")):
        tensors[f"{ATTENTION}.attn2.to_q", f"hada_{half}"] = draw(out, 2, seed=seed, size=1)
        tensors[f"{ATTENTION}.attn2.to_q", f"hada_{half[:2]}_b"] = draw(2, inner, seed=seed)
    return {f"lora_unet_{p.replace('.', '_')}.{name}": x for (p, name), x in tensors.items()}


@pytest.fixture(scope="module")
def file(shapes, tmp_path_factory):
    return save(tmp_path_factory.mktemp("kinds") / "all.safetensors", everything(shapes))


def kernel(pipe, path):
    layer = pipe.model.unet
    for part in path.split("."):
        layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
    return layer


def test_live_with_any_strength_equals_the_weights_changed(
    ours,
    file,
    tiny_base,
    latents,  # noqa: F811
    plain,
    shapes,
):
    """By hand: weight + s * (the file's weight - weight), DoRA included."""
    changed, strength = Pipeline.from_pretrained(tiny_base), 0.6
    tensors = {k.removeprefix("lora_unet_"): v.astype(np.float64) for k, v in load_file(file).items()}

    def of(path, name):
        return tensors[f"{path.replace('.', '_')}.{name}"]

    query = f"{ATTENTION}.attn2.to_q"
    base = np.float64(kernel(changed, LINEAR).kernel[...]).T
    whole = base + of(LINEAR, "lora_up.weight") @ of(LINEAR, "lora_down.weight")
    dora = of(LINEAR, "dora_scale") * whole / np.linalg.norm(whole, axis=1, keepdims=True) - base
    products = [of(query, f"hada_w{i}_a") @ of(query, f"hada_w{i}_b") for i in (1, 2)]
    added = {
        LINEAR: dora.T,
        query: (products[0] * products[1]).T,
        OUT: np.kron(of(OUT, "lokr_w1"), of(OUT, "lokr_w2")).T,
        CONV: of(CONV, "diff").transpose(2, 3, 1, 0),
    }
    for path, change in added.items():
        layer = kernel(changed, path)
        layer.kernel[...] = layer.kernel[...] + strength * change.astype(np.float32)
    layer = kernel(changed, CONV)
    layer.bias[...] = layer.bias[...] + strength * of(CONV, "diff_b").astype(np.float32)

    ours.load_lora(file, weight=strength, name="x")
    found = paint(ours, latents)
    assert np.abs(found - paint(changed, latents)).max() < 1e-4
    assert np.abs(found - plain).max() > PIXEL
    # Another strength is no new program; none at all is the base.
    ours.set_lora_weights({"x": 0.0})
    assert np.abs(paint(ours, latents) - plain).max() < 1e-6
    ours.unload_lora()
    assert not changed_layers(ours.model.unet)
    assert np.array_equal(paint(ours, latents), plain)


def test_fused_next_to_a_lora(file, tiny_base, latents, plain, tmp_path):  # noqa: F811
    pipe = Pipeline.from_pretrained(tiny_base)
    pipe.load_lora(file, weight=0.5)
    adapters = random_lora(pipe, {"unet": [LINEAR, CONV]}, rank=2)
    write_lora(tmp_path / "lora.safetensors", adapters)
    pipe.load_lora(tmp_path / "lora.safetensors", weight=0.7)
    live = paint(pipe, latents)
    pipe.fuse_lora()
    assert not changed_layers(pipe.model.unet)
    assert np.abs(paint(pipe, latents) - live).max() < 1e-4
    assert np.abs(live - plain).max() > PIXEL


def test_one_pair_in_many_spellings_gives_one_image(ours, latents, plain, shapes, tmp_path):  # noqa: F811
    out, inner = shapes[LINEAR]
    down, up, images = draw(4, inner, size=1), draw(out, 4, size=1), []
    kohya = LINEAR.replace(".", "_")
    for stem, halves in {
        f"unet.{LINEAR}": ("lora_A.myname", "lora_B.myname"),
        f"diffusion_model.{SGM}": ("lora_A", "lora_B"),
        f"lora_unet_{kohya}": ("lora_down", "lora_up"),
        f"lycoris_{kohya}": ("lora_down", "lora_up"),
        f"unet.{SGM}": ("lora.down", "lora.up"),
    }.items():
        tensors = {f"{stem}.{half}.weight": x for half, x in zip(halves, (down, up), strict=True)}
        tensors[f"{stem}.alpha"] = np.float32(2)
        ours.unload_lora()
        ours.load_lora(save(tmp_path / "lora.safetensors", tensors))
        images.append(paint(ours, latents))
    assert all(np.array_equal(images[0], image) for image in images[1:])
    assert np.abs(images[0] - plain).max() > PIXEL


def test_written_for_other_programs(ours, tmp_path):
    """What write_comfy_lora and write_peft_folder write is read back bit by bit."""
    adapters = random_lora(ours, alpha=2.5)
    modules = layer_shapes(ours)
    comfy = tmp_path / "comfy.safetensors"
    write_comfy_lora(comfy, adapters, sgm_modules=modules["unet"])
    assert f"diffusion_model.{SGM.replace('attn1.to_k', 'attn2.to_k')}.lora_up.weight" in load_file(
        comfy
    )
    write_peft_folder(tmp_path / "peft", adapters)
    for path in (comfy, tmp_path / "peft"):
        found = read_lora(path, modules)
        assert {part: set(weights) for part, weights in found.items()} == {
            part: set(weights) for part, weights in adapters.items()
        }
        for part, weights in adapters.items():
            for name, lora in weights.items():
                again = found[part][name]
                assert np.array_equal(again.down, lora.down) and np.array_equal(again.up, lora.up)
                assert again.alpha == lora.alpha


# ---- Said aloud ---------------------------------------------------------------------------------


def lora(shapes, up=None):
    out, inner = shapes[LINEAR]
    return {
        f"unet.{LINEAR}.lora_A.weight": draw(2, inner),
        f"unet.{LINEAR}.lora_B.weight": draw(out, 2) if up is None else up,
    }


def test_what_changes_nothing_is_said(ours, shapes, tmp_path):
    path = save(tmp_path / "a.safetensors", lora(shapes))
    with pytest.warns(UserWarning, match="weight 0 and changes nothing"):
        ours.load_lora(path, weight=0)
    empty = save(tmp_path / "b.safetensors", lora(shapes, np.zeros((shapes[LINEAR][0], 2))))
    with pytest.warns(UserWarning, match="all of its layers are zero"):
        ours.load_lora(empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_lora(path)


@pytest.mark.parametrize("weight", [float("nan"), float("inf"), "1", None])
def test_a_weight_that_is_no_number(ours, shapes, tmp_path, weight):
    path = save(tmp_path / "a.safetensors", lora(shapes))
    with pytest.raises(ValueError, match="give a finite number"):
        ours.load_lora(path, weight=weight)
    ours.load_lora(path, name="a")
    with pytest.raises(ValueError, match="give a finite number"):
        ours.set_lora_weights({"a": weight})


def test_kinds_that_do_not_fit_the_layer(ours, tmp_path):
    stem = f"unet.{LINEAR}"
    bad = {
        "difference": {f"{stem}.diff": draw(5, 5)},
        "LoKr": {f"{stem}.lokr_w1": draw(2, 2), f"{stem}.lokr_w2": draw(3, 3)},
        "bias": {f"{stem}.diff": draw(64, 64), f"{stem}.diff_b": draw(64)},
    }
    for words, tensors in bad.items():
        path = save(tmp_path / "bad.safetensors", tensors)
        with pytest.raises(KeyMismatch, match=f"bad.safetensors(.|\n)*{words}"):
            ours.load_lora(path)
    assert not ours.adapters and not changed_layers(ours.model.unet)


def test_kinds_are_not_written_as_a_lora(ours, file, tmp_path):
    ours.load_lora(file, name="x")
    with pytest.raises(UnsupportedAdapter, match="has .*, which a LoRA file has no place for"):
        ours.save_lora(tmp_path / "a.safetensors", "x")
    with pytest.raises(ValueError, match="fuse_lora"):
        ours.save_pretrained(tmp_path / "whole")
    assert not list(tmp_path.iterdir())


def test_a_lora_of_sd_1_is_refused_whole(ours, tmp_path):
    stem = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    width = layer_shapes(ours)["text_encoder"]["encoder.layers.0.self_attn.q_proj"][1]
    tensors = {f"{stem}.lora_down.weight": draw(2, width), f"{stem}.lora_up.weight": draw(width, 2)}
    path = save(tmp_path / "sd1.safetensors", tensors)
    with pytest.raises(WeightsError, match="this is a LoRA for SD 1.x"):
        ours.load_lora(path)
    assert not ours.adapters
