"""Low-rank adapters on linear and convolution layers (LoRA, arXiv 2106.09685).

One layer can hold several adapters: their ranks are concatenated in one pair of factors, and
``scale`` holds, for every rank column, weight * alpha / rank of the adapter it belongs to. Any
number of adapters thus costs two small products, and changing their weights does not recompile.

Adapters that are not a product of two narrow factors (LoHa, LoKr, DoRA, ...) are one
``LayerChange`` per layer, the sum of what all adapters of these kinds add to its weights.
"""

import re

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.ops import conv2d
from persongen_jax.models.platform import target


class LoRA(nnx.Module):
    """``lora(x) = ((x @ down) * scale) @ up``.

    Args:
        down: [in, r], or [kh, kw, in, r] on a convolution.
        up: [r, out].
        scale: [r], weight * alpha / rank of each column.
        dtype: compute dtype.
    """

    def __init__(self, down, up, scale, *, dtype):
        self.dtype = dtype
        self.down = nnx.Param(down)
        self.up = nnx.Param(up)
        # Not a Param: it is set, never trained.
        self.scale = nnx.Variable(scale)

    def __call__(self, x):
        return self._up(_product(x.astype(self.dtype), self.down[...].astype(self.dtype)))

    def conv(self, x, strides, padding):
        """The same on [b, h, w, in]: ``down`` is a convolution, ``up`` acts on each pixel."""
        return self._up(
            conv2d(x.astype(self.dtype), self.down[...].astype(self.dtype), strides, padding)
        )

    def _up(self, h):
        h = h * self.scale[...].astype(self.dtype)
        return _product(h, self.up[...].astype(self.dtype))


class LayerChange(nnx.Module):
    """The change of a layer's own kernel and bias; each has the shape of its target, or is None.

    Variables, not parameters: they are set, never trained, and belong to no weight file.
    """

    def __init__(self, kernel, bias):
        self.kernel = None if kernel is None else nnx.Variable(kernel)
        self.bias = None if bias is None else nnx.Variable(bias)


def _product(x, factor):
    """``x @ factor``."""
    return _product_on_cpu(x, factor) if target() == "cpu" else x @ factor


@jax.custom_vjp
def _product_on_cpu(x, factor):
    """``x @ factor``, with a gradient that transposes the narrow one of the two arrays it reads.

    JAX's own transposes the wide one for ``down``, a copy that costs a CPU twice the product. On a
    TPU this form makes copies instead, a sixth of a transformer layer's cycles.
    """
    return x @ factor


def _product_backward(kept, gradient):
    x, factor = kept
    of_x = gradient @ factor.T
    x, gradient = (a.reshape(-1, a.shape[-1]) for a in (x, gradient))
    if x.shape[1] > gradient.shape[1]:
        # Without the barrier the compiler would turn one transposition into the other.
        return of_x, jax.lax.optimization_barrier(gradient.T @ x).T
    return of_x, x.T @ gradient


_product_on_cpu.defvjp(lambda x, factor: (x @ factor, (x, factor)), _product_backward)


def new_lora(
    layer, rank: int, *, alpha: float | None = None, rngs: nnx.Rngs, param_dtype=jnp.float32
):
    """A new adapter: ``down`` gaussian with std 1 / rank, ``up`` zero, so it adds nothing yet."""
    kernel_shape = layer.kernel.shape
    down = jax.random.normal(rngs.params(), (*kernel_shape[:-1], rank), jnp.float32) / rank
    up = jnp.zeros((rank, kernel_shape[-1]), param_dtype)
    scale = jnp.full((rank,), (rank if alpha is None else alpha) / rank, jnp.float32)
    return LoRA(down.astype(param_dtype), up, scale, dtype=layer.dtype)


