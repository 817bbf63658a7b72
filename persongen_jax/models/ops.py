"""Functions without weights: convolution, activations, nearest upsampling. Arrays are NHWC."""

import jax
import jax.numpy as jnp
from jax import lax


def conv2d(x, kernel, strides, padding):
    """[b, h, w, in] * HWIO kernel; a 1x1 kernel is a matrix product, the cheaper op everywhere."""
    if kernel.shape[:2] == (1, 1) and strides == 1:
        return x @ kernel[0, 0]
    return lax.conv_general_dilated(
        x, kernel, (strides, strides), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "mish": lambda x: x * jnp.tanh(jax.nn.softplus(x)),
    "relu": jax.nn.relu,
}


def activation(name: str):
    """The function behind a config's ``act_fn`` or ``hidden_act``; ValueError if unknown."""
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not supported; known: {sorted(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def upsample_nearest(x, factor=2):
    """[b, h, w, c] to [b, h * factor, w * factor, c] by repeating each pixel."""
    b, h, w, c = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (b, h, factor, w, factor, c))
    return x.reshape(b, h * factor, w * factor, c)
