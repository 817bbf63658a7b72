"""PhotoMaker's files, v1 and v2, against ones that the public PyTorch classes write."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from flax import nnx
from ml_collections import ConfigDict
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Parts
from persongen_jax.models.encoders.id_encoder import PhotoMakerIDEncoder
from persongen_jax.models.encoders.photomaker_v2 import PhotoMakerV2IDEncoder
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import add_adapter, lora_layers
from persongen_jax.training.partition import leaf_paths
from persongen_jax.weights.errors import (
    BadConfig,
    KeyMismatch,
    MissingDependency,
    MissingFile,
    UnsupportedAdapter,
    WeightsError,
)
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.photomaker import (
    infer_vision_config,
    load_photomaker_into,
    load_photomaker_tower,
    read_photomaker,
    save_photomaker,
)
from persongen_jax.weights.formats.sdxl.loading import load_sdxl
from tests.helpers.twins import nhwc, randomise, relative_error
from tests.methods.test_photomaker import TorchFuse
from tests.models.test_photomaker_v2 import TorchV2IDEncoder

TOLERANCE = 1e-5
RANK = 4


class TorchIDEncoder(CLIPVisionModelWithProjection):
    """The published class: CLIP's image tower, a second head, the fuse module."""

    def __init__(self, config, widths):
        super().__init__(config)
        self.visual_projection_2 = torch.nn.Linear(config.hidden_size, widths[1], bias=False)
        self.fuse_module = TorchFuse(sum(widths))

    def embed(self, pixels):
        pooled = self.vision_model(pixels)[1]
        return torch.cat([self.visual_projection(pooled), self.visual_projection_2(pooled)], -1)


def attach(tiny_base, method="photomaker", **settings):
    base = load_sdxl(tiny_base)
    config = {"base": str(tiny_base), "id_encoder": "", "rank": RANK, "lora_alpha": RANK}
    config = ConfigDict({**config, "dtype": "float32", **settings})
    get_method(method).attach(Parts(base.model, base.tokenizers), config, nnx.Rngs(0))
    return base.model


@pytest.fixture(scope="module")
def encoder(tiny_base):
    """PyTorch's ID encoder with the tiny base's sizes."""
    config = CLIPVisionConfig.from_pretrained(tiny_base / "image_encoder")
    return randomise(TorchIDEncoder(config, (32, 64)))


@pytest.fixture(scope="module")
def unet(tiny_base):
    return UNet2DConditionModel.from_pretrained(tiny_base / "unet")


@pytest.fixture(scope="module")
def tensors(encoder, unet):
    """The two dictionaries of a file; half of them bfloat16, as the published one mixes dtypes."""
    generator = torch.Generator().manual_seed(1)
    lora = {}
    for name, processor in unet.attn_processors.items():
        attention = unet.get_submodule(name.removesuffix(".processor"))
        for short, layer in (
            ("to_q", attention.to_q),
            ("to_k", attention.to_k),
            ("to_v", attention.to_v),
            ("to_out", attention.to_out[0]),
        ):
            out, inner = layer.weight.shape
            for half, shape in (("down", (RANK, inner)), ("up", (out, RANK))):
                value = 0.2 * torch.randn(shape, generator=generator)
                lora[f"unet.{name}.{short}_lora.{half}.weight"] = value
        assert processor is not None
    both = {"id_encoder": dict(encoder.state_dict()), "lora_weights": lora}
    return {
        part: {
            key: value.bfloat16() if i % 2 and "vision_model" not in key else value
            for i, (key, value) in enumerate(inner.items())
        }
        for part, inner in both.items()
    }


