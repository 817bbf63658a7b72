"""Adapters other than plain LoRA on the pipeline: live, at any strength, and removed again."""

import warnings

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from persongen_jax.models.layers import Conv, Linear
from persongen_jax.models.lora import changed_layers, merge_adapters, remove_adapters
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter, WeightsError
from persongen_jax.weights.formats.adapters import apply_adapter, extract_adapter
from persongen_jax.weights.formats.lora.kinds import Change, Difference, LoraWeights
from persongen_jax.weights.formats.lora.reading import read_lora
from persongen_jax.weights.formats.lora.writing import write_comfy_lora, write_peft_folder
from tests.helpers.lora_files import ATTENTION, layer_shapes, random_lora, save
from tests.pipeline.pictures import PIXEL, paint

LINEAR, CONV = f"{ATTENTION}.attn1.to_k", "down_blocks.0.resnets.1.conv1"
SGM = "input_blocks.4.1.transformer_blocks.0.attn1.to_k"
OUT = f"{ATTENTION}.attn2.to_out.0"


def draw(*shape, seed=0, size=0.2):
    return (size * np.random.default_rng((seed, *shape)).standard_normal(shape)).astype(np.float32)


def everything(shapes):
    """A file with kohya's names and one layer of each kind."""
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


@pytest.mark.slow
def test_live_with_any_strength_equals_the_weights_changed(
    ours,
    file,
    tiny_base,
    latents,
    plain,
    shapes,
):
    """By hand: weight + s * (the file's weight - weight), including DoRA."""
    changed, strength = Pipeline.from_pretrained(tiny_base), 0.6
    tensors = {k.removeprefix("lora_unet_"): np.float64(v) for k, v in load_file(file).items()}

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
    # Another strength needs no new program; without adapters it is the base.
    ours.set_lora_weights({"x": 0.0})
    assert np.abs(paint(ours, latents) - plain).max() < 1e-6
    ours.unload_lora()
    assert not changed_layers(ours.model.unet)
    assert np.array_equal(paint(ours, latents), plain)


class Net(nnx.Module):
    """One layer of each sort."""

    def __init__(self, param_dtype=jnp.float32):
        kw = {"dtype": jnp.float32, "param_dtype": param_dtype, "rngs": nnx.Rngs(0)}
        self.proj = Linear(8, 12, **kw)
        self.conv = Conv(4, 6, 3, padding=1, **kw)

    def __call__(self):
        x, image = draw(5, 8, size=1), draw(1, 7, 7, 4, size=1)
        return np.concatenate([np.ravel(self.proj(x)), np.ravel(self.conv(image))])


def change_of_net(seed=0):
    products = [LoraWeights(draw(2, 8, seed=seed, size=1), draw(12, 2, seed=seed, size=1))]
    magnitude = np.abs(draw(12, seed=seed)) + 0.5
    return {
        "proj": Change(tuple(products), bias=draw(12, seed=seed), magnitude=magnitude),
        "conv": Change((Difference(draw(6, 4, 3, 3, seed=seed)),), bias=draw(6, seed=seed)),
    }


@pytest.mark.slow
def test_layers_with_changes_of_several_files_and_a_lora():
    """Each acts with its own strength, independently; fused and removed again."""
    parts = [({"proj": LoraWeights(draw(3, 8, size=1), draw(12, 3, size=1), 1.5)}, 0.8)]
    parts += [(change_of_net(0), 0.6), (change_of_net(1), -0.4)]
    plain = Net()()
    alone = []
    for adapter, strength in parts:
        net = Net()
        apply_adapter(net, adapter, strength)
        alone.append(net() - plain)
    assert all(np.abs(each).max() > 0.1 for each in alone)
    net = Net()
    for adapter, strength in parts:
        apply_adapter(net, adapter, strength)
    np.testing.assert_allclose(net() - plain, sum(alone), atol=2e-5)
    live = net()
    merge_adapters(net)
    assert not changed_layers(net)
    np.testing.assert_allclose(net(), live, atol=2e-5)
    net = Net()
    apply_adapter(net, change_of_net(), 0.6)
    with pytest.raises(ValueError, match="other than plain LoRA; unload it"):
        extract_adapter(net)
    remove_adapters(net)
    assert np.array_equal(net(), plain)


