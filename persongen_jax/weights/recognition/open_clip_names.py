"""OpenAI's and open_clip's names of CLIP's tensors, mapped to transformers' names."""

from persongen_jax.weights.files.source import TRANSPOSE, Transform, third

# open_clip -> transformers, within one layer and outside the layers.
_LAYER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}
_OUTSIDE = {
    "token_embedding.weight": "embeddings.token_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_final.weight": "final_layer_norm.weight",
    "ln_final.bias": "final_layer_norm.bias",
}
_VISION_OUTSIDE = {
    "class_embedding": "embeddings.class_embedding",
    "conv1.weight": "embeddings.patch_embedding.weight",
    "positional_embedding": "embeddings.position_embedding.weight",
    "ln_pre.weight": "pre_layrnorm.weight",
    "ln_pre.bias": "pre_layrnorm.bias",
    "ln_post.weight": "post_layernorm.weight",
    "ln_post.bias": "post_layernorm.bias",
}
_LAYERS = "transformer.resblocks."


def open_clip_entries(inner: str, shape: tuple[int, ...]) -> list[tuple[str, Transform | None]]:
    """[(transformers' name, change of layout)] that a tensor becomes; [] for an unknown one.

    Args:
        inner: open_clip's name of a tensor of the text tower, without a prefix.
        shape: of the tensor.
    """
    if inner in _OUTSIDE:
        return [(_OUTSIDE[inner], None)]
    if inner == "text_projection":
        # open_clip multiplies from the right: [width, projection].
        return [("text_projection.weight", TRANSPOSE)]
    if inner == "text_projection.weight":  # ComfyUI's, already transposed
        return [(inner, None)]
    return _layer_entries(inner, shape)


def open_clip_vision_entries(
    inner: str, shape: tuple[int, ...]
) -> list[tuple[str, Transform | None]]:
    """:func:`open_clip_entries` for the image tower, without its prefix ``visual.``."""
    if inner in _VISION_OUTSIDE:
        return [(_VISION_OUTSIDE[inner], None)]
    if inner == "proj":
        return [("visual_projection.weight", TRANSPOSE)]
    return _layer_entries(inner, shape)


def _layer_entries(inner, shape):
    if not inner.startswith(_LAYERS):
        return []
    number, _, rest = inner.removeprefix(_LAYERS).partition(".")
    layer = f"encoder.layers.{number}."
    if rest in ("attn.in_proj_weight", "attn.in_proj_bias") and shape and shape[0] % 3 == 0:
        leaf = rest.removeprefix("attn.in_proj_")
        return [(f"{layer}self_attn.{x}_proj.{leaf}", third(i)) for i, x in enumerate("qkv")]
    path, _, leaf = rest.rpartition(".")
    return [(f"{layer}{_LAYER[path]}.{leaf}", None)] if path in _LAYER else []


__all__ = ["open_clip_entries", "open_clip_vision_entries"]
