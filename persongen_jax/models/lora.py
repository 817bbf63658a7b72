"""Low-rank adapters on linear and convolution layers (LoRA, arXiv 2106.09685).

One layer can hold several adapters: their ranks are concatenated in one pair of factors, and
``scale`` holds, for every rank column, weight * alpha / rank of the adapter it belongs to. Any
number of adapters thus costs two small products, and changing their weights does not recompile.

Adapters that are not a product of two narrow factors (LoHa, LoKr, DoRA from files, ...) are one
``LayerChange`` per layer, the sum of what all adapters of these kinds add to its weights. DoRA that
is trained is a ``DoRA``, the layer's only adapter.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from persongen_jax.models.ops import Padding, conv2d
from persongen_jax.models.platform import target_platform
from persongen_jax.models.quantised import QuantisedArray

Array = jax.Array | np.ndarray
Product = Callable[[jax.Array, jax.Array], jax.Array]


def _with_change(own, change, dtype):
    """A layer's kernel or bias plus what adapters add to it (or None), in ``dtype``."""
    if change is None:
        return own.astype(dtype)
    # Summed in float32: the change may be far below the precision of the weights.
    return (own.astype(jnp.float32) + change.astype(jnp.float32)).astype(dtype)


class Adaptable(nnx.Module):
    """A layer that can carry adapters.

    ``lora`` is None or a :class:`LoRA` whose output is added; ``change`` None or a
    :class:`LayerChange` of the kernel and the bias.
    """

    dtype: DTypeLike
    kernel: nnx.Param[jax.Array]
    bias: nnx.Param[jax.Array] | None
    lora: "LoRA | None"
    change: "LayerChange | None"

    def multiply(
        self, product: Product, x: jax.Array, low_rank: Callable | None = None
    ) -> jax.Array:
        """``product(x, kernel)`` plus the bias, in the compute dtype, adapters included.

        ``low_rank``: maps ``x`` to the output of ``lora``; None without one.
        """

        def changed_product(x, kernel, change):
            return product(x, _with_change(kernel, change, self.dtype))

        kernel, added = self.kernel.get_value(), self.change
        if isinstance(kernel, QuantisedArray):
            # The backward pass reads the 8 bits again, instead of a copy at full size.
            changed_product = jax.checkpoint(changed_product)
        of_kernel, of_bias = _value(added and added.kernel), _value(added and added.bias)
        y = changed_product(x, kernel, of_kernel)
        if low_rank and isinstance(self.lora, DoRA):
            whole = _with_change(kernel, of_kernel, self.dtype)
            y, low_rank = (y + low_rank(x)) * self.lora.factor(whole), None
        if self.bias is not None:
            y = y + _with_change(self.bias.get_value(), of_bias, self.dtype)
        elif of_bias is not None:
            y = y + of_bias.astype(self.dtype)  # only the adapter's
        return y if low_rank is None else y + low_rank(x)


def _value(variable):
    return None if variable is None else variable.get_value()


class LoRA(nnx.Module):
    """``lora(x) = ((x @ down) * scale) @ up``.

    Args:
        down: [in, r], or [kh, kw, in, r] on a convolution.
        up: [r, out].
        scale: [r], weight * alpha / rank of each column.
        dtype: compute dtype.
    """

    def __init__(self, down: jax.Array, up: jax.Array, scale: jax.Array, *, dtype: DTypeLike):
        self.dtype = dtype
        self.down = nnx.Param(down)
        self.up = nnx.Param(up)
        # Not a Param: it is set, never trained.
        self.scale = nnx.Variable(scale)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self._up(_product(x.astype(self.dtype), self.down[...].astype(self.dtype)))

    def conv(self, x: jax.Array, strides: int, padding: Padding) -> jax.Array:
        """The same on [b, h, w, in]: ``down`` is a convolution, ``up`` acts on each pixel."""
        return self._up(
            conv2d(x.astype(self.dtype), self.down[...].astype(self.dtype), strides, padding)
        )

    def _up(self, h):
        h = h * self.scale[...].astype(self.dtype)
        return _product(h, self.up[...].astype(self.dtype))


