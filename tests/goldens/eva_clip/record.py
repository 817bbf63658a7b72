"""Stores what timm's and OpenCLIP's EVA02-CLIP gives, in eva_clip.npz.

They need torchvision, which does not load next to this project's PyTorch, and so an environment of
their own, in which this project need not be installed:

    python3.11 -m venv /tmp/tools
    /tmp/tools/bin/pip install torch==2.13.0 pyyaml safetensors huggingface_hub ftfy tqdm pillow \
        regex
    /tmp/tools/bin/pip install --no-deps torchvision==0.28.0 timm==1.0.31 open_clip_torch==3.3.0
    /tmp/tools/bin/python -m tests.goldens.eva_clip.record

torchvision's compiled operators are for a GPU's PyTorch; none is used here, so two of them are only
declared. The networks are open_clip.model.CustomTextCLIP with timm.models.eva.Eva in it, from their
own configs of EVA02-L-14-336 with the sizes of tests/helpers/encoders/eva_files.py. Weights and
pictures are seeded: stored are the shapes of the state dict, tiny and as published, and what the
networks give.

original.npz next to it is not made here: it holds the numbers that the authors' own class gives
(eva_clip/eva_vit_model.py, EVAVisionTransformer, in the repository ToTheBeginning/PuLID at commit
1aa2fc7df4bf51080df39f355f9abdc1cbfefbaa, with PyTorch's LayerNorm and attention, torch 2.13.0, CPU,
float32), for random weights, which it holds too: float32 numbers of which the lower half is zero,
stored as their upper half.
"""

import functools
import json

import numpy as np
import torch

OPERATORS = torch.library.Library("torchvision", "DEF")
for name in ("nms", "qnms"):
    OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import open_clip.factory  # noqa: E402
import open_clip.model  # noqa: E402
import timm  # noqa: E402

from tests.helpers.encoders.eva_files import (  # noqa: E402
    FILE,
    TEXT,
    TRUNK,
    pixels,
    token_ids,
    tower_weights,
)

FOUND: dict[str, np.ndarray] = {}
CONFIG = open_clip.factory.get_model_config("EVA02-L-14-336")


def make(text, trunk):
    """OpenCLIP's network of its own config, with other sizes."""
    own = timm.create_model
    timm.create_model = functools.partial(own, **trunk)
    try:
        return open_clip.model.CustomTextCLIP(
            CONFIG["embed_dim"] if not text else text["embed_dim"],
            CONFIG["vision_cfg"],
            {**CONFIG["text_cfg"], **{k: v for k, v in text.items() if k != "embed_dim"}},
        )
    finally:
        timm.create_model = own


def remember_shapes(name, net):
    shapes = {key: list(value.shape) for key, value in net.state_dict().items()}
    FOUND[f"shapes {name}"] = np.array(json.dumps(shapes))
    return shapes


def keep(name, value):
    FOUND[name] = value.detach().numpy()


@torch.no_grad()
def main():
    with torch.device("meta"):
        remember_shapes("published", make({}, {}))
    net = make(TEXT, TRUNK)
    weights = tower_weights(remember_shapes("tiny", net))
    net.load_state_dict({key: torch.from_numpy(value) for key, value in weights.items()})
    net.eval()
    trunk = net.visual.trunk
    parts = {"attn": trunk.blocks[0].attn, "mlp": trunk.blocks[0].mlp}
    for part, module in parts.items():
        module.register_forward_hook(lambda _, __, out, part=part: keep(part, out[:1].clone()))
    images = torch.from_numpy(pixels().transpose(0, 3, 1, 2).copy())
    keep("image_embeds", net.encode_image(images))
    inputs = trunk._pos_embed(trunk.patch_embed(images[:1]))[0]
    last, pairs = trunk.forward_intermediates(
        images[:1], output_fmt="NLC", return_prefix_tokens=True
    )
    states = [inputs, *(torch.cat([prefix, patches], 1) for patches, prefix in pairs)]
    for i, state in enumerate(states):
        keep(f"state {i}", state)
    keep("norm", last)
    keep("text_embeds", net.encode_text(torch.from_numpy(token_ids())))
    np.savez_compressed(FILE, **FOUND)
    print({name: value.shape for name, value in FOUND.items()}, FILE.stat().st_size)


if __name__ == "__main__":
    main()
