"""The kinds of change to one layer: LoRA, LoHa, LoKr, full differences, DoRA and IA3.

All arrays are in PyTorch's layouts: a linear weight [out, in], a convolution's [out, in, kh, kw].
docs/formats.md has the formulas. A plain LoRA is applied as two narrow products; everything else is
computed once, as a change of the weight and of the bias (``Change.of_layer``).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

EPS = float(np.finfo(np.float32).eps)  # keeps DoRA's norm above zero


@dataclass(frozen=True)
class LoraWeights:
    """One layer's LoRA.

    Attributes:
        down: [rank, in], or [rank, in, kh, kw] on a convolution.
        up: [out, rank], or [out, rank, 1, 1].
        alpha: None if the file does not say, which means alpha = rank.
    """

    name = "LoRA"
    down: np.ndarray
    up: np.ndarray
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        return 1.0 if self.alpha is None else self.alpha / self.rank

    @property
    def sizes(self) -> tuple[int, int]:
        """(out, in * kh * kw) of the weight that it belongs to."""
        return self.up.shape[0], int(np.prod(self.down.shape[1:]))

    def product(self) -> np.ndarray:
        """scale * up @ down, of shape ``sizes``."""
        up, down = _wide(self.up), _wide(self.down)
        return self.scale * (up.reshape(up.shape[:2]) @ down.reshape(self.rank, -1))


@dataclass(frozen=True)
class LoHa:
    """scale * (w1_a @ w1_b) * (w2_a @ w2_b), element by element (arXiv 2108.06098).

    Attributes:
        w1_a, w2_a: [out, rank]; with cores [rank, out].
        w1_b, w2_b: [rank, in * kh * kw]; with cores [rank, in].
        t1, t2: None, or Tucker cores [rank, rank, kh, kw].
    """

    name = "LoHa"
    w1_a: np.ndarray
    w1_b: np.ndarray
    w2_a: np.ndarray
    w2_b: np.ndarray
    t1: np.ndarray | None = None
    t2: np.ndarray | None = None
    scale: float = 1.0

    @property
    def sizes(self) -> tuple[int, int]:
        return _sizes(self.w1_a.shape, self.w1_b.shape, None if self.t1 is None else self.t1.shape)

    def product(self) -> np.ndarray:
        first = _rebuild(self.w1_a, self.w1_b, self.t1).reshape(self.sizes)
        return self.scale * first * _rebuild(self.w2_a, self.w2_b, self.t2).reshape(self.sizes)


@dataclass(frozen=True)
class LoKr:
    """scale * kron(w1, w2), each whole or a product (arXiv 2309.14859).

    Attributes:
        w1: (whole,), or (a, b) for a @ b.
        w2: the same, on a convolution [.., .., kh, kw]; or (a, b, t) with a Tucker core.
    """

    name = "LoKr"
    w1: tuple[np.ndarray, ...]
    w2: tuple[np.ndarray, ...]
    scale: float = 1.0

    @property
    def sizes(self) -> tuple[int, int]:
        (a, b), (c, d) = (_sizes(*(x.shape for x in parts)) for parts in (self.w1, self.w2))
        return a * c, b * d

    def product(self) -> np.ndarray:
        first, second = (_rebuild(*parts) for parts in (self.w1, self.w2))
        return self.scale * np.kron(_flat(first), _flat(second))


@dataclass(frozen=True)
class Difference:
    """A whole change of the weight, [out, in(, kh, kw)]."""

    name = "a full difference"
    weight: np.ndarray

    @property
    def sizes(self) -> tuple[int, int]:
        return self.weight.shape[0], int(np.prod(self.weight.shape[1:]))

    def product(self) -> np.ndarray:
        return _flat(_wide(self.weight))


@dataclass(frozen=True)
class Change:
    """The whole effect of a file on one layer, if it is more than a LoRA.

    Attributes:
        products: the changes added to the weight.
        bias: [out], added to the bias; None: nothing.
        magnitude: DoRA's, [out] or [1, in]: the norms of the rows (the columns) of the weight after
            everything is added; None: no DoRA.
        gain: IA3's factors minus 1, [out] or [1, in]; None: none.
        gain_of_bias: whether IA3's factors also scale the bias.
    """

    products: tuple = ()
    bias: np.ndarray | None = None
    magnitude: np.ndarray | None = None
    gain: np.ndarray | None = None
    gain_of_bias: bool = False

    @property
    def name(self) -> str:
        parts = [each.name for each in self.products]
        parts += ["DoRA"] * (self.magnitude is not None) + ["IA3"] * (self.gain is not None)
        return " with ".join(parts + ["a change of the bias"] * (self.bias is not None))

    @property
    def reads_layer(self) -> bool:
        """Whether its effect depends on the layer's own weights."""
        return self.magnitude is not None or self.gain is not None

    def of_layer(self, shape: tuple[int, ...], weight: Any = None, bias: Any = None) -> tuple:
        """The change of a layer at strength 1: (to the weight, to the bias), None for no change.

        Args:
            shape: of the weight.
            weight: the layer's own, numpy or JAX, float32 or wider; needed if ``reads_layer``.
            bias: likewise.
        """
        total, of_bias = None, None
        for each in self.products:
            part = each.product().reshape(shape)
            total = part if total is None else total + part
        if self.magnitude is not None:
            whole = weight + (0 if total is None else total)
            factors = _along(self.magnitude, len(shape))
            axes = tuple(i for i, n in enumerate(factors.shape) if n == 1)
            norms = (whole * whole).sum(axes, keepdims=True) ** 0.5 + EPS
            total = whole * (factors / norms) - weight
        if self.gain is not None:
            scaled = weight * _along(self.gain, len(shape))
            total = scaled if total is None else total + scaled
        if self.bias is not None:
            of_bias = _wide(self.bias).reshape(-1)
        if self.gain_of_bias and bias is not None:
            scaled = bias * _wide(self.gain).reshape(-1)
            of_bias = scaled if of_bias is None else of_bias + scaled
        return total, of_bias


