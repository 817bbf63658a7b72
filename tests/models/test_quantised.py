"""Kernels in 8 bits: their error and bytes, and layers that compute with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.layers import Conv, Linear
from persongen_jax.models.lora import (
    add_change,
    check_mergeable,
    new_lora,
    quantised_as,
)
from persongen_jax.models.quantised import KINDS, check_kind, quantise
from persongen_jax.parallel.sharding import spec_of
from persongen_jax.systems.drawn_weights import with_random_weights
from persongen_jax.training.partition import fill_trained, quantise_frozen, split_model
from persongen_jax.weights.quantising import (
    base_layers,
    check_not_quantised,
    quantise_kernels,
)

OPTIONS = {"dtype": jnp.float32, "param_dtype": jnp.float32}


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_gets_the_nearest_code_of_its_channel(kind):
    kernel = np.random.default_rng(0).normal(size=(3, 3, 8, 5)).astype(np.float32)
    kernel *= 10.0 ** np.arange(-2, 3)  # one outlier channel must not cost the others precision
    kernel[..., 3] = 0
    held = quantise(kernel, kind)
    dtype, largest = KINDS[kind]
    assert held.codes.dtype == dtype and held.scale.shape == (1, 1, 1, 5)
    assert held.kind == kind and held.dtype == "float32" and held.shape == kernel.shape
    whole = np.asarray(held.astype(jnp.float32))
    assert np.array_equal(whole[..., 3], kernel[..., 3])
    scale = np.abs(kernel).max((0, 1, 2)) / largest
    if kind == "int8":
        bound = np.broadcast_to(scale / 2, kernel.shape)
    else:  # three bits of mantissa; below 2^-6 steps of 2^-9
        bound = np.maximum(np.abs(kernel) / 16, scale * 2.0**-10)
    assert (np.abs(whole - kernel) <= 1.0001 * bound).all()
    assert np.abs(whole).max((0, 1, 2)) == pytest.approx(np.abs(kernel).max((0, 1, 2)), rel=1e-6)


def test_bytes_are_half_of_bfloat16_and_the_scales():
    kernel = jnp.ones((64, 32), jnp.bfloat16)
    held = quantise(kernel, "int8")
    assert sum(x.nbytes for x in jax.tree.leaves(held)) == kernel.nbytes // 2 + 4 * 32


class Small(nnx.Module):
    """A linear layer and a convolution with LoRA, under the names of a base."""

    def __init__(self):
        rngs = nnx.Rngs(0)
        self.unet, self.vae = nnx.Dict(), nnx.Dict()
        self.unet["proj"] = Linear(6, 8, rngs=rngs, **OPTIONS)
        self.unet["conv"] = Conv(8, 4, 3, padding=1, use_bias=False, rngs=rngs, **OPTIONS)
        self.vae["conv"] = Linear(4, 4, rngs=rngs, **OPTIONS)
        for layer in self.unet.values():
            layer.lora = new_lora(layer, 2, rngs=rngs)
            layer.lora.up.set_value(jax.random.normal(rngs.params(), layer.lora.up.shape))

    def __call__(self, x):
        return self.vae["conv"](jnp.tanh(self.unet["conv"](jnp.tanh(self.unet["proj"](x)))))


LORA = ((".*/lora/(down|up)", "lora"),)


def multiplied_out(model):
    """The model with its kernels as ordinary arrays again."""
    model = nnx.clone(model)
    for layer in model.unet.values():
        layer.kernel.set_value(layer.kernel.get_value().astype(jnp.float32))
    return model


def test_gradients_are_those_through_the_multiplied_out_kernel():
    model = Small()
    assert base_layers(model) == {"unet/proj", "unet/conv"}
    quantise_frozen(model, "int8", {"unet/proj"}, LORA)
    quantise_frozen(model, "fp8", base_layers(model), LORA)
    assert [quantised_as(layer) for layer in model.unet.values()] == ["int8", "fp8"]
    assert not quantised_as(model.vae["conv"])
    add_change(model.unet["conv"], 0.1 * jnp.ones((3, 3, 8, 4)), jnp.ones(4))
    x = jax.random.normal(jax.random.key(1), (2, 5, 5, 6))

    def gradients(model):
        graphdef, trained, rest = nnx.split(model, lambda path, _: "lora" in path, ...)

        def loss(trained, x):
            return jnp.square(nnx.merge(graphdef, trained, rest)(x)).sum()

        return jax.jit(jax.value_and_grad(loss, (0, 1)))(trained, x)

    ours, wanted = gradients(model), gradients(multiplied_out(model))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_what_is_trained_keeps_its_precision():
    model = Small()
    table = (*LORA, ("unet/proj/kernel", "whole"))
    quantise_frozen(model, "int8", base_layers(model), table)
    _, trained, frozen, _ = split_model(model, table)
    assert all(x.dtype == jnp.float32 for x in trained.values()) and "unet/proj/kernel" in trained
    codes = [x for x in jax.tree.leaves(frozen) if x.dtype == jnp.int8]
    assert [x.shape for x in codes] == [(3, 3, 8, 4)]


def test_what_8_bits_rule_out_is_refused_in_a_sentence():
    model = Small()
    kernel = np.asarray(model.unet["proj"].kernel[...])
    quantise_kernels(model.unet, "fp8")
    table = (("unet/proj/kernel", "whole"),)
    with pytest.raises(
        ValueError, match=r"unet/proj/kernel: held in fp8, it cannot be trained; op"
    ):
        split_model(model, table)
    with pytest.raises(ValueError, match=r"held in fp8, it cannot take RUN's weights"):
        fill_trained(model, {"unet/proj/kernel": kernel}, table, "RUN")
    with pytest.raises(ValueError, match=r"held in fp8, which has no room .* without quantize"):
        check_mergeable(model)
    with pytest.raises(ValueError, match=r"not saved: unet/\w+ and others are held in fp8; open"):
        check_not_quantised(model, "not saved")
    with pytest.raises(ValueError, match=r"config.quantize='int4': use 'int8', 'fp8', or ''"):
        check_kind("int4", "config.quantize")
    with pytest.raises(TypeError, match="no NumPy array"):
        np.asarray(model.unet["proj"].kernel.get_value())


def test_shapes_alone_and_drawn_weights():
    def build():
        model = Small()
        quantise_kernels(model.unet, "int8")
        return model

    shapes, arrays = nnx.state(nnx.eval_shape(build)), nnx.state(build())
    wanted = jax.tree.map(lambda x: (x.shape, x.dtype), arrays)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), shapes) == wanted
    drawn = with_random_weights(nnx.eval_shape(build))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), nnx.state(drawn)) == wanted
    assert np.abs(np.asarray(drawn.unet["proj"].kernel.get_value().codes)).max() == 127


def test_codes_are_divided_like_the_kernel_and_scales_stay_whole():
    path = "unet/conv_in/kernel"
    assert spec_of(f"{path}/value/codes", (3, 3, 320, 640), 2) == spec_of(path, (3, 3, 320, 640), 2)
    assert not tuple(spec_of(f"{path}/value/scale", (1, 1, 1, 8192), 2))
