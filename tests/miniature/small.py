"""Text towers and a UNet of the miniature's classes, small enough to run without compiling."""

from flax import nnx

from persongen_jax.miniature import sizes
from persongen_jax.models.clip import CLIPTextModel


def small_towers():
    towers = []
    for i in (0, 1):
        config = {**sizes.text_config(i, 22), "num_hidden_layers": 2}
        tower = CLIPTextModel(config, rngs=nnx.Rngs(i))
        table = tower.embeddings.token_embedding.embedding
        table.set_value(table.get_value() * 300)  # as large as after training
        towers.append(tower)
    return tuple(towers)


def small_unet_config(towers):
    config = {**sizes.unet_config(), "block_out_channels": [16, 32, 32], "sample_size": 4}
    config["cross_attention_dim"] = sum(t.config["hidden_size"] for t in towers)
    return {**config, "attention_head_dim": [1, 1, 1]}
