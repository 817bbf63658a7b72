"""Which keys of a config may change when a run goes on, and which would make it another run."""

import json
from pathlib import Path

# Keys that change nothing of what is computed, but for the order in which numbers are added.
FREE = (
    *("log_every", "keep_checkpoints", "checkpoint_every", "tensorboard", "max_bad_steps"),
    *("loader", "cache", "cache_kinds", "remat", "grad_accum", "fsdp", "shard_frozen"),
    "offload_encoders",
)
# Keys that say where something lies; it may have moved, under the same name.
PLACES = (
    *("base", "id_encoder", "data", "start_from"),
    *("clip", "face_net", "face_detector", "validation_prompts"),
)
# Keys that a run may change on its way, and that make a difference in a comparison: how far it
# goes, and how it is validated.
ON_THE_WAY = ("steps", "clip", "face_net", "face_detector", "validat*")


def differences(before: dict, now: dict, free=FREE) -> list[str]:
    """A line for every key that differs and is not free: key: was -> is.

    Args:
        before: the config that a run was made with; keys that did not exist then count as today's
            defaults.
        now: the config that it is to go on with.
        free: names of keys, or their beginnings with a * behind.
    """
    from configs.base import get_config

    before = {**json.loads(get_config().to_json()), **before}
    lines = []
    for key in sorted(before.keys() | now.keys()):
        was, is_ = before.get(key), now.get(key)
        if key in PLACES and Path(str(was)).name == Path(str(is_)).name:
            continue
        if was != is_ and not any(_names(pattern, key) for pattern in free):
            lines.append(f"{key}: {was!r} -> {is_!r}")
    return lines


def check_same_run(workdir, before: dict, now: dict):
    """ValueError, with the differences, if a run cannot go on with the config ``now``."""
    lines = differences(before, now, FREE + ON_THE_WAY)
    if lines:
        raise ValueError(
            f"{workdir} was trained with another config (was -> now): {'; '.join(lines)}. Go on "
            "with the old values; or give another --workdir, and to begin with the weights that "
            f"were trained here, --config.start_from={workdir}"
        )


def _names(pattern: str, key: str) -> bool:
    return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern
