"""Checks whether a checkpoint without digests (an old one, or a partial copy) can be read."""

import json
from pathlib import Path

import jax
import orbax.checkpoint as ocp

NEEDED = ("trainable", "opt_state", "config")


def find_gaps(folder: Path) -> list[str]:
    """What is missing from a checkpoint or cannot be read, one line each.

    With several processes only one looks, but Orbax reads with all of them; so then only missing
    items are found.
    """
    try:
        said = json.loads((folder / "_CHECKPOINT_METADATA").read_bytes())
        items = {*NEEDED, *(said.get("item_handlers") or ())}
    except (OSError, ValueError, AttributeError):
        return ["_CHECKPOINT_METADATA: missing or unreadable"]
    missing = [f"{name}: missing" for name in sorted(items) if not (folder / name).is_dir()]
    if missing or jax.process_count() > 1:
        return missing
    gaps = []
    for name in sorted(items):
        try:
            if (folder / name / "_METADATA").exists():
                with ocp.StandardCheckpointer() as checkpointer:
                    checkpointer.restore(folder / name)
            else:
                json.loads((folder / name / "metadata").read_bytes())
        except Exception as error:  # whatever the storage library raises for broken files
            gaps.append(f"{name}: cannot be read ({type(error).__name__})")
    return gaps
