"""IP-Adapter's files, against files with diffusers' keys, shapes and numbering."""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from safetensors.torch import load_file, save_file
from transformers import CLIPVisionModelWithProjection

from persongen_jax.config import VERSION
from persongen_jax.convert.importing import ip_adapter_shapes
from persongen_jax.methods import get_method
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import add_adapter, lora_layers
from persongen_jax.models.sdxl.unet import UNet2DConditionModel as OurUNet
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import assign_groups, leaf_paths
from persongen_jax.weights.errors import (
    KeyMismatch,
    MissingFile,
    UnsupportedAdapter,
    WeightsError,
)
from persongen_jax.weights.formats.ip_adapter import (
    PROJECTIONS,
    is_ip_adapter,
    load_ip_adapter_into,
    read_ip_adapter,
    save_image_encoder,
    save_ip_adapter,
)
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from persongen_jax.weights.slots import processors
from tests.helpers.configs import SDXL_UNET
from tests.helpers.ip_adapters import FACES, projection, write_ip_adapter
from tests.helpers.twins import nhwc, relative_error
from tests.weights.formats.ip_adapter.models import FACE_NET, FEATURES, RANK, attach


def test_the_numbering_is_diffusers_order(unet, loaded):
    wanted = [name.removesuffix(".processor") for name in unet.attn_processors]
    assert list(processors(loaded["base"].unet)) == wanted
    for i, name in enumerate(wanted):
        assert name.endswith("attn2" if i % 2 else "attn1")


def test_the_numbering_at_full_size():
    """formats.md's table, row by row, for the UNet as shapes only."""
    unet = nnx.eval_shape(lambda: OurUNet(SDXL_UNET, rngs=UnusedRngs()))
    layers = list(processors(unet).items())
    assert len(layers) == 140
    rows = [(range(8), "down_blocks.1", 640), (range(8, 48), "down_blocks.2", 1280)]
    rows += [(range(48, 108), "up_blocks.0", 1280), (range(108, 120), "up_blocks.1", 640)]
    rows += [(range(120, 140), "mid_block", 1280)]
    parameters = 0
    for numbers, block, hidden in rows:
        for i in numbers:
            name, layer = layers[i]
            assert name.startswith(block + ".attentions") and layer.to_k.kernel.shape[1] == hidden
            if i % 2:
                assert layer.to_k.kernel.shape == (2048, hidden)
                parameters += 2 * 2048 * hidden
    assert round(parameters / 1e5) == 3408


PLUS = {"out_features": 2048, "heads": 20, "head_dim": 64, "num_layers": 4, "num_tokens": 16}


@pytest.mark.parametrize(
    ("kind", "sizes", "rank", "tensors", "millions"),
    [
        ("faceid-plus", {"in_features": 512, "image_features": 1280}, 128, 1316, 743.708),
        ("faceid", {"in_features": 512, "num_tokens": 16}, None, 146, 374.904),  # Portrait
        ("plus", {"in_features": 1280, "features": 1280, **PLUS}, None, 191, 423.749),  # Plus-Face
    ],
)
def test_keys_and_shapes_at_full_size(kind, sizes, rank, tensors, millions):
    """As counted in the published files; every key and shape is one that import asks for."""
    unet = nnx.eval_shape(lambda: OurUNet(SDXL_UNET, rngs=UnusedRngs()))
    if kind != "plus":
        sizes = {**sizes, "features": 2048}
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    image_proj = nnx.eval_shape(lambda: PROJECTIONS[kind](**sizes, **kw))
    shapes = ip_adapter_shapes(unet, image_proj, 2048, rank)
    assert len(shapes) == tensors
    assert round(sum(map(math.prod, shapes.values())) / 1e3) == round(millions * 1e3)
    if kind == "faceid-plus":
        part = "image_proj.perceiver_resampler."
        known = {
            "image_proj.proj.0.weight": (1024, 512),
            "image_proj.proj.2.weight": (8192, 1024),
            "image_proj.norm.bias": (2048,),
            f"{part}proj_in.weight": (2048, 1280),
            f"{part}norm_out.weight": (2048,),
            f"{part}layers.3.0.to_q.weight": (2048, 2048),
            f"{part}layers.3.0.to_kv.weight": (4096, 2048),
            f"{part}layers.0.1.1.weight": (8192, 2048),
            f"{part}layers.0.1.3.weight": (2048, 8192),
            "ip_adapter.139.to_k_ip.weight": (1280, 2048),
            "ip_adapter.1.to_k_lora.down.weight": (128, 2048),
            "ip_adapter.0.to_out_lora.up.weight": (640, 128),
        }
        assert known.items() <= shapes.items()
        assert sum(key.startswith("image_proj.") for key in shapes) == 56


