"""PhotoMaker's files of version 1, against ones that the public PyTorch classes write."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers import CLIPVisionConfig

from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.models.encoders.id_encoder import PhotoMakerIDEncoder
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import lora_layers
from persongen_jax.training.partition import leaf_paths
from persongen_jax.weights.errors import (
    MissingDependency,
)
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.formats.photomaker import (
    infer_vision_config,
    load_photomaker_into,
    load_photomaker_tower,
    read_photomaker,
    save_photomaker,
)
from tests.helpers.twins import nhwc, randomise, relative_error
from tests.weights.formats.photomaker.models import RANK, TOLERANCE, TorchIDEncoder, attach, same


def test_the_id_encoder_computes_what_the_published_class_does(model, tensors, encoder, small_base):
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


@pytest.mark.parametrize("ending", ["bin", "safetensors"])
def test_a_round_trip_is_bit_equal(model, file, tensors, small_base, tmp_path, ending):
    path = tmp_path / f"mine.{ending}"
    save_photomaker(model, path)
    with read_photomaker(file) as first, read_photomaker(path) as second:
        assert set(first.tensors.keys()) == set(second.tensors.keys())
        assert first.rank == second.rank == RANK
        for key in first.tensors.keys():
            assert same(second.tensors.read(key), first.tensors.read(key)), key
    again = attach(small_base)
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


def test_bfloat16_is_written_as_bfloat16(small_base, tmp_path):
    model = attach(small_base, dtype="bfloat16")
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


def test_another_alpha_keeps_the_effect(model, file, small_base, tmp_path):
    other = attach(small_base, lora_alpha=3.0)
    load_photomaker_into(other, file)
    path = ("down_blocks", 1, "attentions", 0, "transformer_blocks", 0, "attn1", "to_q")

    def delta(model):
        lora = lora_layers(model.unet)[path].lora
        return np.asarray((lora.down[...] * lora.scale[...]) @ lora.up[...])

    assert lora_layers(other.unet)[path].lora.scale[0] == 0.75
    assert relative_error(delta(other), delta(model)) < 1e-6
    save_photomaker(other, tmp_path / "mine.safetensors")
    again = attach(small_base)
    load_photomaker_into(again, tmp_path / "mine.safetensors")
    assert relative_error(delta(again), delta(model)) < 1e-6


def test_it_also_fills_a_method_that_adds_branches(file, small_base, model):
    other = attach(small_base, method="photomaker_bg")
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
