"""Attention: one function that picks the kernel, and the transformer blocks of the UNet.

``attention`` is the only place that knows about backends. The blocks above it read their
conditioning from named token streams.

The base model's cross-attention reads "text". A method adds **branches**, each on a stream of its
The base model's cross-attention reads "text". A method adds **branches**, each on a stream of its
own. A **composition**, a class that replaces the base layer as ``attn2``, combines their outputs:
"""

import functools
import math

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.diffusion.conditioning import TokenStream
from persongen_jax.models.layers import Conv, GroupNorm, LayerNorm, Linear, UnusedRngs
from persongen_jax.models.ops import geglu, materialize
from persongen_jax.models.platform import kernels_for_attention, target
from persongen_jax.parallel.sharding import BATCH

# Score matrices of one example above this size are never held whole; queries are then chunked.
MAX_SCORE_BYTES = 768 * 2**20
# From this size on, TPUs use the flash kernel: its scores never leave the chip's fast memory. At
# 1024 tokens, forward and backward, XLA's own attention takes 0.76 ms by the compiler's cycles
# (v5p, 4 images, 10 heads of 64); XLA counts 0.47 ms around the kernel but nothing inside, where
# the products alone take 0.11 ms at the chip's peak.
MIN_TPU_FLASH_TOKENS = 2048