def test_a_change_is_stored_as_the_weights_are():
    """Half the memory if they are stored in bfloat16, and within their rounding."""
    half, whole = Net(jnp.bfloat16), Net()
    for net in (half, whole):
        apply_adapter(net, change_of_net())
    assert half.proj.change.kernel[...].dtype == jnp.bfloat16
    assert np.abs(half() - whole()).max() < 0.02 * np.abs(whole()).max()


def test_written_for_other_programs(ours, tmp_path):
    """What write_comfy_lora and write_peft_folder write is read back bit for bit."""
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


# ---- Warnings ---------------------------------------------------------------------------------


def lora(shapes, up=None):
    out, inner = shapes[LINEAR]
    return {
        f"unet.{LINEAR}.lora_A.weight": draw(2, inner),
        f"unet.{LINEAR}.lora_B.weight": draw(out, 2) if up is None else up,
    }


def test_adapters_without_effect_cause_a_warning(ours, shapes, tmp_path):
    path = save(tmp_path / "a.safetensors", lora(shapes))
    with pytest.warns(UserWarning, match="weight 0, so it changes nothing"):
        ours.load_lora(path, weight=0)
    empty = save(tmp_path / "b.safetensors", lora(shapes, np.zeros((shapes[LINEAR][0], 2))))
    with pytest.warns(UserWarning, match="all of its layers are zero"):
        ours.load_lora(empty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ours.load_lora(path, name="another")
    with pytest.warns(UserWarning, match="replaces the one of that name; give name="):
        ours.load_lora(path, weight=0.5)


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
    }
    for words, tensors in bad.items():
        path = save(tmp_path / "bad.safetensors", tensors)
        with pytest.raises(KeyMismatch, match=f"bad.safetensors(.|\n)*{words}"):
            ours.load_lora(path)
    assert not ours.adapters and not changed_layers(ours.model.unet)


def test_a_bias_on_a_layer_without_one_is_added(ours, shapes, tmp_path):
    """PEFT's lora_bias, which it trains on every layer."""
    out, _ = shapes[LINEAR]
    bias = draw(out, seed=3)
    tensors = {**lora(shapes), f"unet.{LINEAR}.lora_B.bias": bias}
    path = save(tmp_path / "a.safetensors", tensors)
    layer = ours.model.unet
    for part in LINEAR.split("."):
        layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
    zeros = np.zeros((1, layer.kernel.shape[0]), np.float32)  # of which only a bias is left
    assert not layer(zeros).any()
    ours.load_lora(path, weight=0.5)
    np.testing.assert_allclose(layer(zeros)[0], 0.5 * bias, rtol=1e-6)
    with pytest.raises(ValueError, match="adds a bias to a layer without one"):
        ours.fuse_lora()
    ours.unload_lora()
    assert not layer(zeros).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(ours, shapes, tmp_path, bad):
    tensors = lora(shapes)
    tensors[f"unet.{LINEAR}.lora_A.weight"][0, 0] = bad
    with pytest.raises(UnsupportedAdapter, match="lora_A.weight' holds values that are not finite"):
        ours.load_lora(save(tmp_path / "a.safetensors", tensors))
    whole = {key: value.astype(np.int8) for key, value in lora(shapes).items()}
    with pytest.raises(UnsupportedAdapter, match="is stored as int8"):
        ours.load_lora(save(tmp_path / "b.safetensors", whole))
    with pytest.raises(ValueError, match="method:.* is reserved for methods"):
        ours.load_lora(save(tmp_path / "c.safetensors", lora(shapes)), name="method:photomaker")
    assert not ours.adapters


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
