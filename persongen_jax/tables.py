"""Tables in Markdown."""

from collections.abc import Iterable, Sequence

from tabulate import tabulate


def markdown(head: Sequence[str], rows: Iterable[Sequence]) -> str:
    """Cells as they are given: not padded, so that one changed figure is one changed line."""
    return tabulate(rows, head, "github", numalign=None, stralign=None, disable_numparse=True)