@pytest.mark.parametrize("kind", FEATURES)
def test_what_the_file_says_of_itself(kind, files):
    path, _ = files[kind]
    assert is_ip_adapter(path)
    with read_ip_adapter(path) as file:
        assert (file.kind, file.width, file.layers) == (kind, 96, 17)
        assert file.rank == (RANK if kind in FACES else None)
        assert file.sizes["in_features"] == FEATURES[kind]
        assert file.sizes.get("image_features") == (64 if kind == "faceid-plus" else None)
        assert file.sizes["num_tokens"] == (6 if kind == "plus" else 4)


@pytest.mark.parametrize("kind", FEATURES)
def test_every_tensor_goes_to_its_layer(kind, files, loaded, unet):
    _, tensors = files[kind]
    model = loaded[kind]
    for i, name in enumerate(unet.attn_processors):
        layer = model.unet
        for part in name.removesuffix(".processor").split("."):
            layer = layer[int(part)] if part.isdigit() else getattr(layer, part)
        if i % 2:
            for short in ("to_k", "to_v"):
                found = getattr(layer.branches["identity"], short).kernel[...]
                wanted = tensors[f"ip_adapter.{i}.{short}_ip.weight"].numpy()
                assert np.array_equal(found.T, wanted)
        if kind in FACES:
            lora = layer.to_out[0].lora
            prefix = f"ip_adapter.{i}.to_out_lora"
            assert np.array_equal(lora.down[...].T, tensors[f"{prefix}.down.weight"].numpy())
            assert np.array_equal(lora.up[...].T, tensors[f"{prefix}.up.weight"].numpy())
            assert np.all(lora.scale[...] == 1)
    if kind not in FACES:
        assert not lora_layers(model.unet)
    theirs = projection(kind, FEATURES[kind], 96)
    shape = (2, 5, FEATURES[kind]) if kind == "plus" else (2, FEATURES[kind])
    inputs = [np.random.default_rng(0).standard_normal(shape).astype(np.float32)]
    if kind == "faceid-plus":
        inputs.append(np.random.default_rng(1).standard_normal((2, 5, 64)).astype(np.float32))
        theirs.clip_embeds, theirs.shortcut = torch.from_numpy(inputs[1])[:, None], True
    with torch.no_grad():
        wanted = theirs(torch.from_numpy(inputs[0])).numpy()
    assert relative_error(jax.jit(lambda *x: model.image_proj(*x))(*inputs), wanted) < 1e-5


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_round_trip_is_bit_equal(kind, ending, files, loaded, tmp_path):
    _, tensors = files[kind]
    path = tmp_path / f"mine.{ending}"
    save_ip_adapter(loaded[kind], path)
    if ending == "bin":
        written = torch.load(path, weights_only=True)
        assert list(written) == ["image_proj", "ip_adapter"]
        written = {f"{p}.{key}": x for p, inner in written.items() for key, x in inner.items()}
        numbered = [key for key in written if key.startswith("ip_adapter.")]
        assert numbered == [key for key in tensors if key.startswith("ip_adapter.")]
    else:
        written = load_file(path)
    assert written.keys() == tensors.keys()
    assert all(torch.equal(written[key], tensors[key]) for key in tensors)
    before = {name: leaf.get_value() for name, leaf in leaf_paths(loaded[kind]).items()}
    load_ip_adapter_into(loaded[kind], path)
    after = leaf_paths(loaded[kind])
    assert all(np.array_equal(after[name].get_value(), value) for name, value in before.items())


def test_half_precision_comes_in_as_what_the_model_holds(files, loaded, tmp_path):
    _, tensors = files["base"]
    save_file({key: value.half() for key, value in tensors.items()}, tmp_path / "half.safetensors")
    load_ip_adapter_into(loaded["base"], tmp_path / "half.safetensors")
    kernel = (
        processors(loaded["base"].unet)["mid_block.attentions.0.transformer_blocks.1.attn2"]
        .branches["identity"]
        .to_k.kernel[...]
    )
    assert kernel.dtype == jnp.float32
    numbers = sorted(int(key.split(".")[1]) for key in tensors if key.startswith("ip_adapter."))
    wanted = tensors[f"ip_adapter.{numbers[-1]}.to_k_ip.weight"].half().float().numpy()
    assert np.array_equal(kernel.T, wanted)
    load_ip_adapter_into(loaded["base"], files["base"][0])


