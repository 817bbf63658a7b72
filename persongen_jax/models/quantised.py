"""Frozen kernels held in 8 bits: a code per weight, and one scale per output channel.

LLM.int8() (Dettmers et al., arXiv 2208.07339, section 2) scales each channel by its largest
magnitude; QLoRA (arXiv 2305.14314, section 3) trains adapters on top of kernels that are held like
this and multiplied out layer by layer. Only storage is in 8 bits: products are in the layer's
dtype.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike, DTypeLike

# Name -> (dtype of the codes, their largest number).
KINDS: dict[str, tuple[Any, float]] = {
    "int8": (jnp.int8, 127.0),
    "fp8": (jnp.float8_e4m3fn, 448.0),
}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class QuantisedArray:
    """Takes a kernel's place as a parameter's value; ``astype`` multiplies it out.

    Attributes:
        codes: [..., out], int8 or float8_e4m3fn; the weights are ``codes * scale``.
        scale: float32 [1, ..., out].
        dtype: the name of the dtype that the kernel was stored in.
    """

    codes: jax.Array
    scale: jax.Array
    dtype: str = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return self.codes.shape

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def kind(self) -> str:
        """Its name in ``KINDS``."""
        return next(name for name, (dtype, _) in KINDS.items() if self.codes.dtype == dtype)

    def astype(self, dtype: DTypeLike) -> jax.Array:
        """The weights, rounded once: they are multiplied out in float32."""
        return (self.codes.astype(jnp.float32) * self.scale).astype(dtype)

    def __jax_array__(self) -> jax.Array:
        return self.astype(self.dtype)

    def __getitem__(self, key: Any) -> jax.Array:
        return self.__jax_array__()[key]

    def __array__(self, *_, **__):
        # Otherwise NumPy would make an array of one Python object of it.
        raise TypeError("a kernel in 8 bits is no NumPy array; take astype() of it first")


def check_kind(kind: str, where: str) -> None:
    """ValueError unless ``kind`` is "" or one of ``KINDS``; ``where`` names the setting."""
    if kind and kind not in KINDS:
        raise ValueError(f"{where}={kind!r}: use {', '.join(map(repr, KINDS))}, or '' for neither")


@functools.partial(jax.jit, static_argnames="kind")
def quantise(kernel: ArrayLike, kind: str) -> QuantisedArray:
    """A kernel [..., out] with one scale per output channel, to the nearest code."""
    kernel = jnp.asarray(kernel)
    codes, largest = KINDS[kind]
    weights = kernel.astype(jnp.float32)
    of_channel = jnp.abs(weights).max(tuple(range(kernel.ndim - 1)), keepdims=True)
    scale = jnp.where(of_channel > 0, of_channel / largest, 1.0)
    scaled = weights / scale
    if kind == "int8":
        scaled = jnp.round(scaled)
    return QuantisedArray(scaled.astype(codes), scale, kernel.dtype.name)
