"""PhotoMaker's encoders and IP-Adapter's projections and attention, against the authors' own code.

``ipadapter_plus_resampler_options`` has no counterpart: no published SDXL file has its options, a
position embedding and latents of the mean.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.diffusion.conditioning import TokenStream
from persongen_jax.models.attention import Attention, CrossAttention
from persongen_jax.models.branches import ParallelCrossAttention
from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.encoders.id_encoder import FuseModule, PhotoMakerIDEncoder
from persongen_jax.models.encoders.photomaker_v2 import PhotoMakerV2IDEncoder, QFormerPerceiver
from persongen_jax.models.encoders.resampler import (
    FaceIDPlusProjection,
    FaceIDProjection,
    Resampler,
)
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.lora import add_adapter
from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module
from tests.helpers.published_goldens import golden, relative_gap, weights

TOLERANCE = 1e-5
KW = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}


def filled(make, name, module=""):
    return load_module(make, DictSource(weights(name, module)))


def called(module, *inputs, method=None):
    """As a compiled program: quicker than operation by operation."""
    graphdef, state = nnx.split(module)
    method = method or type(module).__call__
    return jax.jit(lambda state, *x: method(nnx.merge(graphdef, state), *x))(state, *inputs)


def close(found, wanted, tolerance=TOLERANCE):
    assert relative_gap(found, wanted) <= tolerance


# ---- IP-Adapter ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["faceid_projection", "faceid_portrait_projection"])
def test_faceid_and_portrait(name):
    config, arrays = golden(name)
    sizes = config["id_embeddings_dim"], config["cross_attention_dim"]
    ours = filled(lambda: FaceIDProjection(*sizes, num_tokens=config["num_tokens"], **KW), name)
    embeds = arrays["in/id_embeds"]
    found = called(ours, np.concatenate([embeds, np.zeros_like(embeds)]))
    close(found[:2], arrays["out/tokens"])
    close(found[2:], arrays["out/tokens_zero"])


def test_faceid_plus_of_both_versions():
    config, arrays = golden("faceid_plus_projection")

    def make():
        return FaceIDPlusProjection(
            config["id_embeddings_dim"],
            config["clip_embeddings_dim"],
            config["cross_attention_dim"],
            heads=config["perceiver_heads"],
            head_dim=config["perceiver_dim_head"],
            num_layers=config["perceiver_depth"],
            **KW,
        )

    ours = filled(make, "faceid_plus_projection")
    embeds, patches = arrays["in/id_embeds"], arrays["in/clip_embeds"]
    forms = {f"shortcut{short}_s{s}": (short, s) for short in (False, True) for s in (1.0, 0.7)}

    def of_all_forms(ours, embeds, patches):
        found = {"zero_id_shortcutTrue_s1.0": ours(jnp.zeros_like(embeds), patches)}
        for name, (ours.shortcut, ours.s_scale) in forms.items():
            found[name] = ours(embeds, patches)
        return found

    for name, found in called(ours, embeds, patches, method=of_all_forms).items():
        close(found, arrays[f"out/tokens_{name}"])


def test_the_resampler():
    config, arrays = golden("ipadapter_plus_resampler")

    def make():
        return Resampler(
            config["embedding_dim"],
            config["dim"],
            config["output_dim"],
            num_tokens=config["num_queries"],
            heads=config["heads"],
            head_dim=config["dim_head"],
            num_layers=config["depth"],
            **KW,
        )

    ours = filled(make, "ipadapter_plus_resampler")
    x = arrays["in/x"]
    found = called(ours, np.concatenate([x, np.zeros_like(x)]))
    close(found[:2], arrays["out/tokens"])
    close(found[2:], arrays["out/tokens_zero"])


def attention(kind, arrays, prefix, context, heads=3, head_dim=8):
    """An attention layer with the weights below ``prefix``."""
    sizes = {"heads": heads, "head_dim": head_dim, "cross_attention_dim": context}
    made = kind(24, **sizes, **{**KW, "rngs": nnx.Rngs(0)})
    for path in ("to_q", "to_k", "to_v"):
        getattr(made, path).kernel.set_value(jnp.asarray(arrays[f"{prefix}{path}.weight"].T))
    made.to_out[0].kernel.set_value(jnp.asarray(arrays[f"{prefix}to_out.0.weight"].T))
    made.to_out[0].bias.set_value(jnp.asarray(arrays[f"{prefix}to_out.0.bias"]))
    return made


def with_branch(base, arrays, prefix):
    layer = ParallelCrossAttention(base)
    layer.add("identity", None)
    for short in ("to_k", "to_v"):
        kernel = jnp.asarray(arrays[f"{prefix}{short}_ip.weight"].T)
        getattr(layer.branches["identity"], short).kernel.set_value(kernel)
    return layer


def read(layer, x, both, scale):
    """The layer's output, where 9 tokens are the text's and 4 the image's."""
    streams = {"text": TokenStream(both[:, :9])}
    streams["identity"] = TokenStream(both[:, 9:], scale=jnp.full(len(both), scale))
    return layer(x, streams)


