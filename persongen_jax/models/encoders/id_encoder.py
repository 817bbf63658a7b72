"""PhotoMaker's ID encoder: puts face images into the prompt (arXiv 2312.04461, section 3.2).

Module paths mirror the keys of ``photomaker-v1.bin``. What methods with an attention branch on the
identity need in addition to that file is a separate module, :class:`IdentityTokens`.
"""

from collections.abc import Sequence
from typing import Unpack

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.encoders.clip import CLIPVisionModel
from persongen_jax.models.layers import LayerNorm, LayerOptions, Linear


class MLP(nnx.Module):
    """norm, linear, gelu, linear, with a skip if ``use_residual``: [..., in] to [..., out]."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_features: int,
        *,
        use_residual: bool,
        **kw: Unpack[LayerOptions],
    ):
        self.use_residual = use_residual
        self.layernorm = LayerNorm(in_features, **kw)
        self.fc1 = Linear(in_features, hidden_features, **kw)
        self.fc2 = Linear(hidden_features, out_features, **kw)

    def __call__(self, x: jax.Array) -> jax.Array:
        h = self.fc2(jax.nn.gelu(self.fc1(self.layernorm(x)), approximate=False))
        return h + x if self.use_residual else h


class FuseModule(nnx.Module):
    """Fuses a class token's prompt embedding and one reference's ID embedding.

    A new one returns the prompt embedding, normalised.
    """

    def __init__(self, features: int, **kw: Unpack[LayerOptions]):
        self.mlp1 = MLP(2 * features, features, features, use_residual=False, **kw)
        self.mlp2 = MLP(features, features, features, use_residual=True, **kw)
        self.layer_norm = LayerNorm(features, **kw)
        for mlp in (self.mlp1, self.mlp2):
            # The token begins as the class word itself, normalised. With random last layers it
            # begins as noise that makes every image worse; the quickest remedy is to look away
            # from it, and from attention that is zero no gradient returns (docs/miniature.md).
            nnx.update(mlp.fc2, jax.tree.map(jnp.zeros_like, nnx.state(mlp.fc2)))

    def __call__(self, prompt_embeds: jax.Array, id_embeds: jax.Array) -> jax.Array:
        """[b, k, d] and [b, k, d] to [b, k, d]."""
        joined = jnp.concatenate([prompt_embeds, id_embeds], axis=-1)
        fused = self.mlp1(joined) + prompt_embeds
        return self.layer_norm(self.mlp2(fused))

    def stack(
        self,
        prompt_embeds: jax.Array,
        id_embeds: jax.Array,
        class_tokens_mask: jax.Array,
        id_mask: jax.Array,
    ) -> jax.Array:
        """The stacked ID embedding: every class token is fused with its own reference.

        Args:
            prompt_embeds: [b, n, d].
            id_embeds: [b, r, d], one per reference.
            class_tokens_mask: [b, n] bool, True at the class token's copies.
            id_mask: [b, r] bool; the k-th True one belongs to the k-th copy.

        Returns:
            [b, n, d] float32: prompt_embeds with the copies replaced, everything else bit-equal.
        """
        references = id_embeds.shape[1]
        # Stable sorting moves the marked positions to the front, in order.
        places = jnp.argsort(~class_tokens_mask, axis=1, stable=True)[:, :references]
        order = jnp.argsort(~id_mask, axis=1, stable=True)
        valid = jnp.take_along_axis(class_tokens_mask, places, axis=1)
        valid &= jnp.take_along_axis(id_mask, order, axis=1)

        prompt_embeds = jnp.asarray(prompt_embeds, jnp.float32)
        ids = jnp.take_along_axis(id_embeds, order[..., None], axis=1)
        tokens = jnp.take_along_axis(prompt_embeds, places[..., None], axis=1)
        fused = self(tokens, ids).astype(jnp.float32)
        # A position without a valid embedding keeps its value.
        rows = jnp.arange(places.shape[0])[:, None]
        return prompt_embeds.at[rows, places].set(jnp.where(valid[..., None], fused, tokens))


class PhotoMakerParts(nnx.Module):
    """CLIP's image tower and two projections, one per text tower's width.

    Args:
        vision_model: CLIPVisionModel without projection; it stays frozen.
        projection_dims: widths (768, 1280 for SDXL) of the two text towers.
        dtype: of the computation; param_dtype: of the weights that PhotoMaker trains.
    """

    def __init__(
        self,
        vision_model: CLIPVisionModel,
        projection_dims: Sequence[int],
        *,
        dtype: DTypeLike,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        kw: LayerOptions = {"dtype": dtype, "param_dtype": param_dtype, "rngs": rngs}
        self.vision_model = vision_model
        features = vision_model.config["hidden_size"]
        first, second = projection_dims
        self.visual_projection = Linear(features, first, use_bias=False, **kw)
        self.visual_projection_2 = Linear(features, second, use_bias=False, **kw)
        self.fuse_module = FuseModule(first + second, **kw)


class PhotoMakerIDEncoder(PhotoMakerParts):
    """Version 1 of the encoder: projects CLIP's pooled embeddings."""

    def __call__(self, id_pixel_values: jax.Array) -> jax.Array:
        """[b, r, s, s, 3] CLIP-normalised face crops to ID embeddings [b, r, d1 + d2]."""
        return self.project(self.pool(id_pixel_values))

    def pool(self, id_pixel_values: jax.Array) -> jax.Array:
        """[b, r, s, s, 3] CLIP-normalised face crops to CLIP's pooled embeddings [b, r, d]."""
        b, r = id_pixel_values.shape[:2]
        images = id_pixel_values.reshape(b * r, *id_pixel_values.shape[2:])
        return self.vision_model(images).pooler_output.reshape(b, r, -1)

    def project(self, pooled: jax.Array) -> jax.Array:
        """[b, r, d] to ID embeddings [b, r, d1 + d2]."""
        embeds = [self.visual_projection(pooled), self.visual_projection_2(pooled)]
        return jnp.concatenate(embeds, axis=-1)


class IdentityTokens(nnx.Module):
    """Turns references into tokens of an attention branch, one each: a projection, then a norm.

    Args:
        encoder: its projections are used; or, with ``own_projection``, copied and concatenated as
            the initial ``visual_projection_3`` (thesis, 5.2.2).
        dtype: of the computation; trained weights are stored in float32.
    """

    def __init__(
        self, encoder: PhotoMakerIDEncoder, *, own_projection: bool = False, dtype: DTypeLike
    ):
        kernels = [
            projection.kernel[...].astype(jnp.float32)
            for projection in (encoder.visual_projection, encoder.visual_projection_2)
        ]
        both = jnp.concatenate(kernels, axis=1)
        kw: LayerOptions = {"dtype": dtype, "param_dtype": jnp.float32, "rngs": nnx.Rngs(0)}
        self.id_norm = LayerNorm(both.shape[1], **kw)
        self.visual_projection_3 = nnx.data(None)
        if own_projection:
            self.visual_projection_3 = Linear(*both.shape, use_bias=False, **kw)
            self.visual_projection_3.kernel.set_value(both)

    def __call__(self, encoder: PhotoMakerIDEncoder, pooled: jax.Array) -> jax.Array:
        """CLIP's pooled embeddings [b, r, d] to tokens [b, r, d1 + d2]."""
        project = self.visual_projection_3 or encoder.project
        return self.id_norm(project(pooled))
