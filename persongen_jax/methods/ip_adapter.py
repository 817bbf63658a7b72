"""Identity by an attention branch of its own (Ye et al., arXiv 2308.06721; thesis, 5.2.1).

Every reference is one token, its normalised ID embedding, which a parallel branch of each
cross-attention reads. The prompt is an ordinary one: no trigger word, no copies of the class token.
"""

import jax.numpy as jnp

from persongen_jax.conditioning import Conditioning, TokenStream
from persongen_jax.methods.base import (
    Method,
    one_class_token,
    prompt_states,
    reference_features,
)
from persongen_jax.methods.start import add_id_encoder, start_from, start_rest
from persongen_jax.models.attention import add_branch
from persongen_jax.models.id_encoder import IdentityTokens


class IPAdapter(Method):
    """Streams "text" and "identity": [b, r, d], padding references masked."""

    needs_trigger = False
    groups = (
        (r"id_encoder/visual_projection(_2)?/kernel", "projections"),
        (r"id_tokens/id_norm/(scale|bias)", "id_norm"),
        (r"unet/.*/attn2/branches/identity/to_[kv]/kernel", "identity"),
    )

    def attach(self, model, config, rngs):
        """The ID encoder on CLIP's weights, the norm, the branch; see methods/start.py."""
        add_id_encoder(model, config, rngs)
        origin = start_from(model, config)
        add_identity(model, config)
        add_branch(model.unet, "identity")
        start_rest(model, origin)

    def reference_size(self, model) -> int:
        return model.id_encoder.vision_model.config["image_size"]

    def condition(self, model, batch) -> Conditioning:
        return plain_text(model, batch).with_stream("identity", *identity_tokens(model, batch))


def add_identity(model, config, **options):
    """What makes ID embeddings the branch's tokens; ``options`` are IdentityTokens'.

    Reads config.id_norm_gain and dtype.
    """
    dtype = jnp.dtype(config.dtype)
    tokens = IdentityTokens(model.id_encoder, dtype=dtype, **options)
    scale = tokens.id_norm.scale
    scale.set_value(scale.get_value() * config.get("id_norm_gain", 1.0))
    model.id_tokens = tokens


def plain_text(model, batch) -> Conditioning:
    """The prompt as it was written, with no place for an identity in it.

    Cached states are already those of such a prompt.
    """
    if "input_ids" in batch:
        ids = one_class_token(batch["input_ids"]["text"], batch["class_tokens_mask"])
        batch = {**batch, "input_ids": {"text": ids}}
    embeds, pooled = prompt_states(model, batch)
    return Conditioning({"text": TokenStream(embeds)}, pooled, batch["time_ids"])


def identity_tokens(model, batch):
    """Tokens [b, r, d] of the references, and their mask [b, r]."""
    return model.id_tokens(model.id_encoder, reference_features(model, batch)), batch["id_mask"]
