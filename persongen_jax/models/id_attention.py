"""PuLID's cross-attention on identity tokens (Guo et al., arXiv 2404.16022, and its released code).

Next to the text's output h there is a branch's, a, on the identity's tokens and on ``zeros`` tokens
of zeros, which draw attention away from them. In the two orthogonal modes, what a has in common
with h over the picture, channel by channel, is removed or weighted:

    proj = (sum h a / sum h h) h            sums over the positions, per channel

    plain       h + s a
    ortho       h + s (a - proj)
    ortho_v2    h + s (a + (m - 1) proj)    m: how much a position attends to the first five tokens

Neither the zeros nor the modes are in the paper. With no token there, exactly h is left.
"""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.diffusion.conditioning import Streams, TokenStream
from persongen_jax.models.attention import CrossAttention
from persongen_jax.models.branches import (
    Branch,
    ParallelCrossAttention,
    read_stream,
    transformer_blocks,
)
from persongen_jax.models.layers import LayerNorm

MODES = ("plain", "ortho", "ortho_v2")
WATCHED = 5  # tokens whose share of the attention is m
_RECORDED: contextvars.ContextVar[list | None] = contextvars.ContextVar("queries", default=None)


@contextlib.contextmanager
def recording() -> Iterator[list[tuple[jax.Array, jax.Array]]]:
    """Collects (queries [b, n, heads, d], text keys [b, m, heads, d]) of every layer that runs.

    The layers must run in the same trace as what reads the list: not within a scan or a checkpoint
    of their own.
    """
    found: list[tuple[jax.Array, jax.Array]] = []
    token = _RECORDED.set(found)
    try:
        yield found
    finally:
        _RECORDED.reset(token)


class IDBranch(Branch):
    """A branch with PuLID's two settings.

    Attributes:
        mode: one of MODES. zeros: number of tokens of zeros.
    """

    def __init__(self, base: CrossAttention):
        super().__init__(base)
        self.mode, self.zeros = "plain", 0


class IDCrossAttention(ParallelCrossAttention):
    """The text's output, then what each branch adds to it, then the output projection.

    A branch of another adapter, which has no mode, adds what it reads, as in its own composition.
    """

    def new_branch(self, norm: LayerNorm) -> IDBranch:
        return IDBranch(self)

    def __call__(self, x: jax.Array, streams: Streams) -> jax.Array:
        """[b, n, query_dim] to the same; a branch whose stream is missing adds nothing."""
        q = self.to_q(x)
        text = self.attend_text(q, streams)
        recorded = _RECORDED.get()
        if recorded is not None:
            keys = self.to_k(streams["text"].tokens)
            recorded.append((self._split(q), self._split(keys)))
        out = text
        for name in self.order:
            if name in streams:
                out = out + self._added(q, text, self.branches[name], streams[name])
        return self.to_out[0](out)

    def _added(self, q, text, branch, stream: TokenStream):
        def read(q, tokens, mask):
            # Each person's part of the tokens is read as if it were alone in the picture.
            h = jnp.repeat(text, len(q) // len(text), axis=0)
            return self.added(q, h, tokens, mask, branch)

        return read_stream(read, q, stream)

    def added(
        self,
        q: jax.Array,
        h: jax.Array,
        tokens: jax.Array,
        mask: jax.Array | None,
        branch: Branch,
    ) -> jax.Array:
        """What one face adds, before its scale.

        Args:
            q: [b, n, inner]. h: the text's output, likewise.
            tokens: [b, m, d]; mask: [b, m] bool or None.
        """
        k, v = branch.to_k(tokens), branch.to_v(tokens)
        mode, zeros = getattr(branch, "mode", "plain"), getattr(branch, "zeros", 0)
        if zeros:
            # The projections have no bias: keys and values of zeros are zeros.
            more = ((0, 0), (0, zeros), (0, 0))
            k, v = jnp.pad(k, more), jnp.pad(v, more)
            mask = None if mask is None else jnp.pad(mask, more[:2], constant_values=True)
        a = self.attend_projected(q, k, v, mask)
        if mode == "plain":
            return a
        shared = projected(a, h)
        if mode == "ortho":
            return (a - shared).astype(a.dtype)
        return (a + (self.watched(q, k, mask) - 1) * shared).astype(a.dtype)

    def watched(self, q: jax.Array, k: jax.Array, mask: jax.Array | None) -> jax.Array:
        """m, [b, n, 1] float32: the first tokens' share of a softmax without 1 / sqrt(d)."""
        q, k = self._split(q), self._split(k)
        scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
        if mask is not None:
            scores = jnp.where(mask[:, None, None], scores, jnp.finfo(jnp.float32).min)
        shares = jax.nn.softmax(scores, axis=-1)[..., :WATCHED].sum(-1)
        return shares.mean(axis=1)[..., None]


def projected(a: jax.Array, h: jax.Array) -> jax.Array:
    """What ``a`` has of ``h`` [b, n, c], per channel over the positions, float32."""
    a, h = a.astype(jnp.float32), h.astype(jnp.float32)
    own = (h * h).sum(1, keepdims=True)
    return (h * a).sum(1, keepdims=True) / jnp.where(own > 0, own, 1) * h


def set_mode(unet: nnx.Module, name: str, mode: str, zeros: int) -> None:
    """How the branch ``name`` acts, in every layer.

    Raises:
        ValueError: an unknown mode, or a number of zeros below 0.
    """
    if mode not in MODES:
        raise ValueError(f"PuLID's mode {mode!r} is unknown: give {', '.join(MODES)}")
    if isinstance(zeros, bool) or not isinstance(zeros, int) or zeros < 0:
        raise ValueError(f"PuLID's number of zero tokens is {zeros!r}: give a whole number from 0")
    for block in transformer_blocks(unet):
        attention: Any = block.attn2
        branch = attention.branches[name]
        branch.mode, branch.zeros = mode, zeros