def attention(q, k, v, mask=None, *, is_causal=False, scale=None):
    """softmax(q k^T * scale) v, by the platform's best kernel.

    Args:
        q: [b, n, heads, d]; k, v: [b, m, heads, d].
        mask: bool, broadcastable to [b, heads, n, m], True where a query may attend; or None.
        is_causal: query i sees keys 0..i only.
        scale: 1 / sqrt(d) by default.

    Returns:
        [b, n, heads, d] in q's dtype. Softmax is computed in float32.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    kernel = pick_kernel(q.shape, k.shape, q.dtype, mask is not None, is_causal)
    if kernel == "cudnn":
        if mask is not None:
            k, v, mask = even_keys(k, v, jnp.broadcast_to(mask, _scores_shape(q, k)))
        return jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=is_causal, scale=scale, implementation="cudnn"
        )
    if kernel == "tpu_flash":
        return _tpu_flash(q, k, v, scale)
    if is_causal:
        causal = jnp.tril(jnp.ones((q.shape[1], k.shape[1]), bool))[None, None]
        mask = causal if mask is None else mask & causal
    if kernel == "xla":
        return _xla_attention(q, k, v, mask, scale)
    return _chunked_attention(q, k, v, mask, scale)


def pick_kernel(q_shape, k_shape, dtype, has_mask: bool, is_causal: bool) -> str:
    """Name of the kernel for q [b, n, heads, d], k [b, m, heads, d]: see :func:`attention`."""
    platform = target()
    (_, n, heads, d), m = q_shape, k_shape[1]
    plain = "xla" if heads * n * m * 4 <= MAX_SCORE_BYTES else "xla_chunked"
    if not kernels_for_attention():
        return plain
    if platform in ("gpu", "cuda") and dtype in (jnp.bfloat16, jnp.float16):
        # Its backward pass with a mask needs even lengths; keys are padded (even_keys).
        if d % 8 == 0 and d <= 128 and not (has_mask and n % 2):
            return "cudnn"
    if platform == "tpu" and not has_mask and not is_causal:
        if n == m and n >= MIN_TPU_FLASH_TOKENS and n % 512 == 0:
            return "tpu_flash"
    return plain


def even_keys(k, v, mask):
    """k, v [b, m, heads, d] and mask [b, heads, n, m], with one masked key added if m is odd."""
    odd = k.shape[1] % 2
    k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (k, v))
    return k, v, jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, odd)))


def _scores_shape(q, k):
    return (q.shape[0], q.shape[2], q.shape[1], k.shape[1])


def _xla_attention(q, k, v, mask, scale):
    if target() == "tpu":
        return _tpu_attention(q, k, v, mask, scale)
    probabilities = jax.nn.softmax(_scores(q, k, mask, scale), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", probabilities, v)


def _scores(q, k, mask, scale):
    """[b, heads, n, m], float32."""
    q = q * jnp.asarray(scale, q.dtype)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _tpu_attention(q, k, v, mask, scale):
    """The formula, with its own backward pass (that of FlashAttention, arXiv 2205.14135).

    It divides by the sum of the exponentials after the product with v, and keeps the exponentials
    in v's dtype: a third fewer bytes than JAX's derivative of softmax, and half the memory.
    """
    return _tpu_forward(q, k, v, mask, scale)[0]


def _tpu_forward(q, k, v, mask, scale):
    scores = _scores(q, k, mask, scale)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    inverse = 1 / jnp.swapaxes(weights.sum(-1), 1, 2)[..., None]  # [b, n, heads, 1]
    weights = weights.astype(v.dtype)
    out = jnp.einsum("bhnm,bmhd->bnhd", weights, v, preferred_element_type=jnp.float32)
    out = (out * inverse).astype(v.dtype)
    return out, (q, k, v, weights, inverse, out)


def _tpu_backward(scale, kept, out_gradient):
    q, k, v, weights, inverse, out = kept
    # In half precision, because the product that makes it would otherwise be written in float32.
    gradient = out_gradient * inverse.astype(v.dtype)
    drift = (gradient.astype(jnp.float32) * out).sum(-1)  # [b, n, heads]
    drift = jnp.swapaxes(drift, 1, 2)[..., None]
    of_weights = jnp.einsum("bnhd,bmhd->bhnm", gradient, v, preferred_element_type=jnp.float32)
    of_scores = (weights * (of_weights - drift)).astype(q.dtype)
    scale = jnp.asarray(scale, q.dtype)
    return (
        jnp.einsum("bhnm,bmhd->bnhd", of_scores, k) * scale,
        jnp.einsum("bhnm,bnhd->bmhd", of_scores, q) * scale,
        jnp.einsum("bhnm,bnhd->bmhd", weights, gradient),
        None,
    )


_tpu_attention.defvjp(_tpu_forward, _tpu_backward)


def _chunked_attention(q, k, v, mask, scale):
    """The same over chunks of queries in turn, so that the scores are never held whole."""
    b, n, heads, d = q.shape
    bytes_per_query = heads * k.shape[1] * 4
    chunk = max(1, MAX_SCORE_BYTES // 4 // bytes_per_query)
    chunks = -(-n // chunk)
    chunk = -(-n // chunks)
    padding = chunks * chunk - n
    q = jnp.pad(q, ((0, 0), (0, padding), (0, 0), (0, 0)))
    q = jnp.moveaxis(q.reshape(b, chunks, chunk, heads, d), 1, 0)
    if mask is None or mask.shape[2] == 1:
        out = jax.lax.map(lambda part: _xla_attention(part, k, v, mask, scale), q)
    else:
        mask = jnp.pad(mask, ((0, 0), (0, 0), (0, padding), (0, 0)), constant_values=True)
        mask = jnp.moveaxis(mask.reshape(*mask.shape[:2], chunks, chunk, -1), 2, 0)
        out = jax.lax.map(lambda part: _xla_attention(part[0], k, v, part[1], scale), (q, mask))
    return jnp.moveaxis(out, 0, 1).reshape(b, chunks * chunk, heads, d)[:, :n]


def _tpu_flash(q, k, v, scale):
    from jax.experimental.pallas.ops.tpu.flash_attention import flash_attention

    def flash(q, k, v):
        q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q, k, v))
        return jnp.swapaxes(flash_attention(q, k, v, sm_scale=scale), 1, 2)

    # The compiler cannot partition a Pallas kernel: say that the batch is split over the devices.
    # The mesh is that of jax.set_mesh, under which sampling and training run.
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or "data" in mesh.manual_axes:
        return flash(q, k, v)
    return jax.shard_map(flash, in_specs=(BATCH,) * 3, out_specs=BATCH, check_vma=False)(q, k, v)


class Attention(nnx.Module):
    """Multi-head attention from ``x`` [b, n, query_dim] to itself or to a context."""

    def __init__(self, query_dim, *, heads, head_dim, cross_attention_dim=None, **kw):
        self.heads = heads
        inner, context_dim = heads * head_dim, cross_attention_dim or query_dim
        self.to_q = Linear(query_dim, inner, use_bias=False, **kw)
        self.to_k = Linear(context_dim, inner, use_bias=False, **kw)
        self.to_v = Linear(context_dim, inner, use_bias=False, **kw)
        self.to_out = nnx.List([Linear(inner, query_dim, **kw)])

    def attend(self, q, context, to_k, to_v, mask=None):
        """From projected queries ``q`` [b, n, inner] to ``context`` [b, m, d]: [b, n, inner]."""
        mask = None if mask is None else mask[:, None, None, :]
        q, k, v = (self._split(x) for x in (q, to_k(context), to_v(context)))
        out = attention(q, k, v, mask)
        return out.reshape(*out.shape[:2], -1)

    def _split(self, x):
        return x.reshape(*x.shape[:2], self.heads, -1)

    def __call__(self, x):
        """Self-attention: [b, n, query_dim] to the same."""
        return self.to_out[0](self.attend(self.to_q(x), x, self.to_k, self.to_v))


class CrossAttention(Attention):
    """Cross-attention of the base model: reads the stream "text"."""

    def __call__(self, x, streams: dict[str, TokenStream]):
        """[b, n, query_dim] to the same."""
        return self.to_out[0](self.attend_text(self.to_q(x), streams))

    def add_to(self, x, norm, streams):
        """``x`` [b, n, query_dim] plus the layer's output after ``norm``, the skip included."""
        return x + self(norm(x), streams)

    def attend_text(self, q, streams):
        text = streams["text"]
        return self.attend(q, text.tokens, self.to_k, self.to_v, text.mask)


