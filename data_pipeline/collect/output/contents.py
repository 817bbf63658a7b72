"""What is in the sets, counted from the entries of their manifests."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from data_pipeline.collect.records import has_consent, origin_of


def contents_of(sets: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The report's part that ``purge`` writes again.

    Args:
        sets: entries of each set's manifest.
    """
    entries = [entry for found in sets.values() for entry in found]
    known = [collected(entry) for entry in entries]
    without = sum(not has_consent(k.get("consent", "")) for k in known)
    writers = [(k.get("captioner", ""), k.get("captioner_revision", "")) for k in known]
    return {
        "kept": len(entries),
        "sets": {
            name: {"people": len({entry["identity"] for entry in found}), "pictures": len(found)}
            for name, found in sets.items()
            if found
        },
        "without_consent": {
            "pictures": without,
            "share": round(without / len(entries), 4) if entries else 0.0,
        },
        "licences": counted(k.get("licence") or "not stated" for k in known),
        "sources": counted(
            origin_of(k.get("source", ""), k.get("url", ""), k.get("origin", "")) for k in known
        ),
        "class_words": counted(entry.get("class_word", "") for entry in entries),
        "captioners": counted(name for name, _ in writers),
        "captioner_revisions": counted(" ".join(writer) for writer in writers),
        "fallbacks": counted(k["fallback"] for k in known if k.get("fallback")),
    }


def collected(entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the collection wrote of a picture's origin; {} for other data."""
    found = entry.get("collected") or (entry.get("extra") or {}).get("collected")
    return found if isinstance(found, dict) else {}


def counted(values: Iterable[str]) -> dict[str, int]:
    """How often each occurs, the most frequent first."""
    return dict(sorted(Counter(values).items(), key=lambda pair: (-pair[1], pair[0])))