def _wide(array) -> np.ndarray:
    """At least float32: files hold half precision, in which sums would round."""
    return array if array.dtype == np.float64 else array.astype(np.float32)


def _flat(array) -> np.ndarray:
    return array.reshape(array.shape[0], -1)


def _along(factors, dims: int) -> np.ndarray:
    """[out] or [1, in] (further 1s may follow) as [out, 1, ...] or [1, in, 1, ...]."""
    factors = _wide(factors)
    if factors.ndim > 1 and factors.shape[0] == 1 and factors.shape[1] > 1:
        return factors.reshape(1, -1, *[1] * (dims - 2))
    return factors.reshape(-1, *[1] * (dims - 1))


def _rebuild(a, b=None, core=None) -> np.ndarray:
    """a; a @ b; or sum_ij core[i, j, ...] a[i, out] b[j, in], [out, in, ...]."""
    if b is None:
        return _wide(a)
    if core is None:
        return _wide(a) @ _flat(_wide(b))
    return np.einsum("ij...,io,jn->on...", _wide(core), _wide(a), _wide(b), optimize=True)


def _sizes(a, b=None, core=None) -> tuple[int, int]:
    """(out, everything else) of ``_rebuild``'s result for arrays of these shapes."""
    if b is None:
        return a[0], int(np.prod(a[1:]))
    if core is None:
        return a[0], int(np.prod(b[1:]))
    return a[1], b[1] * int(np.prod(core[2:]))


def fold_core(down: np.ndarray, middle: np.ndarray) -> np.ndarray:
    """The down half of a LoRA, [rank, in, kh, kw], that is split in two (``lora_mid``).

    Args:
        down: [rank, in(, 1, 1)]. middle: [rank, rank, kh, kw].
    """
    return np.einsum("ijhw,jn->inhw", _wide(middle), _flat(_wide(down)), optimize=True)


__all__ = ["Change", "Difference", "LoHa", "LoKr", "LoraWeights", "fold_core"]
