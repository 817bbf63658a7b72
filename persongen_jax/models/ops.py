"""Functions without weights: convolution, activations, nearest upsampling. Arrays are NHWC."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax

from persongen_jax.models.platform import target_platform
from persongen_jax.models.winograd import conv_by_winograd, use_winograd_on_cpu

# Up to this batch size, TPUs by default cut the image into strips that are padded, masked and
# copied around every layer; from 8 on the batch itself fills the tiles.
TPU_SMALL_BATCH = 4
TPU_LANES = 128
TPU_MAX_CELLS = 128 * 128  # the UNet's first level at 1024x1024

Padding = Sequence[tuple[int, int]]  # (top, bottom), (left, right)
Activation = Callable[[jax.Array], jax.Array]


def conv2d(
    x: jax.Array, kernel: jax.Array, strides: int, padding: Padding, *, infer: bool = False
) -> jax.Array:
    """[b, h, w, in] * HWIO kernel; a 1x1 kernel is a matrix product, which is always cheaper.

    ``infer``: no gradient is taken.
    """
    if kernel.shape[:2] == (1, 1) and strides == 1:
        return x @ kernel[0, 0]
    if strides == 1 and kernel.shape[:2] == (3, 3) and tuple(map(tuple, padding)) == ((1, 1),) * 2:
        if target_platform() == "tpu" and use_rows_on_tpu(x.shape, kernel.shape):
            return _conv_by_rows(x, kernel)
        if target_platform() == "cpu" and use_taps_on_cpu(x.shape, kernel.shape):
            return _conv_by_taps(x, kernel)
        exact = infer and x.dtype == kernel.dtype == jnp.float32  # tiles round worse in halves
        if exact and target_platform() == "cpu" and use_winograd_on_cpu(x.shape, kernel.shape):
            return conv_by_winograd(x, kernel)
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def use_rows_on_tpu(x_shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
    """Whether :func:`_conv_by_rows` is faster on a TPU: few images, many channels.

    Not for the VAE's sizes: it holds the image three times.
    """
    thin = per_device(x_shape[0]) <= TPU_SMALL_BATCH and min(kernel_shape[2:]) >= TPU_LANES
    return thin and x_shape[1] * x_shape[2] <= TPU_MAX_CELLS


def use_taps_on_cpu(x_shape: Sequence[int], kernel_shape: Sequence[int]) -> bool:
    """Whether :func:`_conv_by_taps` is faster on a CPU: fewer pixels than channels."""
    return math.prod(x_shape[:3]) <= min(kernel_shape[2:])


def per_device(batch: int) -> int:
    """The number of batch rows per device, by the mesh of jax.set_mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    return batch if mesh.empty or mesh.manual_axes else max(1, batch // mesh.size)


def _conv_by_rows(x, kernel):
    """A 3x3 convolution as one along the height with three times the channels.

    The three columns that a pixel sees are concatenated as channels, and the width becomes the
    "batch" of the convolution, which a TPU lays out next to the channels, as the image already is,
    so that nothing is copied. By the compiler's cycles for v5p, 4 images of 16x16x1280, forward and
    backward: 0.18 ms instead of 0.30.
    """
    b, h, w, c = x.shape
    columns = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0)))
    columns = jnp.concatenate([columns[:, :, j : j + w] for j in range(3)], axis=-1)
    rows = kernel.reshape(3, 1, 3 * c, -1)
    # The images of the batch are a second spatial dimension, where the kernel has size 1.
    space = lax.ConvDimensionNumbers((2, 3, 1, 0), (3, 2, 0, 1), (2, 3, 1, 0))
    return lax.conv_general_dilated(
        columns, rows, (1, 1), ((1, 1), (0, 0)), dimension_numbers=space
    )


def _conv_by_taps(x, kernel):
    """A convolution with one pixel of padding, as one product over the pixels that each pixel sees.

    Its gradient reads the kernel in place, whereas that of a convolution first writes a transposed
    copy, which for few pixels takes as long as the computation. 4 images of 8x8x512 on two cores:
    4.4 ms instead of 7.9 backward, 4.1 instead of 5.5 forward.
    """
    size, _, c, out = kernel.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    b, h, w = x.shape[0], x.shape[1] - size + 1, x.shape[2] - size + 1
    seen = [x[:, i : i + h, j : j + w] for i in range(size) for j in range(size)]
    seen = jnp.concatenate(seen, axis=-1).reshape(b * h * w, size**2 * c)
    return (seen @ kernel.reshape(-1, out)).reshape(b, h, w, out)


