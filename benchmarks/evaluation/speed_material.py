"""What benchmarks.evaluation.speed measures: drawn images, prompts, and files of random weights."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_pipeline.faces.align import TEMPLATE

METRICS = {
    "clip_t": "CLIP-T",
    "clip_i": "CLIP-I",
    "dino_i": "DINO-I",
    "face_sim": "Face-Sim",
    "lpips": "LPIPS",
}
SIDE = 512
PERSON = 20  # images of each person; the last half of them count as the person's pictures
SHARE = 10  # images of each prompt

# The published sizes; "tiny" ones are for trying the benchmark itself.
SIZES = {
    "published": {
        "text": {},
        "vision": {},  # transformers' defaults are those of CLIP ViT-B/32
        "projection": 512,
        "dino": {"hidden_size": 384, "num_attention_heads": 6, "intermediate_size": 1536},
        "face": {"layers": (3, 4, 14, 3)},
        "alex": (64, 192, 384, 256, 256),
    },
    "tiny": {
        "text": {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
        "vision": {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2},
        "projection": 24,
        "dino": {
            "hidden_size": 48,
            "num_attention_heads": 3,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
        },
        "face": {"layers": (1, 1, 1, 1), "widths": (4, 4, 8, 8), "embedding_dim": 16},
        "alex": (8, 8, 16, 16, 16),
    },
}


class Material(NamedTuple):
    """n images and what is known of them.

    images: uint8 RGB [SIDE, SIDE, 3] each.
    landmarks: [n, 5, 2] of the face in each, pixels, align_face's origin "corner".
    prompts: n texts.
    """

    images: list[np.ndarray]
    landmarks: np.ndarray
    prompts: list[str]

    def first(self, count: int) -> "Material":
        return Material(self.images[:count], self.landmarks[:count], self.prompts[:count])


def draw(count: int) -> Material:
    """The same for the same ``count``: patches of colour and noise, all different."""
    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        patches = rng.integers(0, 216, (8, 8, 3), np.uint8)
        noise = rng.integers(0, 40, (SIDE, SIDE, 3), np.uint8)
        images.append(patches.repeat(SIDE // 8, 0).repeat(SIDE // 8, 1) + noise)
    sizes, corners = rng.uniform(1.2, 2.5, (count, 1, 1)), rng.uniform(20, 200, (count, 1, 2))
    landmarks = TEMPLATE * sizes + corners + rng.normal(0, 2, (count, 5, 2))
    looks = itertools.product(
        ("young", "old", "small", "tall", "beautiful"),
        ("man", "woman", "boy", "girl", "doctor"),
        ("in the snow", "on a horse", "at the beach by night", "near a castle in the forest"),
        ("photo", "portrait", "picture", "painting"),
    )
    texts = [f"a {kind} of a {age} {who} {where}" for age, who, where, kind in looks]
    distinct = max(1, count // SHARE)
    return Material(images, landmarks, [texts[n % distinct % len(texts)] for n in range(count)])


# ---- Figures of features, the same for both sides ------------------------------------------------


def per_person(count: int) -> list[slice]:
    return [slice(start, min(start + PERSON, count)) for start in range(0, count, PERSON)]


def likeness(features: np.ndarray) -> np.ndarray:
    """The mean cosine [n] of each unit vector [n, d] to the pictures of its person."""
    rows = [features[part] for part in per_person(len(features))]
    return np.concatenate([own @ own[len(own) // 2 :].mean(0) for own in rows])


def to_others(tables: Sequence[np.ndarray]) -> np.ndarray:
    """The mean distance [n] of each image to the others of its person, by tables of all pairs."""
    return np.concatenate([table.sum(1) / max(1, len(table) - 1) for table in tables])


# ---- Files of weights ----------------------------------------------------------------------------


def write_weights(folder: Path, size: str) -> None:
    """clip/, dino/, face.safetensors and lpips.safetensors in their published layouts, seeded."""
    import transformers
    from safetensors.numpy import save_file as save_arrays
    from safetensors.torch import save_file

    from persongen_jax.weights.tiny_tokenizer import write_tiny_tokenizer
    from tests.helpers.encoders.judge_files import seeded
    from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
    from tests.helpers.twins import randomise

    sizes = SIZES[size]
    words = write_tiny_tokenizer(folder / "clip")
    ids = {"bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(
            text_config={**sizes["text"], **ids},
            vision_config=sizes["vision"],
            projection_dim=sizes["projection"],
        )
    )
    for number, part in enumerate(clip.children()):
        randomise(part, seed=number)
    clip.save_pretrained(folder / "clip")
    config = transformers.ViTConfig(**sizes["dino"], layer_norm_eps=1e-6)
    dino = transformers.ViTModel(config, add_pooling_layer=False)
    randomise(dino, seed=3).save_pretrained(folder / "dino")
    face = randomise_statistics(randomise(TorchIResNet(**sizes["face"]), seed=4))
    save_file(face.state_dict(), folder / "face.safetensors")
    save_arrays(seeded(lpips_shapes(sizes["alex"])), folder / "lpips.safetensors")


# Of AlexNet's convolutions: channels read and written (by their place in the widths), side, stride,
# padding, and the index among torchvision's layers.
ALEX = ((11, 4, 2, 0), (5, 1, 2, 3), (3, 1, 1, 6), (3, 1, 1, 8), (3, 1, 1, 10))


def lpips_shapes(widths: Sequence[int]) -> dict[str, tuple[int, ...]]:
    """Of a saved state of the lpips package's LPIPS on AlexNet."""
    shapes: dict[str, tuple[int, ...]] = {}
    for n, (before, after) in enumerate(itertools.pairwise((3, *widths))):
        side, *_, index = ALEX[n]
        shapes[f"net.slice{n + 1}.{index}.weight"] = (after, before, side, side)
        shapes[f"net.slice{n + 1}.{index}.bias"] = (after,)
        shapes[f"lin{n}.model.1.weight"] = (1, after, 1, 1)
    return shapes
