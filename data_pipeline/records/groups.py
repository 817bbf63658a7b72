"""The groups that a person belongs to, such as of age or skin: {"age": "old", "skin": "dark"}."""

from collections.abc import Iterable, Mapping
from typing import Any

Group = dict[str, str]
"""The person's group by what is grouped."""

ALONE = "group"  # what is grouped, where nothing says it


def read_group(value: Any) -> Group | None:
    """JSON's value of a ``group``: {"age": "old"}, or one text for what has no name; None of None.

    Whole numbers, such as those of a scale of skin tones, become texts.

    Raises:
        ValueError: something else.
    """
    if value is None:
        return None
    found = value if isinstance(value, Mapping) else {ALONE: value}
    right = all(type(item) is int or (isinstance(item, str) and item) for item in found.values())
    if not found or not right or not all(found):
        raise ValueError(f'group is {value!r}; a text or {{"age": "old", …}} is needed')
    return {str(name): str(item) for name, item in found.items()}


def join_groups(groups: Iterable[Group | None], person: str) -> Group:
    """What several sources say of one person; {} if nothing does.

    Raises:
        ValueError: two of them contradict each other.
    """
    found: Group = {}
    for group in groups:
        for name, value in (group or {}).items():
            if found.setdefault(name, value) != value:
                raise ValueError(
                    f"{person} is in two groups of {name}, {found[name]!r} and {value!r}: give one"
                )
    return found
