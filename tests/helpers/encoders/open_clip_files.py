"""A tiny CLIP of transformers', and its weights in OpenAI's and OpenCLIP's names.

The renaming is written on its own, from OpenAI's clip/model.py and open_clip's model.py.
"""

import torch
import transformers

from persongen_jax.weights.tiny_tokenizer import write_tiny_tokenizer
from tests.helpers.twins import randomise

TOWER = {"intermediate_size": 96, "num_hidden_layers": 2}


def torch_clip(folder, hidden_act="gelu", vision_width=192, vision_heads=3):
    """transformers' model; the tokenizer's files are written to ``folder``."""
    size = write_tiny_tokenizer(folder)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    own = {**TOWER, "hidden_act": hidden_act}
    text = {"hidden_size": 128, "num_attention_heads": 2, "vocab_size": size, **ids, **own}
    vision = {"hidden_size": vision_width, "num_attention_heads": vision_heads, **own}
    config = transformers.CLIPConfig(
        text_config={**text, "max_position_embeddings": 77},
        vision_config={**vision, "image_size": 32, "patch_size": 8},
        projection_dim=40,
    )
    model = transformers.CLIPModel(config).eval()
    for i, part in enumerate(model.children()):
        randomise(part, seed=i)
    return model


def openai_names(model, text=""):
    """The state dict as OpenAI names it; ``text`` is a prefix of the text tower, if any."""
    state = model.state_dict()
    named = {
        f"{text}positional_embedding": state["text_model.embeddings.position_embedding.weight"],
        f"{text}text_projection": state["text_projection.weight"].T,
        f"{text}token_embedding.weight": state["text_model.embeddings.token_embedding.weight"],
        "logit_scale": state["logit_scale"],
        "visual.class_embedding": state["vision_model.embeddings.class_embedding"],
        "visual.positional_embedding": state["vision_model.embeddings.position_embedding.weight"],
        "visual.proj": state["visual_projection.weight"].T,
        "visual.conv1.weight": state["vision_model.embeddings.patch_embedding.weight"],
    }
    towers = {"text_model": text, "vision_model": "visual."}
    layers = {
        "layer_norm1": "ln_1",
        "layer_norm2": "ln_2",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "self_attn.out_proj": "attn.out_proj",
    }
    for leaf in ("weight", "bias"):
        for norm, name in (("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post")):
            named[f"visual.{name}.{leaf}"] = state[f"vision_model.{norm}.{leaf}"]
        named[f"{text}ln_final.{leaf}"] = state[f"text_model.final_layer_norm.{leaf}"]
        for tower, prefix in towers.items():
            for i in range(TOWER["num_hidden_layers"]):
                theirs = f"{tower}.encoder.layers.{i}"
                ours = f"{prefix}transformer.resblocks.{i}"
                parts = [state[f"{theirs}.self_attn.{x}_proj.{leaf}"] for x in "qkv"]
                named[f"{ours}.attn.in_proj_{leaf}"] = torch.cat(parts)
                for a, b in layers.items():
                    named[f"{ours}.{b}.{leaf}"] = state[f"{theirs}.{a}.{leaf}"]
    return {key: value.clone().contiguous() for key, value in named.items()}


def published_shapes(text, vision, projection, patch, size):
    """Shapes of a whole CLIP; ``text`` and ``vision`` are (width, layers, inner width)."""

    def tower(prefix, width, layers, inner):
        shapes = {}
        for i in range(layers):
            ours = f"{prefix}transformer.resblocks.{i}"
            shapes |= {f"{ours}.{ln}.{x}": (width,) for ln in ("ln_1", "ln_2") for x in NORM}
            shapes |= {
                f"{ours}.attn.in_proj_weight": (3 * width, width),
                f"{ours}.attn.in_proj_bias": (3 * width,),
                f"{ours}.attn.out_proj.weight": (width, width),
                f"{ours}.attn.out_proj.bias": (width,),
                f"{ours}.mlp.c_fc.weight": (inner, width),
                f"{ours}.mlp.c_fc.bias": (inner,),
                f"{ours}.mlp.c_proj.weight": (width, inner),
                f"{ours}.mlp.c_proj.bias": (width,),
            }
        return shapes

    return {
        "positional_embedding": (77, text[0]),
        "text_projection": (text[0], projection),
        "token_embedding.weight": (49408, text[0]),
        "logit_scale": (),
        **{f"ln_final.{x}": (text[0],) for x in NORM},
        **tower("", *text),
        "visual.class_embedding": (vision[0],),
        "visual.positional_embedding": (1 + (size // patch) ** 2, vision[0]),
        "visual.proj": (vision[0], projection),
        "visual.conv1.weight": (vision[0], 3, patch, patch),
        **{f"visual.{ln}.{x}": (vision[0],) for ln in ("ln_pre", "ln_post") for x in NORM},
        **tower("visual.", *vision),
    }


NORM = ("weight", "bias")
# name: (arguments of published_shapes, millions of weights, heads (text, vision))
PUBLISHED = {
    "B/32": (((512, 12, 2048), (768, 12, 3072), 512, 32, 224), 151.28, (8, 12)),
    "L/14": (((768, 12, 3072), (1024, 24, 4096), 768, 14, 224), 427.62, (12, 16)),
    "L/14-336": (((768, 12, 3072), (1024, 24, 4096), 768, 14, 336), 427.94, (12, 16)),
    "H/14": (((1024, 24, 4096), (1280, 32, 5120), 1024, 14, 224), 986.11, (16, 16)),
    "bigG/14": (((1280, 32, 5120), (1664, 48, 8192), 1280, 14, 224), 2539.57, (20, 16)),
}