@pytest.mark.parametrize("kind", FEATURES)
def test_every_variant_can_be_trained_from_scratch(kind, tiny_base, tmp_path):
    rank = RANK if kind in FACES else 0
    model, method = attach(tiny_base, image_proj=kind, image_lora_rank=rank)
    groups = assign_groups(leaf_paths(model), method.groups)
    assert {"projections", "identity"} <= set(groups.values())
    assert ("lora" in groups.values()) == bool(rank)
    layer = processors(model.unet)["mid_block.attentions.0.transformer_blocks.0.attn2"]
    assert np.array_equal(layer.branches["identity"].to_k.kernel[...], layer.to_k.kernel[...])
    assert model.image_proj.num_tokens == (16 if kind == "plus" else 4)
    save_ip_adapter(model, tmp_path / "mine.safetensors")
    with read_ip_adapter(tmp_path / "mine.safetensors") as file:
        assert file.kind == kind and file.rank == (rank or None)


def test_a_run_goes_on_from_the_file_that_an_earlier_one_started_from(
    files, loaded, tiny_base, tmp_path
):
    """The file sets variant and rank; a checkpoint only has its trained tensors."""
    path = str(files["faceid"][0])
    wanted = {name: leaf.get_value() for name, leaf in leaf_paths(loaded["faceid"]).items()}
    trained = {name: array + 1 for name, array in wanted.items() if "/branches/" in name}
    checkpoints = Checkpoints(tmp_path)
    config = {"version": VERSION, "method": "ip_adapter", "start_from": path}
    checkpoints.save(0, trained, {"count": np.zeros(1)}, config)
    checkpoints.close()
    leaves = leaf_paths(attach(tiny_base, start_from=str(tmp_path))[0])
    assert leaves.keys() == wanted.keys()
    for name, array in {**wanted, **trained}.items():
        assert np.array_equal(leaves[name].get_value(), array), name


def test_a_single_token_per_reference_becomes_a_base_file(tiny_base, tmp_path):
    """diffusers' own class makes four times our token of the tensors that we write."""
    method = get_method("id_branch")
    model, _ = attach(tiny_base, method)
    rng = np.random.default_rng(0)
    for leaf in (model.id_tokens.id_norm.scale, model.id_tokens.id_norm.bias):
        leaf.set_value(jnp.asarray(rng.standard_normal(96), jnp.float32))
    save_ip_adapter(model, tmp_path / "mine.safetensors")
    save_image_encoder(model, tmp_path / "image_encoder")
    written = load_file(tmp_path / "mine.safetensors")

    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    encoder = CLIPVisionModelWithProjection.from_pretrained(tmp_path / "image_encoder").eval()
    theirs = projection("base", 64, 96)
    theirs.load_state_dict(
        {
            key.removeprefix("image_proj.").replace("proj.", "image_embeds."): value
            for key, value in written.items()
            if key.startswith("image_proj.")
        }
    )
    with torch.no_grad():
        wanted = theirs(encoder(pixels).image_embeds).numpy()
    pooled = model.id_encoder.pool(nhwc(pixels)[None])
    found = model.id_tokens(model.id_encoder, pooled)[0]
    for token in range(4):
        assert relative_error(found, wanted[:, token]) < 1e-5
    with pytest.raises(WeightsError, match="no image_proj"):
        load_ip_adapter_into(model, tmp_path / "mine.safetensors")


@pytest.mark.parametrize(
    ("kind", "model"), [("plus", "base"), ("base", "plus"), ("faceid", "base")]
)
def test_the_wrong_variant_is_named(kind, model, files, loaded):
    with pytest.raises(UnsupportedAdapter, match=f"{kind} variant.*{model} variant's"):
        load_ip_adapter_into(loaded[model], files[kind][0])


def test_another_unet_is_named(loaded, tmp_path):
    """Stable Diffusion 1.5's: 16 cross-attention layers that read 768 features."""
    tensors = {
        "image_proj.proj.weight": torch.zeros(4 * 768, 32),
        "image_proj.proj.bias": torch.zeros(4 * 768),
        "image_proj.norm.weight": torch.zeros(768),
        "image_proj.norm.bias": torch.zeros(768),
    }
    for i in range(1, 32, 2):
        for short in ("to_k", "to_v"):
            tensors[f"ip_adapter.{i}.{short}_ip.weight"] = torch.zeros(8, 768)
    save_file(tensors, tmp_path / "ip-adapter_sd15.safetensors")
    named = r"(?s)sd15\.safetensors: is for Stable Diffusion 1\.5.*this UNet is a UNet of 17 "
    with pytest.raises(UnsupportedAdapter, match=named):
        load_ip_adapter_into(loaded["base"], tmp_path / "ip-adapter_sd15.safetensors")


def test_another_image_encoder_is_named(tiny_base, unet, tmp_path):
    write_ip_adapter(tmp_path / "vit_h.safetensors", unet, "base", 48)
    with pytest.raises(ValueError, match=r"vit_h\.safetensors.*width 48.*are 32 wide.*ViT-H 1024"):
        attach(tiny_base, start_from=str(tmp_path / "vit_h.safetensors"))


