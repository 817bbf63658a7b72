"""PhotoMaker v2's ID encoder: a face recogniser's embedding attends to CLIP's patches.

Version 1 (arXiv 2312.04461, section 3.2) takes CLIP's pooled embedding of a face. Here a
recogniser's embedding becomes two tokens, which gather what else they need from CLIP's patches;
each token takes the place of one copy of the class word. Module paths mirror the keys of
``photomaker-v2.bin``.
"""

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.encoders.id_encoder import PhotoMakerParts
from persongen_jax.models.encoders.resampler import GELU, PerceiverResampler, apply
from persongen_jax.models.layers import LayerNorm, LayerOptions, Linear

NUM_TOKENS = 2  # for each reference
HEAD_DIM = 128  # not in the file, unless its metadata say otherwise


class QFormerPerceiver(nnx.Module):
    """A face embedding to tokens, refined by what CLIP's patches show.

    Args:
        id_features: of the face embedding (512); in_features: of a patch (1024).
        features: of the tokens (2048); a multiple of ``head_dim``, or less, which makes one head.
        hidden_features: between the two layers that make the tokens (4 * id_features).
    """

    def __init__(
        self,
        id_features: int,
        in_features: int,
        features: int,
        *,
        num_tokens: int = NUM_TOKENS,
        hidden_features: int | None = None,
        head_dim: int = HEAD_DIM,
        num_layers: int = 4,
        **kw: Unpack[LayerOptions],
    ):
        hidden = 4 * id_features if hidden_features is None else hidden_features
        self.num_tokens = num_tokens
        self.token_proj = nnx.List(
            [Linear(id_features, hidden, **kw), GELU(), Linear(hidden, num_tokens * features, **kw)]
        )
        self.token_norm = LayerNorm(features, **kw)
        self.perceiver_resampler = PerceiverResampler(
            in_features,
            features,
            features,
            heads=max(1, features // head_dim),
            head_dim=min(head_dim, features),
            num_layers=num_layers,
            **kw,
        )

    def __call__(self, face_embeds: jax.Array, last_hidden_state: jax.Array) -> jax.Array:
        """[b, id_features] and patches [b, m, in_features] to [b, n, features]."""
        tokens = apply(self.token_proj, face_embeds)
        tokens = self.token_norm(tokens.reshape(len(tokens), self.num_tokens, -1))
        return tokens + self.perceiver_resampler.resample(tokens, last_hidden_state)


class PhotoMakerV2IDEncoder(PhotoMakerParts):
    """CLIP's image tower, version 1's parts, and :class:`QFormerPerceiver`.

    ``visual_projection`` and ``visual_projection_2`` lie in the files but are not used. What it
    gives goes to ``fuse_module.stack`` as version 1's does, with ``num_tokens`` copies of the class
    token for each reference and the references' mask repeated as often.

    Args:
        id_features: of the face embedding; hidden_features, head_dim, num_layers:
            QFormerPerceiver's. All other arguments are as version 1's.
    """

    def __init__(
        self,
        vision_model: CLIPVisionModel,
        projection_dims: Sequence[int],
        *,
        id_features: int = 512,
        hidden_features: int | None = None,
        head_dim: int = HEAD_DIM,
        num_layers: int = 4,
        dtype: DTypeLike,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        super().__init__(vision_model, projection_dims, **kw)
        self.qformer_perceiver = QFormerPerceiver(
            id_features,
            vision_model.config["hidden_size"],
            sum(projection_dims),
            hidden_features=hidden_features,
            head_dim=head_dim,
            num_layers=num_layers,
            **kw,
        )

    def __call__(self, id_pixel_values: jax.Array, face_embeds: jax.Array) -> jax.Array:
        """CLIP-normalised photographs and the recogniser's raw embeddings to ID embeddings.

        Args:
            id_pixel_values: [b, r, s, s, 3].
            face_embeds: [b, r, id_features].

        Returns:
            [b, r * n, d1 + d2]: the n tokens of a reference are adjacent.
        """
        return self.tokens(self.patches(id_pixel_values), face_embeds)

    def patches(self, id_pixel_values: jax.Array) -> jax.Array:
        """[b, r, s, s, 3] to CLIP's last hidden states [b, r, m, d], without the last norm."""
        b, r = id_pixel_values.shape[:2]
        images = id_pixel_values.reshape(b * r, *id_pixel_values.shape[2:])
        states = self.vision_model(images).last_hidden_state
        return states.reshape(b, r, *states.shape[1:])

    def tokens(self, patches: jax.Array, face_embeds: jax.Array) -> jax.Array:
        """[b, r, m, d] and [b, r, id_features] to [b, r * n, d1 + d2]."""
        b, r = face_embeds.shape[:2]
        patches = patches.reshape(b * r, *patches.shape[2:])
        tokens = self.qformer_perceiver(face_embeds.reshape(b * r, -1), patches)
        return tokens.reshape(b, r * tokens.shape[1], -1)