def read_stream(read, q, stream: TokenStream):
    """The output of a branch, [b, n, d]; exactly 0 where its stream is fully masked.

    Args:
        read: (q [B, n, inner], tokens [B, m, d'], mask [B, m] or None) to [B, n, d].
        q: [b, n, inner], of the n positions of the image.
        stream: its scale multiplies the result. With a region, each part of the tokens is read
            separately (B = b * g) and weighted by its region, like diffusers' ``ip_adapter_masks``.
    """
    b, n = q.shape[:2]
    groups = 1 if stream.region is None else stream.region.shape[1]
    tokens, mask = (
        x if x is None else x.reshape(b * groups, -1, *x.shape[2:])
        for x in (stream.tokens, stream.mask)
    )
    if groups > 1:
        q = jnp.repeat(q, groups, axis=0)
    present = None
    if mask is not None:
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
        base: the layer that this one replaces. Its projections are used, not copied.

    Attributes:
        branches: by stream name.
        order: their names in the order in which they were added.
    """

    def __init__(self, base: CrossAttention):
        self.heads = base.heads
        self.to_q, self.to_k, self.to_v, self.to_out = base.to_q, base.to_k, base.to_v, base.to_out
        self.branches = nnx.Dict()
        self.order = ()  # separate, because NNX keeps no order

    def add(self, name: str, norm: LayerNorm):
        """Add a branch; ``norm`` is the block's norm before this layer."""
        self.branches[name] = self.new_branch(norm)
        self.order = (*self.order, name)


class Branch(nnx.Module):
    """Keys and values of one additional stream, starting as float32 copies of the base layer's.

    The copies omit its LoRA and are float32, because they are trained. They compute in its dtype.
    """

    def __init__(self, base: Attention):
        self.to_k = _trained_copy(base.to_k)
        self.to_v = _trained_copy(base.to_v)


