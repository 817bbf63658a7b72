"""The maximum mean discrepancy of two sets of features (Gretton et al., JMLR 13, 2012, 2.2).

Sums of the kernel by groups of rows are made once; the distance of what is left without a group
follows from them.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ROWS = 1024  # of a kernel's table at once
Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]


def cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x·y / d + 1)³ of [n, d] and [m, d], [n, m] (Bińkowski et al., arXiv 1801.01401, 4)."""
    root = x @ y.T / x.shape[1] + 1
    return root * root * root  # many times faster than a power


class KernelSums(NamedTuple):
    """Sums of a kernel over pairs of rows, by the groups of both.

    xx, xy, yy: [g, g], all pairs. dx, dy: [g], of each row with itself. nx, ny: [g], rows.
    """

    xx: np.ndarray
    xy: np.ndarray
    yy: np.ndarray
    dx: np.ndarray
    dy: np.ndarray
    nx: np.ndarray
    ny: np.ndarray

    def without(self, group: int) -> "KernelSums":
        """The sums without the rows of a group."""
        keep = np.arange(len(self.nx)) != group
        return KernelSums(*(x[keep][:, keep] if x.ndim > 1 else x[keep] for x in self))

    def biased(self) -> float:
        """MMD² over all pairs, those of a row with itself included; NaN without rows."""
        n, m = self.nx.sum(), self.ny.sum()
        if not n or not m:
            return float("nan")
        return float(self.xx.sum() / n**2 + self.yy.sum() / m**2 - 2 * self.xy.sum() / (n * m))

    def unbiased(self) -> float:
        """MMD² without the pairs of a row with itself; NaN with fewer than two rows of either."""
        n, m = self.nx.sum(), self.ny.sum()
        if min(n, m) < 2:
            return float("nan")
        within = (self.xx.sum() - self.dx.sum()) / (n * (n - 1))
        within += (self.yy.sum() - self.dy.sum()) / (m * (m - 1))
        return float(within - 2 * self.xy.sum() / (n * m))


def kernel_sums(
    kernel: Kernel,
    x: np.ndarray,
    y: np.ndarray,
    groups: tuple[np.ndarray, np.ndarray] | None = None,
) -> KernelSums:
    """The sums over [n, d] and [m, d]; ``groups``: each row's, from 0; None for one group."""
    if groups is None:
        groups = np.zeros(len(x), int), np.zeros(len(y), int)
    count = 1 + max(int(own.max(initial=0)) for own in groups)
    ones = [np.eye(count)[own] for own in groups]  # [n, g]: 1 where a row is in a group

    def table(a, b, in_a, in_b):
        """Sums by the groups of both, and the kernel of each row with the row of its number."""
        total, same = np.zeros((count, count)), []
        for start in range(0, len(a), ROWS):
            part = slice(start, start + ROWS)
            values = kernel(a[part], b)
            total += in_a[part].T @ (values @ in_b)
            same.append(np.diagonal(values, start))
        return total, np.concatenate(same) if same else np.zeros(0)

    (xx, dx), (yy, dy) = table(x, x, ones[0], ones[0]), table(y, y, ones[1], ones[1])
    xy, _ = table(x, y, ones[0], ones[1])
    counts = (each.sum(0) for each in ones)
    return KernelSums(xx, xy, yy, dx @ ones[0], dy @ ones[1], *counts)
