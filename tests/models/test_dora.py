"""DoRA on our layers against PEFT's, outputs and gradients (float32)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.layers import Conv, Linear
from persongen_jax.models.lora import DoRA, add_adapter, add_lora, copy_lora, merge_adapters
from persongen_jax.training.partition import leaf_paths, set_leaves
from persongen_jax.weights.formats.adapters import apply_adapter, extract_adapter
from persongen_jax.weights.formats.lora.kinds import Change
from tests.helpers.twins import relative_error

TOLERANCE = 1e-5
KW = {"dtype": jnp.float32, "param_dtype": jnp.float32}


class Net(nnx.Module):
    """A linear layer or a convolution, with a bias."""

    def __init__(self, kind):
        make = {"linear": (Linear, (6, 5), {}), "conv": (Conv, (6, 5, 3), {"padding": 1})}
        layer, sizes, own = make[kind]
        self.layer = layer(*sizes, **own, **KW, rngs=nnx.Rngs(0))

    def __call__(self, x):
        return self.layer(x)


@pytest.fixture(params=["linear", "conv"])
def net(request):
    import re

    net = Net(request.param)
    own = {"alpha": 4.0, "rngs": nnx.Rngs(1), "dora": True}
    add_lora(net, re.compile("layer"), 2, **own)
    rng = np.random.default_rng(0)
    new = {
        path: (np.abs(leaf.get_value()) + rng.uniform(0.1, 1, leaf.shape)).astype(np.float32)
        for path, leaf in leaf_paths(net).items()
        if "/lora/" in path
    }
    set_leaves(net, new)
    return net


def test_at_first_it_changes_nothing():
    import re

    net, x = Net("linear"), np.random.default_rng(0).standard_normal((3, 6)).astype(np.float32)
    before = net(x)
    add_lora(net, re.compile("layer"), 2, alpha=2.0, rngs=nnx.Rngs(1), dora=True)
    assert isinstance(net.layer.lora, DoRA)
    assert np.abs(net(x) - before).max() < 1e-6


def test_outputs_and_gradients_are_pefts(net, golden):
    shape = (3, 6) if net.layer.kernel.ndim == 2 else (2, 4, 4, 6)
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape).astype(np.float32)
    weight = rng.standard_normal((*shape[:-1], 5)).astype(np.float32)
    graphdef, trained, rest = nnx.split(net, lambda path, _: "lora" in path, ...)

    def value(trained):
        out = nnx.merge(graphdef, trained, rest)(x)
        return (out * weight).sum(), out

    (_, out), gradients = jax.value_and_grad(value, has_aux=True)(trained)
    ours = {"/".join(p): np.asarray(g.get_value()) for p, g in nnx.to_flat_state(gradients)}
    lora = {name: ours[f"layer/lora/{name}"] for name in ("down", "up", "magnitude")}

    def theirs():
        import torch
        from peft import LoraConfig, inject_adapter_in_model

        is_conv = len(shape) == 4
        layer = torch.nn.Conv2d(6, 5, 3, padding=1) if is_conv else torch.nn.Linear(6, 5)
        kernel = np.asarray(net.layer.kernel[...])
        turned = kernel.transpose(3, 2, 0, 1) if is_conv else kernel.T
        module = torch.nn.ModuleDict({"layer": layer})
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["layer"], use_dora=True)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(turned.copy()))
            layer.bias.copy_(torch.from_numpy(np.array(net.layer.bias[...])))
        inject_adapter_in_model(config, module)
        layer, adapter = module["layer"], extract_adapter(net)["layer"]
        (pair,) = adapter.products
        halves = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        magnitude = layer.lora_magnitude_vector["default"].weight
        with torch.no_grad():
            for half, array in zip(halves, (pair.down, pair.up), strict=True):
                half.copy_(torch.from_numpy(np.array(array)))
            magnitude.copy_(torch.from_numpy(np.array(adapter.magnitude)).reshape(magnitude.shape))
        given, wanted = torch.from_numpy(x), torch.from_numpy(weight)
        if is_conv:
            given, wanted = given.permute(0, 3, 1, 2), wanted.permute(0, 3, 1, 2)
        result = layer(given)
        (result * wanted).sum().backward()
        down, up = (half.grad.numpy() for half in halves)
        out = result.detach().numpy()
        if is_conv:
            out, down, up = out.transpose(0, 2, 3, 1), down.transpose(2, 3, 1, 0), up[..., 0, 0].T
        else:
            down, up = down.T, up.T
        return {"out": out, "down": down, "up": up, "magnitude": magnitude.grad.numpy().reshape(-1)}

    for name, expected in golden(theirs).items():
        found = out if name == "out" else lora[name]
        assert relative_error(found, expected) < TOLERANCE, name


def test_what_is_taken_off_has_the_same_effect_on_the_bare_layer(net):
    shape = (3, 6) if net.layer.kernel.ndim == 2 else (2, 4, 4, 6)
    x = np.random.default_rng(3).standard_normal(shape).astype(np.float32)
    expected, adapter = net(x), extract_adapter(net)
    assert isinstance(adapter["layer"], Change)
    net.layer.lora = nnx.data(None)
    apply_adapter(net, adapter)
    assert relative_error(net(x), expected) < TOLERANCE
    merge_adapters(net)
    assert relative_error(net(x), expected) < TOLERANCE


def test_what_is_trained_is_merged_and_takes_nothing_more(net):
    shape = (3, 6) if net.layer.kernel.ndim == 2 else (2, 4, 4, 6)
    x = np.random.default_rng(4).standard_normal(shape).astype(np.float32)
    expected = net(x)
    with pytest.raises(ValueError, match="takes no further LoRA"):
        add_adapter(net.layer, net.layer.lora.down[...], net.layer.lora.up[...], 1.0)
    with pytest.raises(ValueError, match="DoRA, which is not copied"):
        copy_lora(net.layer, net.layer)
    merge_adapters(net)
    assert net.layer.lora is None
    assert relative_error(net(x), expected) < TOLERANCE
