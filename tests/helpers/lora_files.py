"""Random LoRA weights for layers of every kind, and files of them in several spellings."""

import numpy as np

from persongen_jax.pipeline import LORA_COMPONENTS
from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.formats.lora.kinds import LoraWeights
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape
from tests.weights.formats.sgm import UNET, unet_to_sgm

ATTENTION = "down_blocks.1.attentions.0.transformer_blocks.0"
CHOSEN = {
    "unet": [
        f"{ATTENTION}.attn1.to_q",
        f"{ATTENTION}.attn2.to_k",
        f"{ATTENTION}.attn2.to_out.0",
        f"{ATTENTION}.ff.net.0.proj",
        f"{ATTENTION}.ff.net.2",
        "down_blocks.1.attentions.0.proj_in",
        "mid_block.attentions.0.transformer_blocks.1.attn1.to_v",
        "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v",
        "down_blocks.0.resnets.1.conv1",
        "down_blocks.1.resnets.0.conv_shortcut",
        "mid_block.resnets.1.time_emb_proj",
        "down_blocks.0.downsamplers.0.conv",
        "up_blocks.0.upsamplers.0.conv",
        "up_blocks.2.resnets.0.conv2",
    ],
    "text_encoder": [
        "encoder.layers.0.self_attn.q_proj",
        "encoder.layers.1.self_attn.out_proj",
        "encoder.layers.1.mlp.fc1",
    ],
    "text_encoder_2": [
        "encoder.layers.1.self_attn.v_proj",
        "encoder.layers.1.self_attn.out_proj",
        "encoder.layers.0.mlp.fc2",
    ],
}

RANK = 4  # of pipelines' LoRA, in sum: one compiled program serves nearly all tests

COMFY = {
    "unet": "diffusion_model.",
    "text_encoder": "text_encoders.clip_l.transformer.",
    "text_encoder_2": "text_encoders.clip_g.transformer.",
}


def save(path, tensors, metadata=None):
    write_safetensors(
        path, [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()], metadata
    )
    return path


def random_adapters(shapes, chosen=CHOSEN, ranks=(4,), alphas=(None,)):
    rng = np.random.default_rng(0)
    out = {}
    for component, paths in chosen.items():
        for n, path in enumerate(paths):
            shape, rank = shapes[component][path], ranks[n % len(ranks)]
            down = rng.standard_normal((rank, *shape[1:])).astype(np.float32)
            up = rng.standard_normal((shape[0], rank, *(1,) * (len(shape) - 2))).astype(np.float32)
            weights = LoraWeights(down, up, alphas[n % len(alphas)])
            out.setdefault(component, {})[path] = weights
    return out


def layer_shapes(pipe):
    """PyTorch shape of every layer's weight, by component and path."""
    return {
        part: {
            ".".join(map(str, path[:-1])): to_torch_shape(path, leaf.shape)
            for path, leaf in parameter_leaves(getattr(pipe.model, part)).items()
        }
        for part in LORA_COMPONENTS
    }


def random_lora(pipe, chosen=CHOSEN, *, rank=RANK, alpha=None, seed=0):
    """Adapters about as strong as the weights they lie on."""
    rng, shapes = np.random.default_rng(seed), layer_shapes(pipe)
    out = {}
    for component, paths in chosen.items():
        for path in paths:
            shape = shapes[component][path]
            down = rng.standard_normal((rank, *shape[1:])) / np.prod(shape[1:]) ** 0.5
            up = rng.standard_normal((shape[0], rank, *(1,) * (len(shape) - 2))) / rank**0.5
            lora = LoraWeights(down.astype(np.float32), up.astype(np.float32), alpha)
            out.setdefault(component, {})[path] = lora
    return out


def delta(lora):
    """scale * up @ down, shaped as the layer's weight."""
    up = lora.up.reshape(lora.up.shape[:2])
    return lora.scale * np.einsum("or,r...->o...", up, lora.down)


def kohya(adapters, sgm):
    out = {}
    prefixes = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}
    for component, paths in adapters.items():
        for path, lora in paths.items():
            if component != "unet":
                path = "text_model." + path
            elif sgm:
                path = unet_to_sgm(path + ".", UNET).removeprefix("model.diffusion_model.")[:-1]
            name = prefixes[component] + path.replace(".", "_")
            out[f"{name}.lora_down.weight"] = lora.down
            out[f"{name}.lora_up.weight"] = lora.up
            if lora.alpha is not None:
                out[f"{name}.alpha"] = np.array(lora.alpha, np.float32)
    return out


def named(adapters, style):
    """The tensors of a file in one of the spellings."""
    if style.startswith("kohya"):
        return kohya(adapters, sgm=style == "kohya, sgm blocks")
    out = {}
    for component, paths in adapters.items():
        text = component != "unet"
        for path, lora in paths.items():
            stem = f"{component}.{'text_model.' if text else ''}{path}"
            if style == "comfy":
                stem = COMFY[component] + ("text_model." + path if text else to_sgm(path))
                out |= {f"{stem}.alpha": np.float32(lora.alpha or lora.rank)}
            if style == "peft, named":
                names = f"{stem}.lora_A.mine.weight", f"{stem}.lora_B.mine.weight"
            elif style in ("peft", "comfy"):
                names = f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"
            else:
                word = "lora_linear_layer" if text else "lora"
                names = f"{stem}.{word}.down.weight", f"{stem}.{word}.up.weight"
            out |= dict(zip(names, (lora.down, lora.up), strict=True))
    return out


def to_sgm(path):
    return unet_to_sgm(path + ".", UNET).removeprefix("model.diffusion_model.")[:-1]
