"""PhotoMaker: the stacked ID embedding against a plain transcription, and what is trained."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from configs.first_light import get_config
from persongen_jax.methods import get_method
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.encoders.id_encoder import FuseModule, PhotoMakerIDEncoder
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import lora_layers
from persongen_jax.systems.diffusion import drop_conditions
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import assign_groups, leaf_paths, split_model
from persongen_jax.training.step import merge_model
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.loader import parameter_leaves, torch_key
from tests.helpers.twins import relative_error

TOLERANCE = 1e-5


class TorchMLP(torch.nn.Module):
    """methods.md: LayerNorm, Linear, GELU (exact), Linear, with or without a skip."""

    def __init__(self, features_in, features, skip):
        super().__init__()
        self.layernorm = torch.nn.LayerNorm(features_in)
        self.fc1 = torch.nn.Linear(features_in, features)
        self.fc2 = torch.nn.Linear(features, features)
        self.skip = skip

    def forward(self, x):
        h = self.fc2(torch.nn.functional.gelu(self.fc1(self.layernorm(x))))
        return h + x if self.skip else h


class TorchFuse(torch.nn.Module):
    def __init__(self, features):
        super().__init__()
        self.mlp1 = TorchMLP(2 * features, features, skip=False)
        self.mlp2 = TorchMLP(features, features, skip=True)
        self.layer_norm = torch.nn.LayerNorm(features)

    def stack(self, embeds, ids, counts, places):
        """Example by example, copy by copy."""
        out = embeds.clone()
        for row, count in enumerate(counts):
            for k in range(count):
                e, i = embeds[row, places[row] + k], ids[row, k]
                f = self.mlp1(torch.cat([e, i])) + e
                out[row, places[row] + k] = self.layer_norm(self.mlp2(f))
        return out


@pytest.fixture(scope="module")
def fuse_twins():
    from tests.helpers.twins import load_twin, randomise

    theirs = randomise(TorchFuse(12))
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32}
    return theirs, load_twin(lambda: FuseModule(12, **kw, rngs=UnusedRngs()), theirs)


def stack_inputs(counts, places, length=20):
    rng = np.random.default_rng(0)
    embeds = rng.standard_normal((len(counts), length, 12)).astype(np.float32)
    ids = rng.standard_normal((len(counts), 4, 12)).astype(np.float32)
    mask = np.zeros((len(counts), length), bool)
    for row, (count, place) in enumerate(zip(counts, places, strict=True)):
        mask[row, place : place + count] = True
    return embeds, ids, mask, np.arange(4)[None] < np.array(counts)[:, None]


def test_stacked_embedding_with_ragged_reference_counts(fuse_twins):
    theirs, ours = fuse_twins
    counts, places = [1, 4, 2, 3, 0], [5, 0, 17, 9, 0]
    embeds, ids, mask, id_mask = stack_inputs(counts, places)
    found = np.asarray(jax.jit(ours.stack)(embeds, ids, mask, id_mask))
    with torch.no_grad():
        wanted = theirs.stack(torch.from_numpy(embeds), torch.from_numpy(ids), counts, places)
    assert relative_error(found, wanted) < TOLERANCE
    assert np.array_equal(found[~mask], embeds[~mask])
    assert not np.allclose(found[mask], embeds[mask])


def test_a_new_token_is_the_class_word_and_learns_from_the_first_step():
    module = FuseModule(12, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(0))
    word, one, other = np.random.default_rng(0).standard_normal((3, 1, 1, 12)).astype(np.float32)
    centred = word - word.mean()
    assert np.allclose(module(word, one), centred / centred.std(), atol=1e-4)
    assert np.array_equal(module(word, one), module(word, other))
    grads = nnx.grad(lambda m: (m(word, one) * other).sum())(module)
    for mlp in (grads["mlp1"], grads["mlp2"]):
        assert np.abs(mlp["fc2"]["kernel"].get_value()).max() > 0


def test_padding_references_have_no_influence(fuse_twins):
    _, ours = fuse_twins
    embeds, ids, mask, id_mask = stack_inputs([2, 3], [4, 6])
    other = np.where(id_mask[..., None], ids, 7.0)
    assert np.array_equal(
        ours.stack(embeds, ids, mask, id_mask), ours.stack(embeds, other, mask, id_mask)
    )


def test_no_identity_leaves_the_prompt_bit_equal(fuse_twins):
    _, ours = fuse_twins
    embeds, ids, mask, id_mask = stack_inputs([2, 3], [4, 6])
    assert np.array_equal(ours.stack(embeds, ids, mask & False, id_mask), embeds)
    assert np.array_equal(ours.stack(embeds, ids, mask, id_mask & False), embeds)


def test_full_size_keys_are_those_of_photomaker_v1():
    """formats.md: 407 tensors, 326.27 M parameters."""
    vit_l = {
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "image_size": 224,
        "patch_size": 14,
        "hidden_act": "quick_gelu",
    }

    def build():
        kw = {"dtype": jnp.bfloat16, "rngs": UnusedRngs()}
        tower = CLIPVisionModel(vit_l, with_projection=False, param_dtype=jnp.bfloat16, **kw)
        return PhotoMakerIDEncoder(tower, (768, 1280), **kw)

    encoder = nnx.eval_shape(build)
    leaves = {torch_key(path): leaf for path, leaf in parameter_leaves(encoder).items()}
    assert len(leaves) == 407
    assert round(sum(leaf.size for leaf in leaves.values()) / 1e6, 2) == 326.27
    assert leaves["fuse_module.mlp1.fc1.weight"].shape == (4096, 2048)
    assert leaves["visual_projection_2.weight"].shape == (1024, 1280)
    assert leaves["visual_projection.weight"].dtype == jnp.float32
    assert leaves["vision_model.pre_layrnorm.weight"].dtype == jnp.bfloat16


@pytest.fixture(scope="module")
def built(small_base):
    config = get_config()
    config.base = str(small_base)
    return open_system(config)


def make_batch(base, b=2):
    rng = np.random.default_rng(0)
    ids, mask, _ = base.tokenizers.encode_with_trigger("a man img in a hat", 2)
    return {
        "input_ids": {"text": np.stack([ids] * b)},
        "class_tokens_mask": np.stack([mask] * b),
        "id_pixel_values": rng.standard_normal((b, 4, 32, 32, 3)).astype(np.float32),
        "id_mask": np.array([[True, True, False, False]] * b),
        "time_ids": np.array([[64, 64, 0, 0, 64, 64]] * b, np.float32),
    }


def test_at_the_start_the_unet_is_the_base(built, small_base):
    """LoRA's up is zero: for text alone, the model is bit-equal to the one without a method."""
    from persongen_jax.weights.formats.sdxl.loading import load_sdxl

    batch = jax.tree.map(jnp.asarray, make_batch(built.base))
    batch["id_mask"] = jnp.zeros_like(batch["id_mask"])
    conditioning = built.condition(built.model, batch)
    plain = load_sdxl(small_base).model
    x = jax.random.normal(jax.random.key(0), (2, 8, 8, 4))
    embeds, pooled = plain.encode_prompt(batch["input_ids"]["text"])
    assert np.array_equal(conditioning.streams["text"].tokens, embeds)
    assert np.array_equal(conditioning.pooled_prompt_embeds, pooled)
    assert np.array_equal(built.model.unet(x, 500, conditioning), plain.unet(x, 500, conditioning))