def test_another_rank_is_named(files, loaded, tiny_base, tmp_path):
    _, tensors = files["faceid"]
    plain = {key: value for key, value in tensors.items() if "_lora." not in key}
    save_file(plain, tmp_path / "plain.safetensors")
    with pytest.raises(WeightsError, match=f"no LoRA, the model's ranks: {RANK}"):
        load_ip_adapter_into(loaded["faceid"], tmp_path / "plain.safetensors")
    two = dict(tensors)
    key = "ip_adapter.3.to_q_lora.down.weight"
    two[key] = two[key][:2].clone()
    save_file(two, tmp_path / "two.safetensors")
    with pytest.raises(UnsupportedAdapter, match=re.escape("[2, 4]")):
        read_ip_adapter(tmp_path / "two.safetensors")


def test_keys_that_do_not_pair_up_are_all_listed(files, loaded, tmp_path):
    _, tensors = files["plus"]
    changed = dict(tensors)
    del changed["ip_adapter.5.to_v_ip.weight"]
    changed["image_proj.layers.0.0.norm3.weight"] = torch.zeros(3)
    changed["image_proj.norm_out.bias"] = torch.zeros(5)
    save_file(changed, tmp_path / "changed.safetensors")
    before = {name: leaf.get_value() for name, leaf in leaf_paths(loaded["plus"]).items()}
    with pytest.raises(KeyMismatch) as caught:
        load_ip_adapter_into(loaded["plus"], tmp_path / "changed.safetensors")
    assert list(caught.value.missing) == ["ip_adapter.5.to_v_ip.weight"]
    assert list(caught.value.unexpected) == ["image_proj.layers.0.0.norm3.weight"]
    assert caught.value.misshapen == {"image_proj.norm_out.bias": ((5,), (96,))}
    after = leaf_paths(loaded["plus"])
    assert all(after[name].get_value() is value for name, value in before.items())


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("id_encoder.fuse_module.layer_norm.weight", "PhotoMaker"),
        ("lora_weights.unet.a.processor.to_q_lora.down.weight", "PhotoMaker"),
        ("id_adapter_attn_layers.0.id_to_k.weight", "PuLID"),
        ("image_proj.proj.3.weight", "full face"),
        ("unet.mid_block.attentions.0.attn1.to_q.lora.down.weight", "plain LoRA"),
        ("model.diffusion_model.out.0.weight", "whole Stable Diffusion"),
        ("conv_in.weight", r"ip_adapter\.\*\.to_k_ip"),
    ],
)
def test_other_files_are_named(tmp_path, key, named):
    path = tmp_path / "adapter.safetensors"
    save_file({key: torch.zeros(2, 2)}, path)
    assert is_ip_adapter(path) == key.startswith("image_proj")
    with pytest.raises(WeightsError, match=rf"(?s)adapter\.safetensors.*{named}"):
        read_ip_adapter(path)


def test_a_missing_file_and_an_odd_ending(loaded, tmp_path):
    with pytest.raises(MissingFile, match=r"gone\.bin"):
        read_ip_adapter(tmp_path / "gone.bin")
    with pytest.raises(WeightsError, match=r"\.safetensors or \.bin"):
        save_ip_adapter(loaded["base"], tmp_path / "mine.pth")


def test_models_that_the_format_cannot_hold(tiny_base, files, tmp_path):
    plain = load_sdxl(tiny_base).model
    with pytest.raises(WeightsError, match="no image_proj"):
        save_ip_adapter(plain, tmp_path / "mine.bin")
    model, _ = attach(tiny_base)
    layer = processors(model.unet)["mid_block.attentions.0.transformer_blocks.0.attn2"]
    add_adapter(layer.to_q, jnp.ones((64, 2)), jnp.ones((2, 64)), 1.0)
    with pytest.raises(WeightsError, match="1 of 136 attention layers carry a LoRA"):
        save_ip_adapter(model, tmp_path / "mine.bin")
    layer.to_q.lora = nnx.data(None)
    branch = layer.branches["identity"]
    add_adapter(branch.to_k, jnp.ones((96, 2)), jnp.ones((2, 64)), 1.0)
    with pytest.raises(WeightsError, match=r"branches\.identity\.to_k carries a LoRA"):
        save_ip_adapter(model, tmp_path / "mine.bin")
    with pytest.raises(ValueError, match="known are base, plus, faceid, faceid-plus"):
        attach(tiny_base, image_proj="full")
    with pytest.raises(ValueError, match="FaceID reads the embeddings"):
        attach(tiny_base, image_proj="faceid", face_encoder="", face_net="auto")
    # Runs of before it had a key of its own named the recogniser as the judge.
    older, _ = attach(tiny_base, image_proj="faceid", face_encoder="", face_net=FACE_NET)
    assert older.face_encoder.config["embedding_dim"] == 128
