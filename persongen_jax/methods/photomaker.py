"""PhotoMaker: identity enters through text space (Li et al., arXiv 2312.04461; thesis, 5.1).

The class token ("man") stands in the prompt once per reference, and every copy is fused with that
reference's ID embedding. Beside the fuse module, LoRA on all attention layers is trained.
"""

import re
from pathlib import Path

import jax.numpy as jnp

from persongen_jax.conditioning import Conditioning, TokenStream
from persongen_jax.methods.base import Method
from persongen_jax.models.id_encoder import PhotoMakerIDEncoder
from persongen_jax.models.lora import add_lora
from persongen_jax.weights.clip import load_vision_tower

ATTENTION_LAYERS = re.compile(r".*/attn[12]/(to_q|to_k|to_v|to_out/0)")


class PhotoMaker(Method):
    """Stacked ID embedding in the stream "text", and LoRA."""

    groups = (
        (r"id_encoder/visual_projection(_2)?/kernel", "projections"),
        (r"id_encoder/fuse_module/.*", "fuse_module"),
        (r"unet/.*/lora/(down|up)", "lora"),
    )

    def attach(self, model, config, rngs):
        """LoRA on the UNet, and the ID encoder on CLIP's weights.

        Reads config.base, id_encoder (a CLIP directory; default: ``<base>/image_encoder``), rank,
        lora_alpha, id_gain and dtype.
        """
        widths = [
            tower.config["hidden_size"] for tower in (model.text_encoder, model.text_encoder_2)
        ]
        folder = config.id_encoder or Path(config.base) / "image_encoder"
        dtype = jnp.dtype(config.dtype)
        tower, projection = load_vision_tower(folder, dtype=dtype)
        encoder = PhotoMakerIDEncoder(tower, widths, dtype=dtype, rngs=rngs)
        if projection is not None and projection.shape == encoder.visual_projection.kernel.shape:
            # PhotoMaker starts its first head from CLIP's own.
            encoder.visual_projection.kernel.set_value(projection.astype(jnp.float32))
        for head in (encoder.visual_projection, encoder.visual_projection_2):
            head.kernel.set_value(head.kernel.get_value() * config.get("id_gain", 1.0))
        model.id_encoder = encoder
        add_lora(model.unet, ATTENTION_LAYERS, config.rank, alpha=config.lora_alpha, rngs=rngs)

    def reference_size(self, model) -> int:
        return model.id_encoder.vision_model.config["image_size"]

    def condition(self, model, batch) -> Conditioning:
        embeds, pooled = model.encode_prompt(batch["input_ids"]["text"])
        id_embeds = model.id_encoder(batch["id_pixel_values"])
        stacked = model.id_encoder.fuse_module.stack(
            embeds, id_embeds, batch["class_tokens_mask"], batch["id_mask"]
        )
        return Conditioning({"text": TokenStream(stacked)}, pooled, batch["time_ids"])
