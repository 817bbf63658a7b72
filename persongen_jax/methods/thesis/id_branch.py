"""Identity through its own attention branch (Ye et al., arXiv 2308.06721; thesis, 5.2.1).

Every reference is one token, its normalised ID embedding, which a parallel branch of each
cross-attention reads. The prompt is an ordinary one: no trigger word, no copies of the class token.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from ml_collections import ConfigDict

from data_pipeline.examples.fields import Batch, Field
from persongen_jax.diffusion.conditioning import Conditioning
from persongen_jax.methods.base import (
    Method,
    Model,
    Parts,
    condition_on_text,
    prompts,
    reference_features,
    references,
)
from persongen_jax.methods.start import add_id_encoder, load_remaining, load_start
from persongen_jax.models.branches import add_branch
from persongen_jax.models.encoders.id_encoder import IdentityTokens


class IDBranch(Method):
    """Streams "text" and "identity": [b, r, d], padding references masked."""

    at_trigger = False  # whether the identity also enters at the class word
    streams: tuple[str, ...] = ()  # additional prompts, each read by a branch
    groups: tuple[tuple[str, str], ...] = (
        (r"id_encoder/visual_projection(_2)?/kernel", "projections"),
        (r"id_tokens/id_norm/(scale|bias)", "id_norm"),
        (r"unet/.*/attn2/branches/identity/to_[kv]/kernel", "identity"),
    )

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """The ID encoder on CLIP's weights, the norm, the branch; see methods/start.py."""
        model = parts.model
        add_id_encoder(model, config, rngs)
        origin = load_start(model, config)
        add_identity(model, config)
        add_branch(model.unet, "identity")
        load_remaining(model, origin)

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        text = prompts(parts, config, ("text", *self.streams), at_trigger=self.at_trigger)
        return text, references(self, parts.model, config)

    def condition(self, model: Model, batch: Batch) -> Conditioning:
        return condition_on_text(model, batch).with_stream(
            "identity", *identity_tokens(model, batch)
        )


def add_identity(model: Model, config: ConfigDict, **options: Any) -> None:
    """Adds what turns ID embeddings into the branch's tokens; ``options`` are IdentityTokens'.

    Reads config.id_norm_gain and dtype.
    """
    dtype = jnp.dtype(config.dtype)
    tokens = IdentityTokens(model.id_encoder, dtype=dtype, **options)
    scale = tokens.id_norm.scale
    scale.set_value(scale.get_value() * config.get("id_norm_gain", 1.0))
    model.id_tokens = tokens


def identity_tokens(model: Model, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """Tokens [b, r, d] of the references, and their mask [b, r]."""
    return model.id_tokens(model.id_encoder, reference_features(model, batch)), batch["id_mask"]
