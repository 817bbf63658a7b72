"""Attention as one function that picks the kernel: the only place that knows about backends."""

import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from persongen_jax.models.platform import attention_kernels_allowed, target_platform
from persongen_jax.parallel.sharding import BATCH

# Scores of one example above this are never held whole; queries then go in chunks of a quarter.
MAX_SCORE_BYTES = 768 * 2**20
# From here on a TPU's flash kernel is picked: its scores never leave the chip's fast memory. At
# 1024 tokens, forward and backward, XLA's own takes 0.76 ms by the compiler's cycles (v5p, 4
# pictures, 10 heads of 64); around the kernel it sees 0.47 ms and nothing of the kernel itself,
# whose products alone take 0.11 ms at the chip's peak.
MIN_TPU_FLASH_TOKENS = 2048


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    mask: jax.Array | None = None,
    *,
    is_causal: bool = False,
    scale: float | None = None,
) -> jax.Array:
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


def pick_kernel(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    dtype: DTypeLike,
    has_mask: bool,
    is_causal: bool,
) -> str:
    """Name of the kernel for q [b, n, heads, d], k [b, m, heads, d]: see :func:`attention`."""
    platform = target_platform()
    (_, n, heads, d), m = q_shape, k_shape[1]
    plain = "xla" if heads * n * m * 4 <= MAX_SCORE_BYTES else "xla_chunked"
    if not attention_kernels_allowed():
        return plain
    if platform in ("gpu", "cuda") and dtype in (jnp.bfloat16, jnp.float16):
        # Its backward pass with a mask needs even lengths; keys are padded (even_keys).
        if d % 8 == 0 and d <= 128 and not (has_mask and n % 2):
            return "cudnn"
    if platform == "tpu" and not has_mask and not is_causal:
        if n == m and n >= MIN_TPU_FLASH_TOKENS and n % 512 == 0:
            return "tpu_flash"
    return plain


def even_keys(
    k: jax.Array, v: jax.Array, mask: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """k, v [b, m, heads, d] and mask [b, heads, n, m], with one masked key added if m is odd."""
    odd = k.shape[1] % 2
    k, v = (jnp.pad(x, ((0, 0), (0, odd), (0, 0), (0, 0))) for x in (k, v))
    return k, v, jnp.pad(mask, ((0, 0), (0, 0), (0, 0), (0, odd)))


def _scores_shape(q, k):
    return (q.shape[0], q.shape[2], q.shape[1], k.shape[1])


def _xla_attention(q, k, v, mask, scale):
    by_platform = {"tpu": _tpu_attention, "cpu": _cpu_attention}
    return by_platform.get(target_platform(), _formula)(q, k, v, mask, scale)


def _formula(q, k, v, mask, scale):
    probabilities = jax.nn.softmax(_scores(q, k, mask, scale), axis=-1).astype(v.dtype)
    return jnp.einsum("bhnm,bmhd->bnhd", probabilities, v)


def _scores(q, k, mask, scale):
    """[b, heads, n, m], float32."""
    q = q * jnp.asarray(scale, q.dtype)
    scores = jnp.einsum("bnhd,bmhd->bhnm", q, k, preferred_element_type=jnp.float32)
    return scores if mask is None else jnp.where(mask, scores, jnp.finfo(jnp.float32).min)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _cpu_attention(q, k, v, mask, scale):
    """The formula; where no gradient is taken, with the heads moved next to the batch first.

    It also divides by the sum of the exponentials after the product with v. 64 prompts of 77
    tokens, 4 heads of 32, on two cores: 1.3 ms instead of 11.5; 1024 tokens, 10 heads of 64: 11.6
    instead of 16.4. With a gradient, the formula itself is the fastest.
    """
    q, k, v = (jnp.swapaxes(x, 1, 2) for x in (q * jnp.asarray(scale, q.dtype), k, v))
    scores = jnp.einsum("bhnd,bhmd->bhnm", q, k, preferred_element_type=jnp.float32)
    if mask is not None:
        scores = jnp.where(mask, scores, jnp.finfo(jnp.float32).min)
    weights = jnp.exp(scores - scores.max(-1, keepdims=True))
    total = weights.sum(-1, keepdims=True)
    weights = weights.astype(v.dtype)
    out = jnp.einsum("bhnm,bhmd->bhnd", weights, v, preferred_element_type=jnp.float32) / total
    return jnp.swapaxes(out.astype(v.dtype), 1, 2)


def _cpu_forward(q, k, v, mask, scale):
    return jax.vjp(lambda q, k, v: _formula(q, k, v, mask, scale), q, k, v)


_cpu_attention.defvjp(_cpu_forward, lambda scale, pull, gradient: (*pull(gradient), None))


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