class DoRA(LoRA):
    """LoRA whose layer also learns the length of each output's weights (arXiv 2402.09353, eq. 5).

    The layer computes ``(x @ kernel + lora(x)) * magnitude / norms + bias``, where ``norms`` [out]
    are those of kernel and adapter together; no gradient passes through them (section 4.3).

    Attributes:
        magnitude: [out] float32; at first the norms of the kernel, so that it changes nothing.
    """

    magnitude: nnx.Param[jax.Array]

    def factor(self, kernel: jax.Array) -> jax.Array:
        """``magnitude / norms`` [out], for the layer's kernel [..., in, out]."""
        down = self.down[...].astype(jnp.float32) * self.scale[...]
        whole = kernel.astype(jnp.float32) + down @ self.up[...].astype(jnp.float32)
        norms = jax.lax.stop_gradient(column_norms(whole))
        return (self.magnitude[...] / norms).astype(self.dtype)


def column_norms(kernel: jax.Array) -> jax.Array:
    """[out] float32: the Euclidean norm of each output's weights, kernel [..., in, out]."""
    square = jnp.square(kernel.astype(jnp.float32))
    return jnp.sqrt(square.sum(tuple(range(kernel.ndim - 1))))


class LayerChange(nnx.Module):
    """The change of a layer's own kernel and bias; each has the shape of its target, or is None.

    Variables, not parameters: they are set, never trained, and belong to no weight file.
    """

    def __init__(self, kernel: jax.Array | None, bias: jax.Array | None):
        self.kernel = None if kernel is None else nnx.Variable(kernel)
        self.bias = None if bias is None else nnx.Variable(bias)


def quantised_as(layer: Adaptable) -> str:
    """How the layer's kernel is held in 8 bits, a name of quantised.KINDS; "" if it is not."""
    kernel: Any = layer.kernel.get_value()
    return kernel.kind if isinstance(kernel, QuantisedArray) else ""


def _product(x, factor):
    """``x @ factor``."""
    return _product_on_cpu(x, factor) if target_platform() == "cpu" else x @ factor


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
    layer: Adaptable,
    rank: int,
    *,
    alpha: float | None = None,
    rngs: nnx.Rngs,
    param_dtype: DTypeLike = jnp.float32,
    kind: "type[LoRA]" = LoRA,
) -> LoRA:
    """A new adapter: ``down`` gaussian with std 1 / rank, ``up`` zero, so it adds nothing yet.

    ``kind``: LoRA or DoRA.
    """
    kernel_shape = layer.kernel.shape
    down = jax.random.normal(rngs.params(), (*kernel_shape[:-1], rank), jnp.float32) / rank
    up = jnp.zeros((rank, kernel_shape[-1]), param_dtype)
    scale = jnp.full((rank,), (rank if alpha is None else alpha) / rank, jnp.float32)
    lora = kind(down.astype(param_dtype), up, scale, dtype=layer.dtype)
    if isinstance(lora, DoRA):
        lora.magnitude = nnx.Param(column_norms(layer.kernel[...]))
    return lora


def add_lora(
    module: nnx.Module,
    pattern: re.Pattern,
    rank: int,
    *,
    alpha: float | None,
    rngs: nnx.Rngs,
    ranks: Iterable[tuple[re.Pattern, int, float]] = (),
    dora: bool = False,
) -> None:
    """Add a new adapter to every layer of ``module`` whose whole path ("a/b/0/to_q") matches.

    Args:
        ranks: rows (pattern, rank, alpha) of exceptions, of which the first that matches a layer's
            path holds; rank 0: no adapter there.
        dora: with a trained magnitude, see DoRA.

    Raises:
        ValueError: no layer matches, an exception is about none of them, or the rank is not
            positive.
    """
    if rank < 1:
        raise ValueError(f"rank={rank}: a LoRA needs a rank of at least 1")
    ranks, kind = list(ranks), DoRA if dora else LoRA
    named = [("/".join(map(str, path)), layer) for path, layer in _adaptable(module)]
    found = {path: layer for path, layer in named if pattern.fullmatch(path)}
    if not found:
        raise ValueError(f"no layer matches {pattern.pattern!r}; no layer would get a LoRA")
    for exception, *_ in ranks:
        if not any(map(exception.fullmatch, found)):
            raise ValueError(
                f"no layer with a LoRA matches {exception.pattern!r}; paths look like "
                f"{next(iter(found))}"
            )
    for path, layer in found.items():
        own = next(((r, a) for row, r, a in ranks if row.fullmatch(path)), (rank, alpha))
        if own[0]:
            layer.lora = new_lora(layer, own[0], alpha=own[1], rngs=rngs, kind=kind)


