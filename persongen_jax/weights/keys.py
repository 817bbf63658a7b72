"""Converts old and new spellings of a component's keys to one form.

The form is that of current diffusers for the VAE and DDPM's UNet. For CLIP it has no
``text_model.`` or ``vision_model.`` prefix (transformers 5 writes CLIPTextModel and CLIPVisionModel
so, the models with a projection and everything older with the prefix): ``embeddings.*``,
``encoder.*``, ``final_layer_norm.*``, ``pre_layrnorm.*`` and ``post_layernorm.*`` are next to
``text_projection.weight`` and ``visual_projection.weight``.
"""

import re

from persongen_jax.weights.files.source import (
    POINTWISE,
    RenamedSource,
    Renaming,
    TensorSource,
    Transform,
)

# Before it became a non-persistent buffer, CLIP saved 0, 1, 2, … as a tensor.
_POSITION_IDS = "embeddings.position_ids"
_TEXT_HALF = ("text_model.", "text_projection.")
_VISION_HALF = ("vision_model.", "visual_projection.")
_CONTRASTIVE = ("logit_scale",)

# diffusers before 0.12 -> current.
_ATTENTION = {
    "query": "to_q",
    "key": "to_k",
    "value": "to_v",
    "proj_attn": "to_out.0",
    "to_q": "to_q",
    "to_k": "to_k",
    "to_v": "to_v",
    "to_out.0": "to_out.0",
}
_ATTENTION_KEY = re.compile(
    r"(?P<path>(?:\w+\.)*attentions\.\d+)\."
    rf"(?P<layer>{'|'.join(map(re.escape, _ATTENTION))})\.(?P<leaf>weight|bias)"
)


def normalise_clip_text(source: TensorSource) -> RenamedSource:
    """A CLIP text encoder's tensors, also from a file that holds both halves of CLIP.

    The vision half, ``logit_scale`` and ``position_ids`` are ignored, and listed in ``ignored``.

    Raises:
        WeightsError: a tensor is there twice, with and without the prefix.
    """
    return _normalise_clip(source, "text_model.", _VISION_HALF)


def normalise_clip_vision(source: TensorSource) -> RenamedSource:
    """A CLIP image encoder's tensors, also from a file that holds both halves of CLIP.

    The text half, ``logit_scale`` and ``position_ids`` are ignored, and listed in ``ignored``.

    Raises:
        WeightsError: a tensor is there twice, with and without the prefix.
    """
    return _normalise_clip(source, "vision_model.", _TEXT_HALF)


def _normalise_clip(source, prefix, other_half):
    renaming = Renaming(source)
    for key in source.keys():
        name = key.removeprefix(prefix)
        if key.startswith(other_half) or key in _CONTRASTIVE or name == _POSITION_IDS:
            renaming.ignore(key)
        else:
            renaming.add(name, key)
    return renaming.source()


def normalise_attention(source: TensorSource) -> RenamedSource:
    """An AutoencoderKL's or UNet2DModel's tensors; attention as linear layers with current names.

    Older files call them ``query``, ``key``, ``value`` and ``proj_attn``, or store them as 1x1
    convolutions, [c, c, 1, 1], which become [c, c].

    Raises:
        WeightsError: a tensor is there under both the old and the new name.
    """
    renaming = Renaming(source)
    for key in source.keys():
        match = _ATTENTION_KEY.fullmatch(key)
        if not match:
            renaming.add(key, key)
            continue
        name = f"{match['path']}.{_ATTENTION[match['layer']]}.{match['leaf']}"
        renaming.add(name, key, pointwise(source, key))
    return renaming.source()


def pointwise(source: TensorSource, key: str) -> Transform | None:
    """``POINTWISE`` if the tensor is a 1x1 convolution, else None."""
    shape = source.info(key)[1]
    return POINTWISE if len(shape) in (3, 4) and set(shape[2:]) == {1} else None


__all__ = ["normalise_clip_text", "normalise_clip_vision", "normalise_attention", "pointwise"]
