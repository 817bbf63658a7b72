"""Further streams for the UNet's cross-attention to read.

A method adds **branches**, each on a stream of its own; how their outputs come together is one
class, a **composition**, that takes the base layer's place as ``attn2``:
:class:`ParallelCrossAttention`, :class:`CascadeCrossAttention`; id_attention.py has PuLID's.
"""

import abc
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.diffusion.conditioning import Streams, TokenStream
from persongen_jax.models.attention import BasicTransformerBlock, CrossAttention, MultiHeadAttention
from persongen_jax.models.layers import LayerNorm, LayerOptions, Linear, UnusedRngs


def read_stream(
    read: Callable[[jax.Array, jax.Array, jax.Array | None], jax.Array],
    q: jax.Array,
    stream: TokenStream,
) -> jax.Array:
    """The output of a branch, [b, n, d]; exactly 0 where its stream is fully masked.

    Args:
        read: (q [B, n, inner], tokens [B, m, d'], mask [B, m] or None) to [B, n, d].
        q: [b, n, inner], of the n positions of the image.
        stream: its scale multiplies the result. With a region, each part of the tokens is read
            separately (B = b * g) and weighted by its region, like diffusers' ``ip_adapter_masks``.
    """
    b, n = q.shape[:2]
    groups = 1 if stream.region is None else stream.region.shape[1]
    tokens, mask = stream.tokens.reshape(b * groups, -1, stream.tokens.shape[-1]), stream.mask
    if groups > 1:
        q = jnp.repeat(q, groups, axis=0)
    present = None
    if mask is not None:
        mask = mask.reshape(b * groups, -1)
        present = mask.any(axis=1)
        # Softmax over nothing is undefined: attend to everything and discard the result.
        mask = mask | ~present[:, None]
    out = read(q, tokens, mask)
    if present is not None:
        out = jnp.where(present[:, None, None], out, 0)
    if stream.region is not None:
        where = stream.region.reshape(b, groups, n, 1).astype(out.dtype)
        out = (out.reshape(b, groups, n, -1) * where).sum(axis=1)
    if stream.scale is not None:
        out = out * stream.scale[:, None, None].astype(out.dtype)
    return out


class Composition(CrossAttention):
    """Cross-attention on "text" and on the streams of its branches.

    Args:
        base: the layer whose place this one takes. Its projections are used, not copied.

    Attributes:
        branches: by the name of the stream.
        order: the names in the order in which they were added.
    """

    def __init__(self, base: CrossAttention):
        self.heads = base.heads
        self.to_q, self.to_k, self.to_v, self.to_out = base.to_q, base.to_k, base.to_v, base.to_out
        self.branches = nnx.Dict()
        self.order: tuple[str, ...] = ()  # separate, because NNX keeps no order

    @abc.abstractmethod
    def new_branch(self, norm: LayerNorm) -> nnx.Module:
        """The layer that reads one more stream; every composition has its own kind."""

    def add(self, name: str, norm: LayerNorm) -> None:
        """Add a branch; ``norm`` is the block's norm before this layer."""
        self.branches[name] = self.new_branch(norm)
        self.order = (*self.order, name)


class Branch(nnx.Module):
    """Keys and values of one more stream, starting as float32 copies of the base layer's.

    Copies without its LoRA; float32, because they are trained. They compute in the base's dtype.
    """

    def __init__(self, base: MultiHeadAttention):
        self.to_k = _trained_copy(base.to_k)
        self.to_v = _trained_copy(base.to_v)


def _trained_copy(layer: Linear | LayerNorm):
    copy = nnx.clone(layer)
    if isinstance(copy, Linear):
        copy.lora = copy.change = nnx.data(None)
    for name, leaf in vars(layer).items():
        if isinstance(leaf, nnx.Param):
            # Always its own buffer: training donates the trained ones and keeps the frozen ones.
            setattr(copy, name, nnx.Param(jnp.array(leaf[...], jnp.float32, copy=True)))
    return copy


class ParallelCrossAttention(Composition):
    """IP-Adapter's decoupled cross-attention (Ye et al., arXiv 2308.06721, section 3.2.2).

    One query and one output projection; what the branches read is added between the two:

        Z = to_out( A(Q, K_text, V_text) + sum_b scale_b * A(Q, K_b, V_b) )

    The thesis (5.2) reads identity or background this way.
    """

    def new_branch(self, norm: LayerNorm) -> Branch:
        return Branch(self)

    def __call__(self, x: jax.Array, streams: Streams) -> jax.Array:
        """[b, n, query_dim] to the same; a branch whose stream is missing adds nothing."""
        q = self.to_q(x)
        out = self.attend_text(q, streams)
        for name in self.order:
            if name in streams:
                branch = self.branches[name]

                def read(q, tokens, mask, branch=branch):
                    return self.attend(q, tokens, branch.to_k, branch.to_v, mask)

                out = out + read_stream(read, q, streams[name])
        return self.to_out[0](out)


