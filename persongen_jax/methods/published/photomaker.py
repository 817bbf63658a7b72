"""PhotoMaker: identity enters through text space (Li et al., arXiv 2312.04461; thesis, 5.1).

The class token ("man") appears in the prompt once per reference, and every copy is fused with that
reference's ID embedding. The fuse module is trained, and LoRA on all attention layers.
"""

import re

from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.methods.base import (
    Method,
    Model,
    Parts,
    add_prompt_streams,
    prompt_states,
    prompts,
    reference_features,
    references,
)
from persongen_jax.methods.start import add_id_encoder, load_remaining, load_start
from persongen_jax.models.branches import add_branch
from persongen_jax.models.lora import add_lora

ATTENTION_LAYERS = re.compile(r".*/attn[12]/(to_q|to_k|to_v|to_out/0)")


class PhotoMaker(Method):
    """Stacked ID embedding in the stream "text", and LoRA.

    Attributes:
        streams: additional prompts, each read by a parallel attention branch.
    """

    streams: tuple[str, ...] = ()
    groups: tuple[tuple[str, str], ...] = (
        (r"id_encoder/visual_projection(_2)?/kernel", "projections"),
        (r"id_encoder/fuse_module/.*", "fuse_module"),
        (r"unet/.*/lora/(down|up)", "lora"),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """LoRA on the UNet, the ID encoder on CLIP's weights, a branch per additional prompt.

        Reads config.rank, lora_alpha, and the keys that methods/start.py reads.
        """
        model = parts.model
        add_id_encoder(model, config, rngs)
        add_lora(model.unet, ATTENTION_LAYERS, config.rank, alpha=config.lora_alpha, rngs=rngs)
        origin = load_start(model, config)
        for name in self.streams:
            add_branch(model.unet, name)
        load_remaining(model, origin)

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        return prompts(parts, config, ("text", *self.streams)), references(
            self, parts.model, config
        )

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        embeds, pooled = prompt_states(model, batch)
        id_embeds = model.id_encoder.project(reference_features(model, batch))
        stacked = model.id_encoder.fuse_module.stack(
            embeds, id_embeds, batch["class_tokens_mask"], batch["id_mask"]
        )
        conditioning = Conditioning({"text": TokenStream(stacked)}, pooled, batch["time_ids"])
        return add_prompt_streams(conditioning, model, batch, self.streams)