def _trained_copy(layer: Linear | LayerNorm):
    copy = nnx.clone(layer)
    if isinstance(layer, Linear):
        copy.lora = copy.change = nnx.data(None)
    for name, leaf in vars(layer).items():
        if isinstance(leaf, nnx.Param):
            # Always its own buffer: training donates the trained ones and keeps the frozen ones.
            setattr(copy, name, nnx.Param(jnp.array(leaf[...], jnp.float32, copy=True)))
    return copy


class ParallelCrossAttention(Composition):
    """IP-Adapter's decoupled cross-attention (Ye et al., arXiv 2308.06721, section 3.2.2).

    One query and one output projection; the branches' outputs are added between the two:

        Z = to_out( A(Q, K_text, V_text) + sum_b scale_b * A(Q, K_b, V_b) )

    The thesis (5.2) reads identity or background this way.
    """

    def new_branch(self, norm) -> Branch:
        return Branch(self)

    def __call__(self, x, streams: dict[str, TokenStream]):
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


class CascadeLayer(Attention):
    """A whole attention layer on one additional stream, with its own norm.

    norm, to_q, to_k and to_v start as float32 copies of the base's without its LoRA; to_out starts
    at zero, so that the layer adds nothing yet.
    """

    def __init__(self, base: Attention, norm: LayerNorm):
        self.heads = base.heads
        self.norm = _trained_copy(norm)
        self.to_q, self.to_k, self.to_v = map(_trained_copy, (base.to_q, base.to_k, base.to_v))
        out = _trained_copy(base.to_out[0])
        for leaf in (out.kernel, out.bias):
            leaf.set_value(jnp.zeros_like(leaf[...]))
        self.to_out = nnx.List([out])

    def __call__(self, x, stream: TokenStream):
        """The term to add to ``x`` [b, n, query_dim]."""

        def read(q, tokens, mask):
            return self.to_out[0](self.attend(q, tokens, self.to_k, self.to_v, mask))

        return read_stream(read, self.to_q(self.norm(x)), stream)


class CascadeCrossAttention(Composition):
    """The thesis' target adapter (section 3.3): layer after layer, from the whole to the details.

        x_0 = x + A_text(norm(x))
        x_b = x_{b-1} + scale_b * A_b(norm_b(x_{b-1}))

    in the order in which the branches were added.
    """

    def new_branch(self, norm) -> CascadeLayer:
        return CascadeLayer(self, norm)

    def add_to(self, x, norm, streams):
        """A branch whose stream is missing adds nothing."""
        x = super().add_to(x, norm, streams)
        for name in self.order:
            if name in streams:
                x = x + self.branches[name](x, streams[name])
        return x


class GEGLU(nnx.Module):
    """``a * gelu(b)`` with (a, b) = proj(x) (arXiv 2002.05202); exact gelu."""

    def __init__(self, in_features, out_features, **kw):
        self.proj = Linear(in_features, 2 * out_features, **kw)

    def __call__(self, x):
        return geglu(*jnp.split(self.proj(x), 2, axis=-1))


class Identity(nnx.Module):
    """Keeps diffusers' numbering in place of a dropout layer."""

    def __call__(self, x):
        return x


class FeedForward(nnx.Module):
    """GEGLU, then linear; ``net.0.proj`` and ``net.2`` in diffusers' keys."""

    def __init__(self, features, **kw):
        self.net = nnx.List(
            [GEGLU(features, 4 * features, **kw), Identity(), Linear(4 * features, features, **kw)]
        )

    def __call__(self, x):
        for layer in self.net:
            x = layer(x)
        return x