def test_decoupled_attention():
    _, arrays = golden("decoupled_attention")
    base = attention(CrossAttention, arrays, "w/attn2/", 20)
    both, x = arrays["in/text_then_image_tokens"], arrays["in/hidden"]
    layer = with_branch(base, arrays, "w/processor/")
    image = np.moveaxis(arrays["in/hidden_4d"], 1, -1).reshape(2, 24, 24)

    def forms(layer, x, image, both):
        found = {f"seq_scale{scale}": read(layer, x, both, scale) for scale in (0.8, 0.0, 1.0)}
        found["image"] = read(layer, image, both, 0.8)
        found["plain_text_only"] = layer(x, {"text": TokenStream(both[:, :9])})
        return found

    found = called(layer, x, image, both, method=forms)
    wanted = np.moveaxis(arrays["out/image4d_scale0.8"], 1, -1).reshape(2, 24, 24)
    close(found.pop("image"), wanted)
    close(found["seq_scale0.8"], arrays["out/seq_scale0.8_torch1_class"])
    for name, each in found.items():
        close(each, arrays[f"out/{name}"])
    assert np.array_equal(found["seq_scale0.0"], found["plain_text_only"])


def test_attention_with_faceids_lora():
    """The LoRA changes the text's keys and values and the query, not the image's."""
    _, arrays = golden("faceid_lora_attention")
    both, x = arrays["in/text_then_image_tokens"], arrays["in/hidden"]

    def with_lora(layer, prefix, scale=1.0):
        for short in ("to_q", "to_k", "to_v", "to_out"):
            linear = layer.to_out[0] if short == "to_out" else getattr(layer, short)
            halves = [
                jnp.asarray(arrays[f"{prefix}{short}_lora.{half}.weight"].T)
                for half in ("down", "up")
            ]
            add_adapter(linear, *halves, scale)
        return layer

    own = with_lora(attention(Attention, arrays, "w/attn1/", None), "w/attn1.processor/")
    close(called(own, x), arrays["out/self"])
    prefix = "w/attn2.processor/"
    for lora, scales in ((1.0, (0.8, 0.0)), (0.5, (0.8,))):
        base = with_lora(attention(CrossAttention, arrays, "w/attn2/", 20), prefix, lora)
        layer = with_branch(base, arrays, prefix)
        for scale in scales:
            name = f"out/cross_scale{scale}" + ("_lora0.5" if lora == 0.5 else "")
            close(called(layer, x, both, scale, method=read), arrays[name])


# ---- PhotoMaker ----------------------------------------------------------------------------------


