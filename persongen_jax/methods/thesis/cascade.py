"""Background, body and identity one after the other (thesis, 3.3: its target method).

Every cross-attention on the general prompt is followed by three more layers, each on its own stream
and with a skip connection, from the whole of the image to its details.
"""

from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.methods.base import Model, Parts, add_prompt_streams, condition_on_text
from persongen_jax.methods.start import add_id_encoder, load_remaining, load_start
from persongen_jax.methods.thesis.id_branch import (
    IDBranch,
    add_identity,
    identity_tokens,
)
from persongen_jax.models.branches import CascadeCrossAttention, add_branch

ORDER = ("background", "body", "identity")


class Cascade(IDBranch):
    """Streams "text", "background", "body" and "identity"; all of the added layers is trained."""

    streams = ORDER[:2]
    groups = (
        *(row for row in IDBranch.groups if row[1] != "identity"),
        *((rf"unet/.*/attn2/branches/{name}/.*", name) for name in ORDER),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        model = parts.model
        add_id_encoder(model, config, rngs)
        origin = load_start(model, config)
        add_identity(model, config)
        for name in ORDER:
            add_branch(model.unet, name, CascadeCrossAttention)
        load_remaining(model, origin)

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        conditioning = add_prompt_streams(
            condition_on_text(model, batch), model, batch, self.streams
        )
        return conditioning.with_stream("identity", *identity_tokens(model, batch))
