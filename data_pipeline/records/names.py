"""People's names: one spelling for one person, and names that look alike."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable


def plain_name(name: str) -> str:
    """``name`` in one Unicode form (NFC) and without outer or double blanks."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def look_alikes(names: Iterable[str]) -> list[str]:
    """A line for names that differ in case, blanks or punctuation only: they count as several."""
    alike = defaultdict(list)
    for name in dict.fromkeys(names):
        alike[re.sub(r"[\W_]+", "", name.casefold()) or name].append(name)
    return [
        f"{' and '.join(map(repr, same))} look alike and count as {len(same)} people"
        for same in alike.values()
        if len(same) > 1
    ]