def conv2d_upsampled(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """A 3x3 convolution of ``x`` [b, h, w, in] at twice its size: [b, 2h, 2w, out].

    On a CPU as four 2x2 convolutions of ``x`` itself, one for each pixel of a square of four: two
    of the three rows that an upsampled pixel sees are equal, so their kernels add up. 4/9 of the
    products. 32 images of 16x16x64 on two cores: 4.0 ms instead of 10.9 forward, 4.4 instead of
    10.8 backward, 7.1 instead of 16.5 for the kernel's gradient.
    """
    if target_platform() != "cpu":
        return conv2d(upsample_nearest(x), kernel, 1, ((1, 1), (1, 1)))
    b, h, w, c = x.shape
    out = kernel.shape[-1]
    four = _kernels_on_pixels(_kernels_on_pixels(kernel, 0), 1)  # [2, 2, in, out, 2, 2]
    four = jnp.moveaxis(four, 3, -1).reshape(2, 2, c, 4 * out)
    y = _conv_by_taps(x, four).reshape(b, h + 1, w + 1, 2, 2, out)
    rows = [[y[:, i : i + h, j : j + w, i, j] for j in range(2)] for i in range(2)]
    y = jnp.stack([jnp.stack(row, axis=3) for row in rows], axis=2)
    return y.reshape(b, 2 * h, 2 * w, out)


def _kernels_on_pixels(kernel, axis):
    """Sum a side of 3 along ``axis`` to 2, for the first and the second half of a pixel (last)."""
    before, middle, after = jnp.moveaxis(kernel, axis, 0)
    halves = (before, middle + after), (before + middle, after)
    return jnp.stack([jnp.stack(half, axis) for half in halves], axis=-1)


def materialize(x: jax.Array) -> jax.Array:
    """``x``; on a single CPU device, it and its gradient are written to memory here.

    XLA's CPU compiler recomputes a sum along residual connections for every product that reads it,
    from the first layer on: time quadratic in the number of layers, 2.6 times as long at ten. It
    cannot see through a branch. On other platforms, and outside of a compiled program, this does
    nothing.
    """
    if not isinstance(x, jax.core.Tracer):
        return x
    mesh = jax.sharding.get_abstract_mesh()
    return _materialize(x) if target_platform() == "cpu" and (mesh.empty or mesh.size == 1) else x


def _branch(x):
    """``x`` through a branch that never changes it: NaN stays NaN."""
    first = x.reshape(-1)[0]
    return lax.cond(jnp.isnan(first), lambda x: jnp.full_like(x, jnp.nan), lambda x: x, x)


@jax.custom_vjp
def _materialize(x):
    return _branch(x)


_materialize.defvjp(lambda x: (_branch(x), None), lambda _, gradient: (_branch(gradient),))


def gelu(x: jax.Array) -> jax.Array:
    """``x * Phi(x)``, exact; with erf in float32, which is far cheaper than jax.nn.gelu's erfc."""
    y = x.astype(jnp.float32)
    return (0.5 * y * (1 + lax.erf(y * math.sqrt(0.5)))).astype(x.dtype)


@jax.custom_vjp
def geglu(hidden: jax.Array, gate: jax.Array) -> jax.Array:
    """``hidden * gelu(gate)``, exact.

    Its gradient is written out, so that compilers fuse it with the products before and after it: a
    TPU otherwise passes over the arrays once more, a seventh of the feed-forward's time.
    """
    return hidden * gelu(gate)


def _geglu_backward(kept, gradient):
    hidden, gate = kept
    x = gate.astype(jnp.float32)
    phi = 0.5 * (1 + lax.erf(x * math.sqrt(0.5)))
    slope = phi + x * jnp.exp(-0.5 * x * x) * (1 / math.sqrt(2 * math.pi))
    return (
        gradient * (x * phi).astype(gate.dtype),
        gradient * (hidden * slope.astype(gate.dtype)),
    )


geglu.defvjp(lambda hidden, gate: (geglu(hidden, gate), (hidden, gate)), _geglu_backward)


ACTIVATIONS: dict[str, Activation] = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": gelu,
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "relu": jax.nn.relu,
}


def activation(name: str) -> Activation:
    """The function for a config's ``act_fn`` or ``hidden_act``; ValueError if unknown."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def upsample_nearest(x: jax.Array, factor: int = 2) -> jax.Array:
    """[b, h, w, c] to [b, h * factor, w * factor, c] by repeating each pixel."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)