class BasicTransformerBlock(nnx.Module):
    """Self-attention, cross-attention, feed-forward, each after a norm and with a skip."""

    def __init__(self, features, *, heads, cross_attention_dim, **kw):
        head_dim = features // heads
        self.norm1 = LayerNorm(features, **kw)
        self.attn1 = Attention(features, heads=heads, head_dim=head_dim, **kw)
        self.norm2 = LayerNorm(features, **kw)
        self.attn2 = CrossAttention(
            features, heads=heads, head_dim=head_dim, cross_attention_dim=cross_attention_dim, **kw
        )
        self.norm3 = LayerNorm(features, **kw)
        self.ff = FeedForward(features, **kw)

    def __call__(self, x, streams):
        x = materialize(x + self.attn1(self.norm1(x)))
        x = materialize(self.attn2.add_to(x, self.norm2, streams))
        return materialize(x + self.ff(self.norm3(x)))


class Transformer2DModel(nnx.Module):
    """Transformer blocks over the positions of [b, h, w, c], added to the input.

    The projections around them are linear layers (SDXL) or 1x1 convolutions (SD 1.5); the two
    differ only in how their weights are stored.
    """

    def __init__(
        self,
        features,
        *,
        heads,
        num_layers,
        cross_attention_dim,
        groups,
        use_linear_projection,
        **kw,
    ):
        if features % heads:
            raise ValueError(
                f"attention_head_dim={heads} (the number of heads, by diffusers' naming) does not "
                f"divide {features} channels: change it or block_out_channels"
            )
        self.use_linear_projection = use_linear_projection

        def projection():
            if use_linear_projection:
                return Linear(features, features, **kw)
            return Conv(features, features, 1, **kw)

        self.norm = GroupNorm(groups, features, eps=1e-6, **kw)
        self.proj_in = projection()
        self.transformer_blocks = nnx.List(
            [
                BasicTransformerBlock(
                    features, heads=heads, cross_attention_dim=cross_attention_dim, **kw
                )
                for _ in range(num_layers)
            ]
        )
        self.proj_out = projection()

    def __call__(self, x, streams):
        b, h, w, c = x.shape
        streams = {name: stream.at_resolution(h, w) for name, stream in streams.items()}
        hidden = self.proj_in(self.norm(x)).reshape(b, h * w, c)
        for block in self.transformer_blocks:
            hidden = block(hidden, streams)
        return x + self.proj_out(hidden.reshape(b, h, w, c))


def add_branch(unet, name: str, composition: type[Composition] = ParallelCrossAttention):
    """Add a branch on stream ``name`` to every cross-attention (``attn2``) of ``unet``, in place.

    Args:
        composition: how branches are combined; the same for the whole network.

    Raises:
        ValueError: the name is taken, the network has another composition, or no cross-attention.
    """
    blocks = _transformer_blocks(unet)
    if not blocks:
        raise ValueError(f"branch {name!r}: {type(unet).__name__} has no cross-attention blocks")
    names = branch_names(unet)
    if name == "text" or name in names:
        raise ValueError(f"there already is a cross-attention on the stream {name!r}")
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


def branch_names(unet) -> list[str]:
    """The streams that ``unet`` has branches for, sorted."""
    return sorted({n for b in _transformer_blocks(unet) for n in getattr(b.attn2, "order", ())})


def remove_branches(unet):
    """Remove every branch, which restores the base model and its structure."""
    for block in _transformer_blocks(unet):
        if isinstance(block.attn2, Composition):
            block.attn2 = _without_branches(block.attn2)


def _without_branches(layer: Composition) -> CrossAttention:
    """The base's layer with this one's projections, which are not copied."""
    kw = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}
    plain = nnx.eval_shape(lambda: CrossAttention(1, heads=1, head_dim=1, **kw))
    for name in ("heads", "to_q", "to_k", "to_v", "to_out"):
        setattr(plain, name, getattr(layer, name))
    return plain


def _transformer_blocks(unet) -> list[BasicTransformerBlock]:
    return [node for _, node in nnx.iter_graph(unet) if isinstance(node, BasicTransformerBlock)]
