"""The largest batch that fits, found with few compilations."""

import math


def largest(needs, room: float, starts: list[int]) -> int:
    """The largest n at which ``needs(n)`` is at most ``room``, to within a sixteenth; 0: none.

    Memory grows with the batch about in a line, so that each try is where the line through the
    last two says that it is full.

    Args:
        needs: n to bytes; math.inf where all that is known is that it does not fit. Is called
            once for each n.
        starts: the first tries, each at least 1; what others of them have settled is left out.
    """
    tries, starts = {}, list(starts)
    low, high = 0, math.inf
    while high - low > max(1, low // 16):
        n = starts.pop(0) if starts else _next(tries, low, high, room)
        if not low < n < high:
            continue
        tries[n] = needs(n)
        if tries[n] <= room:
            low = n
        else:
            high = n
    return low


def _next(tries: dict, low: int, high: float, room: float) -> int:
    known = sorted(n for n, size in tries.items() if math.isfinite(size))
    least = low + max(1, low // 16)  # the end of the search if it does not fit
    if high != math.inf and tries[high] == math.inf:
        guess = (low + high) // 2
    elif len(known) > 1:
        a, b = known[-2:] if high == math.inf else _around(known, low)
        slope = (tries[b] - tries[a]) / (b - a)
        guess = int(a + (room - tries[a]) / slope) if slope > 0 else 2 * b
    elif low and high == math.inf:
        # Part of it are weights, which do not grow: this errs to the small side.
        guess = min(4 * low, int(low * room / tries[low]))
    else:
        guess = (low + high) // 2
    return int(min(max(guess, least), high - 1))


def _around(known: list[int], low: int) -> tuple[int, int]:
    """Two neighbours, the first of them the largest that fits if there is one."""
    i = min(max(sum(n <= low for n in known) - 1, 0), len(known) - 2)
    return known[i], known[i + 1]