def test_lora_lies_on_every_attention_layer(built):
    layers = lora_layers(built.model.unet)
    blocks = {path[:-1] for path in layers if path[-1] == "to_q"}
    assert len(layers) == 4 * len(blocks)
    assert all("attn1" in path or "attn2" in path for path in layers)


@pytest.mark.slow
def test_gradients_reach_every_group_and_nothing_frozen_is_in_them(built):
    graphdef, trainable, frozen, groups = split_model(built.model, built.table)
    assert set(groups.values()) == {"projections", "fuse_module", "lora"}
    batch = jax.tree.map(jnp.asarray, make_batch(built.base))
    # With ``up`` at zero no gradient reaches ``down``, nor what comes before the fuse module's last
    # layers: move them as training's first step would.
    key = jax.random.key(0)
    for path, x in trainable.items():
        if path.endswith(("/up", "/fc2/kernel")):
            trainable[path] = x + 0.01 * jax.random.normal(key, x.shape)

    def loss(trainable):
        model = merge_model(graphdef, trainable, frozen)
        out = model.unet(jnp.ones((2, 8, 8, 4)), 500, built.condition(model, batch))
        return jnp.square(out).mean()

    grads = jax.grad(loss)(trainable)
    assert grads.keys() == trainable.keys()
    still = [path for path, grad in grads.items() if not np.abs(grad).max() > 0]
    assert not still


def test_dropping_gives_the_empty_prompt_and_no_identity(built):
    batch = jax.tree.map(jnp.asarray, make_batch(built.base))
    empty_ids = built.base.tokenizers.encode("")

    def drop(batch):
        return drop_conditions(built.fields, batch, jnp.array([True, False]))

    dropped = drop(batch)
    assert np.array_equal(dropped["input_ids"]["text"][0], empty_ids)
    assert not dropped["id_mask"][0].any() and not dropped["class_tokens_mask"][0].any()
    kept = jax.tree.map(lambda x: x[1], (dropped, batch))
    assert all(map(np.array_equal, *map(jax.tree.leaves, kept)))
    other = {**batch, "id_pixel_values": batch["id_pixel_values"] + 1}
    model = nnx.clone(built.model)
    kernel = model.id_encoder.fuse_module.mlp1.fc2.kernel  # zero: no identity has an effect yet
    kernel.set_value(jax.random.normal(jax.random.key(1), kernel.shape))
    tokens = [built.condition(model, drop(b)).streams["text"].tokens for b in (batch, other)]
    assert np.array_equal(tokens[0][0], tokens[1][0])
    assert not np.array_equal(tokens[0][1], tokens[1][1])


def test_a_row_that_matches_nothing_or_twice_is_an_error(built):
    paths = leaf_paths(built.model)
    with pytest.raises(ValueError, match="match no parameter.*unet/nothing"):
        assign_groups(paths, [("unet/nothing", "lora")])
    with pytest.raises(ValueError, match="matched by"):
        assign_groups(paths, [(r"unet/.*/lora/up", "a"), (r".*/to_q/lora/up", "b")])


def test_an_unknown_method_and_a_missing_image_encoder_are_named(small_base, tmp_path):
    with pytest.raises(ValueError, match="photomaker"):
        get_method("photo")
    config = get_config()
    config.base, config.id_encoder = str(small_base), str(tmp_path / "nothing")
    with pytest.raises(MissingFile, match="--config.id_encoder"):
        open_system(config)