def test_the_fuse_module_also_of_several_examples():
    """The original takes one example; ours all of them at once, each with its own counts."""
    config, arrays = golden("photomaker_fuse_module")
    ours = filled(lambda: FuseModule(config["embed_dim"], **KW), "photomaker_fuse_module")
    close(called(ours, arrays["in/rows_text"], arrays["in/rows_id"]), arrays["out/fuse_fn_rows"])
    prompt = np.repeat(arrays["in/prompt"], 3, axis=0)
    masks = [arrays[f"in/mask{n}"][0].astype(bool) for n in (3, 2, 6)]
    ids = np.zeros((3, 6, config["embed_dim"]), np.float32)
    ids[:2, :3] = arrays["in/id_embeds_v1"].reshape(1, 3, -1)
    ids[2] = arrays["in/id_embeds_v2"].reshape(6, -1)
    there = np.arange(6) < np.array([[3], [2], [6]])
    found = called(ours, prompt, ids, np.stack(masks), there, method=FuseModule.stack)
    for row, name in enumerate(
        ("three_images", "two_of_three_images", "v2_three_images_two_tokens")
    ):
        close(found[row : row + 1], arrays[f"out/{name}"])


def test_the_perceiver_of_version_2():
    config, arrays = golden("photomaker_v2_qformer_perceiver")

    def make():
        return QFormerPerceiver(
            config["id_embeddings_dim"],
            config["embedding_dim"],
            config["cross_attention_dim"],
            head_dim=config["perceiver_dim_head"],
            num_layers=config["perceiver_depth"],
            **KW,
        )

    ours = filled(make, "photomaker_v2_qformer_perceiver")
    embeds, patches = arrays["in/id_embeds"], arrays["in/last_hidden_state"]
    rows = np.concatenate([embeds, np.zeros_like(embeds)])
    found = called(ours, rows, np.concatenate([patches, patches]))
    close(found[:2], arrays["out/tokens"])
    close(found[2:], arrays["out/tokens_zero_id"])


@pytest.mark.parametrize("version", [1, 2])
def test_the_id_encoder(version):
    name = f"photomaker_v{version}_id_encoder"
    config, arrays = golden(name)
    widths = config["vision"]["projection_dim"], 28
    sizes = {}
    if version == 2:
        sizes = {"id_features": config["id_embeddings_dim"]}
        sizes |= {"head_dim": config["perceiver_dim_head"], "num_layers": 2}

    def make():
        tower = CLIPVisionModel(config["vision"], with_projection=False, **KW)
        kind = PhotoMakerIDEncoder if version == 1 else PhotoMakerV2IDEncoder
        return kind(tower, widths, **sizes, **KW)

    def parts(ours, pixels, prompt, masks, counts, *faces):
        states = ours.vision_model(pixels[0]).last_hidden_state
        ids = ours(pixels, *faces)
        there = jnp.arange(ids.shape[1]) < counts[:, None] * version
        rows = jnp.repeat(ids, len(prompt), axis=0)
        return states, ids, ours.fuse_module.stack(prompt, rows, masks, there)

    ours = filled(make, name)
    pixels = np.moveaxis(arrays["in/id_pixel_values"], 2, -1)
    faces = [arrays["in/id_embeds"]] if version == 2 else []
    cases = [("three_images", 3, 3 * version), ("one_image", 1, version)]
    cases += [("two_of_three_images", 2, 2)] if version == 1 else []
    prompt = np.repeat(arrays["in/prompt"], len(cases), axis=0)
    masks = np.stack([arrays[f"in/mask{marked}"][0].astype(bool) for *_, marked in cases])
    counts = np.array([count for _, count, _ in cases])
    states, ids, found = called(ours, pixels, prompt, masks, counts, *faces, method=parts)
    close(states, arrays["out/mid_last_hidden"])
    wanted = arrays["out/mid_id_embeds" if version == 1 else "out/mid_tokens"]
    close(ids.reshape(wanted.shape), wanted)
    for row, (case, *_) in enumerate(cases):
        close(found[row : row + 1], arrays[f"out/prompt_{case}"], 5e-5)
