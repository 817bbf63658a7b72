"""Identity through text space and an attention branch at once (thesis, 5.2.2).

PhotoMaker's stacked ID embedding (arXiv 2312.04461) and the branch of id_branch.py. The branch has
a projection of its own, so that the two ways can encode different things about a face.
"""

from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.methods.base import Model, Parts, prompt_states, reference_features
from persongen_jax.methods.start import add_id_encoder, load_remaining, load_start
from persongen_jax.methods.thesis.id_branch import IDBranch, add_identity
from persongen_jax.models.branches import add_branch


class Dual(IDBranch):
    """Stacked ID embedding in "text", and the references in "identity"; no LoRA."""

    at_trigger = True
    groups = (
        *IDBranch.groups,
        (r"id_tokens/visual_projection_3/kernel", "projections"),
        (r"id_encoder/fuse_module/.*", "fuse_module"),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        model = parts.model
        add_id_encoder(model, config, rngs)
        origin = load_start(model, config)
        add_identity(model, config, own_projection=True)
        add_branch(model.unet, "identity")
        load_remaining(model, origin)

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        embeds, pooled = prompt_states(model, batch)
        encoder, features = model.id_encoder, reference_features(model, batch)
        stacked = encoder.fuse_module.stack(
            embeds, encoder.project(features), batch["class_tokens_mask"], batch["id_mask"]
        )
        conditioning = Conditioning({"text": TokenStream(stacked)}, pooled, batch["time_ids"])
        tokens = model.id_tokens(encoder, features)
        return conditioning.with_stream("identity", tokens, batch["id_mask"])