def add_lora(module, pattern: re.Pattern, rank: int, *, alpha: float | None, rngs: nnx.Rngs):
    """Add a new adapter to every layer of ``module`` whose whole path ("a/b/0/to_q") matches.

    Raises:
        ValueError: no layer matches, or the rank is not positive.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: a LoRA needs a rank of at least 1")
    found = [
        layer
        for path, layer in nnx.iter_graph(module)
        if hasattr(layer, "lora") and pattern.fullmatch("/".join(map(str, path)))
    ]
    if not found:
        raise ValueError(f"no layer matches {pattern.pattern!r}; no layer would get a LoRA")
    for layer in found:
        layer.lora = new_lora(layer, rank, alpha=alpha, rngs=rngs)


def add_adapter(layer, down, up, scale: float):
    """Add one more adapter of any rank to ``layer``.

    Args:
        down: [in, r] or [kh, kw, in, r]; up: [r, out]; scale: weight * alpha / rank.
    """
    column_scale = jnp.full((up.shape[0],), scale, jnp.float32)
    if layer.lora is not None:
        down = jnp.concatenate([layer.lora.down[...], down], -1)
        up = jnp.concatenate([layer.lora.up[...], up], 0)
        column_scale = jnp.concatenate([layer.lora.scale[...], column_scale])
    layer.lora = LoRA(jnp.asarray(down), jnp.asarray(up), column_scale, dtype=layer.dtype)


def add_change(layer, kernel=None, bias=None):
    """Add to ``layer``'s kernel and bias, on top of other changes; float32, None for no change.

    It is stored in the kernel's dtype, to which the weights themselves are rounded as well.
    """
    there = layer.change
    kernels = [kernel, None if there is None else there.kernel]
    biases = [bias, None if there is None else there.bias]
    dtype = layer.kernel[...].dtype
    layer.change = LayerChange(_sum(kernels, dtype), _sum(biases, dtype))


def _sum(parts, dtype):
    parts = [part[...] for part in parts if part is not None]
    return jnp.asarray(sum(parts), dtype) if parts else None


def copy_lora(layer, to):
    """Give ``to``, a layer of the same shape, a copy of the adapter on ``layer``."""
    lora = layer.lora
    parts = (jnp.array(part[...], copy=True) for part in (lora.down, lora.up, lora.scale))
    to.lora = LoRA(*parts, dtype=to.dtype)


def lora_layers(module) -> dict[tuple, nnx.Module]:
    """Every layer of ``module`` that has an adapter, by path."""
    return {
        path: node
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Module) and isinstance(getattr(node, "lora", None), LoRA)
    }


def changed_layers(module) -> dict[tuple, nnx.Module]:
    """Every layer of ``module`` that has a ``LayerChange``, by path."""
    return {
        path: node
        for path, node in nnx.iter_graph(module)
        if isinstance(node, nnx.Module) and isinstance(getattr(node, "change", None), LayerChange)
    }


def check_mergeable(module):
    """ValueError if an adapter adds a bias to a layer without one."""
    for path, layer in changed_layers(module).items():
        if layer.change.bias is not None and layer.bias is None:
            name = ".".join(map(str, path))
            raise ValueError(
                f"{name}: an adapter adds a bias to a layer without one: it cannot be merged into "
                "the weights; keep it loaded"
            )


def merge_adapters(module):
    """Merge every adapter into its kernel and remove it; call ``check_mergeable`` first."""
    for layer in changed_layers(module).values():
        for own, change in ((layer.kernel, layer.change.kernel), (layer.bias, layer.change.bias)):
            if change is not None:
                both = own[...].astype(jnp.float32) + change[...].astype(jnp.float32)
                own[...] = both.astype(own[...].dtype)
        layer.change = nnx.data(None)
    for layer in lora_layers(module).values():
        lora, kernel = layer.lora, layer.kernel[...]
        down = lora.down[...].astype(jnp.float32) * lora.scale[...]
        delta = jnp.matmul(down, lora.up[...].astype(jnp.float32), precision="highest")
        layer.kernel[...] = (kernel.astype(jnp.float32) + delta).astype(kernel.dtype)
        layer.lora = nnx.data(None)


def remove_adapters(module):
    """Remove every adapter."""
    for layer in changed_layers(module).values():
        layer.change = nnx.data(None)
    for layer in lora_layers(module).values():
        layer.lora = nnx.data(None)
