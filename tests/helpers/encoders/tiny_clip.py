"""A tiny random CLIP in transformers' format, including its tokenizer."""

import transformers

from persongen_jax.weights.tiny_tokenizer import write_tiny_tokenizer
from tests.helpers.twins import randomise

TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def write_tiny_clip(folder):
    """Writes the folder and returns transformers' model."""
    size = write_tiny_tokenizer(folder)
    ids = {"bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}
    config = transformers.CLIPConfig(
        text_config={**TOWER, "vocab_size": size, "max_position_embeddings": 77, **ids},
        vision_config={**TOWER, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    model = transformers.CLIPModel(config).eval()
    for i, part in enumerate(model.children()):  # everything except the temperature
        randomise(part, seed=i)
    model.save_pretrained(folder)
    return model