def add_adapter(layer: Adaptable, down: Array, up: Array, scale: float) -> None:
    """Add one more adapter of any rank to ``layer``.

    Args:
        down: [in, r] or [kh, kw, in, r]; up: [r, out]; scale: weight * alpha / rank.
    """
    column_scale = jnp.full((up.shape[0],), scale, jnp.float32)
    if isinstance(layer.lora, DoRA):
        raise ValueError("a layer with DoRA takes no further LoRA; apply DoRA as a change of it")
    if layer.lora is not None:
        down = jnp.concatenate([layer.lora.down[...], down], -1)
        up = jnp.concatenate([layer.lora.up[...], up], 0)
        column_scale = jnp.concatenate([layer.lora.scale[...], column_scale])
    layer.lora = LoRA(jnp.asarray(down), jnp.asarray(up), column_scale, dtype=layer.dtype)


def add_change(layer: Adaptable, kernel: Array | None = None, bias: Array | None = None) -> None:
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


def copy_lora(layer: Adaptable, to: Adaptable) -> None:
    """Give ``to``, a layer of the same shape, a copy of the adapter on ``layer``."""
    lora = layer.lora
    if lora is None or isinstance(lora, DoRA):
        raise ValueError(f"the layer has {'DoRA' if lora else 'no LoRA'}, which is not copied")
    parts = (jnp.array(part[...], copy=True) for part in (lora.down, lora.up, lora.scale))
    to.lora = LoRA(*parts, dtype=to.dtype)


def _adaptable(module: nnx.Module) -> list[tuple[tuple, Adaptable]]:
    """Every layer of ``module`` that can have an adapter, after its path."""
    return [(path, node) for path, node in nnx.iter_graph(module) if isinstance(node, Adaptable)]


def lora_layers(module: nnx.Module) -> dict[tuple, Adaptable]:
    """Every layer of ``module`` that has an adapter, by path."""
    return {path: layer for path, layer in _adaptable(module) if layer.lora is not None}


def loras(module: nnx.Module) -> dict[tuple, LoRA]:
    """Every LoRA of ``module``, by the path of its layer."""
    return {path: layer.lora for path, layer in _adaptable(module) if layer.lora is not None}


def changed_layers(module: nnx.Module) -> dict[tuple, Adaptable]:
    """Every layer of ``module`` that has a ``LayerChange``, by path."""
    return {path: layer for path, layer in _adaptable(module) if layer.change is not None}


def check_mergeable(module: nnx.Module) -> None:
    """ValueError if an adapter adds a bias to a layer without one, or changes one in 8 bits."""
    for path, layer in _adaptable(module):
        if quantised_as(layer) and (layer.lora is not None or layer.change is not None):
            name = ".".join(map(str, path))
            raise ValueError(
                f"{name}: its kernel is held in {quantised_as(layer)}, which has no room for an "
                "adapter's small changes: keep it loaded, or open the base without quantize"
            )
        if layer.bias is None and layer.change is not None and layer.change.bias is not None:
            name = ".".join(map(str, path))
            raise ValueError(
                f"{name}: an adapter adds a bias to a layer without one: it cannot be merged into "
                "the weights; keep it loaded"
            )


def merge_adapters(module: nnx.Module) -> None:
    """Merge every adapter into its kernel and remove it; call ``check_mergeable`` first."""
    for _, layer in _adaptable(module):
        lora, change = layer.lora, layer.change
        if change is not None:
            for own, added in ((layer.kernel, change.kernel), (layer.bias, change.bias)):
                if own is not None and added is not None:
                    both = own[...].astype(jnp.float32) + added[...].astype(jnp.float32)
                    own[...] = both.astype(own[...].dtype)
        if lora is not None:
            kernel = layer.kernel[...]
            down = lora.down[...].astype(jnp.float32) * lora.scale[...]
            delta = jnp.matmul(down, lora.up[...].astype(jnp.float32), precision="highest")
            whole = kernel.astype(jnp.float32) + delta
            if isinstance(lora, DoRA):
                whole = whole * (lora.magnitude[...] / column_norms(whole))
            layer.kernel[...] = whole.astype(kernel.dtype)
    remove_adapters(module)


def remove_adapters(module: nnx.Module) -> None:
    """Remove every adapter."""
    for _, layer in _adaptable(module):
        layer.lora = layer.change = nnx.data(None)