@pytest.fixture(scope="module")
def file(tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker-v1.bin"
    torch.save(tensors, path)
    return path


@pytest.fixture(scope="module")
def model(tiny_base, file):
    model = attach(tiny_base)
    load_photomaker_into(model, file)
    return model


def rewrite(path, change):
    """A copy of the file whose flat tensors ``change`` has altered, in place."""
    with read_photomaker(path) as opened:
        arrays = {key: opened.tensors.read(key) for key in opened.tensors.keys()}
    change(arrays)
    return write(path.with_name("changed.safetensors"), arrays)


def write(path, arrays):
    entries = [(key, a.shape, a.dtype, lambda a=a: a) for key, a in arrays.items()]
    write_safetensors(path, entries)
    return path


# ---- What it computes --------------------------------------------------------------------------


def test_the_id_encoder_computes_what_the_published_class_does(model, tensors, encoder, tiny_base):
    theirs = TorchIDEncoder(encoder.config, (32, 64))
    theirs.load_state_dict(tensors["id_encoder"])  # with values rounded to bfloat16
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        wanted = theirs.eval().embed(pixels).numpy()
    found = jax.jit(lambda x: model.id_encoder(x))(nhwc(pixels)[None])[0]
    assert relative_error(found, wanted) < TOLERANCE
    fused = np.concatenate([wanted, wanted])[:2, None]
    with torch.no_grad():
        tokens = torch.from_numpy(fused)
        wanted = theirs.fuse_module.stack(tokens, tokens, [1, 1], [0, 0]).numpy()
    found = model.id_encoder.fuse_module(fused, fused)
    assert relative_error(found, wanted) < TOLERANCE


def test_the_lora_does_what_diffusers_makes_of_it(model, tensors, unet):
    """diffusers reads ``lora_weights`` as passed by the official pipeline."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1, 8, 8, 4)).astype(np.float32)
    tokens = rng.standard_normal((1, 7, 96)).astype(np.float32)
    pooled = rng.standard_normal((1, 64)).astype(np.float32)
    ids = np.array([[64, 64, 0, 0, 64, 64]], np.float32)

    def theirs():
        added = {"text_embeds": torch.from_numpy(pooled), "time_ids": torch.from_numpy(ids)}
        sample = torch.from_numpy(x).permute(0, 3, 1, 2)
        with torch.no_grad():
            out = unet(sample, 500, torch.from_numpy(tokens), added_cond_kwargs=added).sample
        return nhwc(out)

    plain = theirs()
    unet.load_lora_adapter(
        {key: value.float() for key, value in tensors["lora_weights"].items()}, prefix="unet"
    )
    try:
        wanted = theirs()
    finally:
        unet.delete_adapters("default_0")
    conditioning = Conditioning({"text": TokenStream(jnp.asarray(tokens))}, pooled, ids)
    found = jax.jit(lambda x, c: model.unet(x, 500, c))(x, conditioning)
    assert relative_error(wanted, plain) > 0.05
    assert relative_error(found, wanted) < TOLERANCE


# ---- What it reads and writes ------------------------------------------------------------------


def same(found, wanted):
    """Equal as float32, which represents every bfloat16."""
    return np.array_equal(np.asarray(found, np.float32), np.asarray(wanted, np.float32))


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_round_trip_is_bit_equal(model, file, tensors, tiny_base, tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    save_photomaker(model, path)
    with read_photomaker(file) as first, read_photomaker(path) as second:
        assert set(first.tensors.keys()) == set(second.tensors.keys())
        assert first.rank == second.rank == RANK
        for key in first.tensors.keys():
            assert same(second.tensors.read(key), first.tensors.read(key)), key
    again = attach(tiny_base)
    load_photomaker_into(again, path)
    leaves = leaf_paths(model)
    assert all(
        np.array_equal(leaf.get_value(), leaves[name].get_value())
        for name, leaf in leaf_paths(again).items()
    )
    if ending == "bin":
        # The keys in the order in which the public classes register them.
        written = torch.load(path, weights_only=True)
        assert list(written) == ["id_encoder", "lora_weights"]
        assert list(written["lora_weights"]) == list(tensors["lora_weights"])
        first_of = dict.fromkeys(key.split(".")[0] for key in written["id_encoder"])
        assert list(first_of) == list(
            dict.fromkeys(key.split(".")[0] for key in tensors["id_encoder"])
        )


def test_bfloat16_is_written_as_bfloat16(tiny_base, tmp_path):
    model = attach(tiny_base, dtype="bfloat16")
    for name in ("mine.bin", "mine.safetensors"):
        save_photomaker(model, tmp_path / name)
        with read_photomaker(tmp_path / name) as found:
            tower = found.id_encoder.info("vision_model.post_layernorm.weight")[0]
            assert tower == jnp.bfloat16
            assert found.id_encoder.info("visual_projection.weight")[0] == np.float32


def test_safetensors_needs_no_torch(model, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    save_photomaker(model, tmp_path / "mine.safetensors")
    load_photomaker_into(model, tmp_path / "mine.safetensors")
    with pytest.raises(MissingDependency, match=r"mine\.bin.*persongen_jax\[convert\]"):
        save_photomaker(model, tmp_path / "mine.bin")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.safetensors"]


def test_another_alpha_keeps_the_effect(model, file, tiny_base, tmp_path):
    other = attach(tiny_base, lora_alpha=3.0)
    load_photomaker_into(other, file)
    path = ("down_blocks", 1, "attentions", 0, "transformer_blocks", 0, "attn1", "to_q")

    def delta(model):
        lora = lora_layers(model.unet)[path].lora
        return np.asarray((lora.down[...] * lora.scale[...]) @ lora.up[...])

    assert lora_layers(other.unet)[path].lora.scale[0] == 0.75
    assert relative_error(delta(other), delta(model)) < 1e-6
    save_photomaker(other, tmp_path / "mine.safetensors")
    again = attach(tiny_base)
    load_photomaker_into(again, tmp_path / "mine.safetensors")
    assert relative_error(delta(again), delta(model)) < 1e-6


def test_it_also_fills_a_method_that_adds_branches(file, tiny_base, model):
    other = attach(tiny_base, method="photomaker_bg")
    load_photomaker_into(other, file)
    leaves = leaf_paths(model)
    filled = {k: v for k, v in leaf_paths(other).items() if "branches" not in k}
    assert leaves.keys() == filled.keys()
    assert all(np.array_equal(filled[k].get_value(), leaves[k].get_value()) for k in leaves)


def test_full_size_keys():
    """The tensors of the published file, as shapes only: formats.md names these."""
    widths = (768, 1280)
    shapes = {
        "embeddings.patch_embedding.weight": (1024, 3, 14, 14),
        "embeddings.position_embedding.weight": (257, 1024),
        **{f"encoder.layers.{i}.mlp.fc1.weight": (4096, 1024) for i in range(24)},
    }
    shapes = {key: np.broadcast_to(np.float32(0), shape) for key, shape in shapes.items()}
    config = infer_vision_config(DictSource(shapes))
    theirs = CLIPVisionConfig(**config, projection_dim=768)
    with torch.device("meta"):
        wanted = {
            key: tuple(value.shape)
            for key, value in TorchIDEncoder(theirs, widths).state_dict().items()
        }
    assert len(wanted) == 407 and wanted["fuse_module.mlp1.fc1.weight"] == (2048, 4096)
    assert config["num_attention_heads"] == 16 and config["image_size"] == 224

    def build():
        from persongen_jax.models.encoders.clip import CLIPVisionModel

        kw = {"dtype": jnp.bfloat16, "rngs": UnusedRngs()}
        return PhotoMakerIDEncoder(CLIPVisionModel(config, **kw), widths, **kw)

    from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key

    ours = parameter_leaves(nnx.eval_shape(build))
    assert {torch_key(p): to_torch_shape(p, leaf.shape) for p, leaf in ours.items()} == wanted


def test_an_image_tower_without_a_directory(tmp_path):
    config = CLIPVisionConfig(
        hidden_size=128,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=8,
    )
    theirs = randomise(TorchIDEncoder(config, (8, 8)))
    lora = {"unet.mid_block.attn1.processor.to_q_lora.down.weight": torch.zeros(2, 3)}
    torch.save(
        {"id_encoder": theirs.state_dict(), "lora_weights": lora}, tmp_path / "photomaker.bin"
    )
    tower = load_photomaker_tower(tmp_path / "photomaker.bin", dtype=jnp.float32)
    pixels = torch.randn(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wanted = theirs.vision_model(pixels)[1].numpy()
    assert relative_error(tower(jnp.asarray(nhwc(pixels))).pooler_output, wanted) < TOLERANCE


# ---- Version 2 ---------------------------------------------------------------------------------

FACE = 12  # length of the recogniser's embedding; 512 in the published file


@pytest.fixture(scope="module")
def encoder_v2(tiny_base):
    config = CLIPVisionConfig.from_pretrained(tiny_base / "image_encoder")
    return randomise(TorchV2IDEncoder(config, (32, 64), id_dim=FACE, head_dim=32), seed=3)


@pytest.fixture(scope="module")
def file_v2(encoder_v2, tensors, tmp_path_factory):
    path = tmp_path_factory.mktemp("photomaker") / "photomaker-v2.bin"
    content = {"id_encoder": dict(encoder_v2.state_dict())}
    torch.save({**content, "lora_weights": tensors["lora_weights"]}, path)
    return path


@pytest.fixture(scope="module")
def model_v2(tiny_base, file_v2):
    """The tiny base with PhotoMaker's LoRA and version 2's ID encoder, filled from the file."""
    model = attach(tiny_base)
    model.id_encoder = PhotoMakerV2IDEncoder(
        model.id_encoder.vision_model,
        (32, 64),
        id_features=FACE,
        head_dim=32,
        dtype=jnp.float32,
        rngs=nnx.Rngs(0),
    )
    load_photomaker_into(model, file_v2)
    return model


def test_version_2_computes_what_the_published_class_does(model_v2, encoder_v2):
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randn(2, 3, 32, 32, generator=generator)
    faces = torch.randn(1, 2, FACE, generator=generator)
    with torch.no_grad():
        wanted = encoder_v2.embed(pixels[None], faces).numpy()
    found = jax.jit(lambda x, y: model_v2.id_encoder(x, y))(nhwc(pixels)[None], faces.numpy())
    assert relative_error(found, wanted) < TOLERANCE


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_version_2_comes_back_bit_equal(model_v2, file_v2, encoder_v2, tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    save_photomaker(model_v2, path)
    with read_photomaker(file_v2) as first, read_photomaker(path) as second:
        assert first.version == second.version == 2
        assert set(first.tensors.keys()) == set(second.tensors.keys())
        for key in first.tensors.keys():
            assert same(second.tensors.read(key), first.tensors.read(key)), key
        parts = dict.fromkeys(key.split(".")[0] for key in second.id_encoder.keys())
    if ending == "bin":
        assert list(parts) == list(dict.fromkeys(k.split(".")[0] for k in encoder_v2.state_dict()))
    before = {name: leaf.get_value() for name, leaf in leaf_paths(model_v2).items()}
    load_photomaker_into(model_v2, path)
    after = leaf_paths(model_v2)
    assert all(np.array_equal(after[name].get_value(), value) for name, value in before.items())


def test_the_other_version_is_named(model, model_v2, file, file_v2):
    with pytest.raises(UnsupportedAdapter, match=r"v2\.bin: is PhotoMaker v2.*photomaker-v1\.bin"):
        load_photomaker_into(model, file_v2)
    with pytest.raises(UnsupportedAdapter, match=r"v1\.bin: is PhotoMaker v1.*photomaker-v2\.bin"):
        load_photomaker_into(model_v2, file)


# ---- What it refuses ---------------------------------------------------------------------------


def test_what_a_method_has_beyond_it_is_read_around_and_not_written(tiny_base, file, tmp_path):
    """Another head and a LoRA on a branch, as in other methods."""
    model = attach(tiny_base, method="photomaker_bg")
    model.id_encoder.visual_projection_3 = nnx.clone(model.id_encoder.visual_projection)
    load_photomaker_into(model, file)
    with pytest.raises(WeightsError, match=r"id_encoder\.visual_projection_3"):
        save_photomaker(model, tmp_path / "mine.bin")
    del model.id_encoder.visual_projection_3
    branch = model.unet.mid_block.attentions[0].transformer_blocks[0].attn2.branches["background"]
    add_adapter(branch.to_k, jnp.ones((96, RANK)), jnp.ones((RANK, 64)), 1.0)
    load_photomaker_into(model, file)
    with pytest.raises(WeightsError, match=r"branches\.background\.to_k carries a LoRA"):
        save_photomaker(model, tmp_path / "mine.bin")


def test_keys_that_do_not_pair_up_are_all_listed(model, file):
    gone = "lora_weights.unet.mid_block.attentions.0.transformer_blocks.1.attn2.processor."
    gone += "to_out_lora.up.weight"

    def change(arrays):
        del arrays[gone]
        arrays["id_encoder.fuse_module.mlp3.fc1.weight"] = np.zeros((2, 2), np.float32)
        arrays["id_encoder.visual_projection.weight"] = np.zeros((5, 64), np.float32)

    with pytest.raises(KeyMismatch) as caught:
        load_photomaker_into(model, rewrite(file, change))
    assert list(caught.value.missing) == [gone]
    assert list(caught.value.unexpected) == ["id_encoder.fuse_module.mlp3.fc1.weight"]
    assert caught.value.misshapen == {"id_encoder.visual_projection.weight": ((5, 64), (32, 64))}


def test_position_ids_of_old_files_are_left_out(model, file):
    def change(arrays):
        arrays["id_encoder.vision_model.embeddings.position_ids"] = np.arange(17)[None]

    load_photomaker_into(model, rewrite(file, change))


def test_another_rank_names_both_and_the_key(file, tiny_base):
    with pytest.raises(WeightsError, match=f"rank {RANK}, the model's rank 2.*rank={RANK}"):
        load_photomaker_into(attach(tiny_base, rank=2), file)

    def change(arrays):
        key = next(key for key in arrays if key.endswith("to_k_lora.down.weight"))
        arrays[key] = arrays[key][:3]

    with pytest.raises(UnsupportedAdapter, match=re.escape("[3, 4]")):
        read_photomaker(rewrite(file, change))


@pytest.mark.parametrize(
    ("key", "named"),
    [
        ("image_proj.proj.weight", "IP-Adapter"),
        ("ip_adapter.1.to_k_ip.weight", "IP-Adapter"),
        ("id_adapter_attn_layers.0.id_to_k.weight", "PuLID"),
        ("unet.mid_block.attentions.0.attn1.to_q.lora.down.weight", "plain LoRA"),
        ("lora_unet_mid_block_attentions_0_proj_in.alpha", "plain LoRA"),
        ("vision_model.post_layernorm.weight", "without its LoRA"),
        ("model.diffusion_model.out.0.weight", "whole Stable Diffusion"),
        ("conv_in.weight", r"id_encoder\.\*"),
    ],
)
def test_other_files_are_named(tmp_path, key, named):
    arrays = {key: np.zeros((2, 2), np.float32)}
    path = write(tmp_path / "adapter.safetensors", arrays)
    with pytest.raises(WeightsError, match=rf"(?s)adapter\.safetensors.*{named}"):
        read_photomaker(path)


def test_missing_files_and_odd_endings(model, tmp_path):
    with pytest.raises(MissingFile, match=r"gone\.bin"):
        read_photomaker(tmp_path / "gone.bin")
    with pytest.raises(WeightsError, match=r"\.safetensors or \.bin"):
        save_photomaker(model, tmp_path / "mine.pth")


def test_models_that_the_format_cannot_hold(file, tiny_base, tmp_path):
    plain = load_sdxl(tiny_base).model
    with pytest.raises(WeightsError, match="attach a method"):
        load_photomaker_into(plain, file)
    model = attach(tiny_base)
    block = model.unet.mid_block.attentions[0]
    add_adapter(block.proj_in, jnp.ones((64, 2)), jnp.ones((2, 64)), 1.0)
    with pytest.raises(WeightsError, match=r"unet\.mid_block\.attentions\.0\.proj_in.*Unload"):
        save_photomaker(model, tmp_path / "mine.bin")
    block.proj_in.lora = nnx.data(None)
    to_q = block.transformer_blocks[0].attn1.to_q
    add_adapter(to_q, jnp.ones((64, 2)), jnp.ones((2, 64)), 0.5)
    with pytest.raises(WeightsError, match=r"attn1\.processor\.to_q.*\[0\.5, 1\.0\]"):
        save_photomaker(model, tmp_path / "mine.bin")


def test_shapes_that_are_no_clip_tower():
    arrays = {
        "embeddings.patch_embedding.weight": np.zeros((60, 3, 8, 8)),
        "embeddings.position_embedding.weight": np.zeros((17, 60)),
        "encoder.layers.0.mlp.fc1.weight": np.zeros((60, 60)),
    }
    with pytest.raises(BadConfig, match="17 positions of width 60"):
        infer_vision_config(DictSource(arrays))