class CascadeLayer(MultiHeadAttention):
    """A whole attention layer on one more stream, with a norm of its own.

    norm, to_q, to_k and to_v start as float32 copies of the base's without its LoRA; to_out starts
    at zero, so that the layer adds nothing yet.
    """

    def __init__(self, base: MultiHeadAttention, norm: LayerNorm):
        self.heads = base.heads
        self.norm = _trained_copy(norm)
        self.to_q, self.to_k, self.to_v = map(_trained_copy, (base.to_q, base.to_k, base.to_v))
        out = _trained_copy(base.to_out[0])
        for leaf in (out.kernel, out.bias):
            leaf.set_value(jnp.zeros_like(leaf[...]))
        self.to_out = nnx.List([out])

    def __call__(self, x: jax.Array, stream: TokenStream) -> jax.Array:
        """The term to add to ``x`` [b, n, query_dim]."""

        def read(q, tokens, mask):
            return self.to_out[0](self.attend(q, tokens, self.to_k, self.to_v, mask))

        return read_stream(read, self.to_q(self.norm(x)), stream)


class CascadeCrossAttention(Composition):
    """The thesis' target adapter (section 3.3): layer after layer, from the whole to the detail.

        x_0 = x + A_text(norm(x))
        x_b = x_{b-1} + scale_b * A_b(norm_b(x_{b-1}))

    in the order in which the branches were added.
    """

    def new_branch(self, norm: LayerNorm) -> CascadeLayer:
        return CascadeLayer(self, norm)

    def add_to(self, x: jax.Array, norm: LayerNorm, streams: Streams) -> jax.Array:
        """A branch whose stream is missing adds nothing."""
        x = super().add_to(x, norm, streams)
        for name in self.order:
            if name in streams:
                x = x + self.branches[name](x, streams[name])
        return x


def add_branch(
    unet: nnx.Module, name: str, composition: type[Composition] = ParallelCrossAttention
) -> None:
    """A branch on stream ``name`` in every cross-attention (``attn2``) of ``unet``, in place.

    Args:
        composition: how branches come together; one kind for all of a network.

    Raises:
        ValueError: there is one of this name, another composition, or no cross-attention.
    """
    blocks = transformer_blocks(unet)
    if not blocks:
        raise ValueError(f"branch {name!r}: {type(unet).__name__} has no cross-attention blocks")
    names = branch_names(unet)
    if name == "text" or name in names:
        raise ValueError(f"there is a cross-attention on the stream {name!r} already")
    for block in blocks:
        if not isinstance(block.attn2, composition):
            if names:
                raise ValueError(
                    f"branch {name!r}: {', '.join(names)} are composed by "
                    f"{type(block.attn2).__name__}, not by {composition.__name__}; give all "
                    "branches of a method one composition"
                )
            block.attn2 = composition(block.attn2)
        block.attn2.add(name, block.norm2)


def adds_up(unet: nnx.Module) -> bool:
    """Whether branches that are there, if any, are added to one another, as parallel ones are."""
    layers = (block.attn2 for block in transformer_blocks(unet))
    return all(isinstance(x, ParallelCrossAttention) for x in layers if isinstance(x, Composition))


def branch_names(unet: nnx.Module) -> list[str]:
    """The streams that ``unet`` has branches for, sorted."""
    return sorted({n for b in transformer_blocks(unet) for n in getattr(b.attn2, "order", ())})


def remove_branches(unet: nnx.Module) -> None:
    """Remove every branch, which restores the base model and its structure."""
    for block in transformer_blocks(unet):
        if isinstance(block.attn2, Composition):
            block.attn2 = _without_branches(block.attn2)


def _without_branches(layer: Composition) -> CrossAttention:
    """The base's layer with this one's projections, which are not copied."""
    kw: LayerOptions = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    plain = nnx.eval_shape(lambda: CrossAttention(1, heads=1, head_dim=1, **kw))
    for name in ("heads", "to_q", "to_k", "to_v", "to_out"):
        setattr(plain, name, getattr(layer, name))
    return plain


def transformer_blocks(unet: nnx.Module) -> list[BasicTransformerBlock]:
    """All of a network's."""
    return [node for _, node in nnx.iter_graph(unet) if isinstance(node, BasicTransformerBlock)]


def take_branch(unet: nnx.Module, name: str) -> list[nnx.Module]:
    """Take the branch of this stream off; :func:`put_branch` puts it back. [] if there is none."""
    taken = []
    for block in transformer_blocks(unet):
        layer = block.attn2
        if isinstance(layer, Composition) and name in layer.order:
            taken.append(layer.branches[name])
            del layer.branches[name]
            layer.order = tuple(each for each in layer.order if each != name)
            if not layer.order:
                block.attn2 = _without_branches(layer)
    return taken


def put_branch(unet: nnx.Module, name: str, taken: list[nnx.Module]) -> None:
    """Add the branch of stream ``name`` with these layers; ValueError as :func:`add_branch`."""
    add_branch(unet, name)
    for block, layer in zip(transformer_blocks(unet), taken, strict=True):
        attention: Any = block.attn2  # a Composition by now
        attention.branches[name] = layer
