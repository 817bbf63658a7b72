"""The largest batch that fits, found with few compilations."""

import math
from collections.abc import Callable


def largest(needs: Callable[[int], float], room: float, starts: list[int]) -> int:
    """The largest n at which ``needs(n)`` is at most ``room``, to within a sixteenth; 0: none.

    Memory grows about linearly with the batch, so each try is the point where the line through the
    last two reaches the limit. If that was wrong, as it is near the limit, where the compiler
    recomputes what does not fit, the next try halves the remaining interval.

    Args:
        needs: n to bytes; math.inf if all that is known is that it does not fit. It is called once
            per n.
        starts: the first tries, each at least 1; those already decided by others are skipped.
    """
    tries, starts = {}, list(starts)
    low, high = 0, math.inf
    wrong = False
    while high - low > max(1, low // 16):
        full = None
        if starts:
            n = starts.pop(0)
        elif wrong:
            n = int(low + high) // 2
        else:
            full = _full(tries, low, high, room)
            least = low + max(1, low // 16)  # the end of the search if it does not fit
            n = int(min(max(full, least), high - 1))
        if not low < n < high:
            continue
        tries[n] = needs(n)
        fits = tries[n] <= room
        wrong = full is not None and high != math.inf and fits != (n <= full)
        low, high = (n, high) if fits else (low, n)
    return low


def _full(tries: dict, low: int, high: float, room: float) -> int:
    """The n where memory should be full, which may lie outside the remaining interval."""
    known = sorted(n for n, size in tries.items() if math.isfinite(size))
    if high != math.inf and tries[high] == math.inf:
        return int(low + high) // 2
    if len(known) > 1:
        a, b = known[-2:] if high == math.inf else _bracket(known, low)
        slope = (tries[b] - tries[a]) / (b - a)
        return int(a + (room - tries[a]) / slope) if slope > 0 else 2 * b
    if low and high == math.inf:
        # Part of it is weights, which do not grow: this errs on the small side.
        return min(4 * low, int(low * room / tries[low]))
    return int(low + high) // 2


def _bracket(known: list[int], low: int) -> tuple[int, int]:
    """Two neighbours, the first of them the largest that fits if there is one."""
    i = min(max(sum(n <= low for n in known) - 1, 0), len(known) - 2)
    return known[i], known[i + 1]
