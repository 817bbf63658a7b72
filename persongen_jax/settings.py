"""Which keys of a config may change when a run resumes, and which would make it another run."""

import os
from collections.abc import Sequence
from pathlib import Path

from ml_collections import ConfigDict

from persongen_jax.config import VERSION

# Keys that change nothing of what is computed, but for the order in which numbers are added.
FREE = (
    *("log_every", "keep_checkpoints", "checkpoint_every", "max_bad_steps"),
    *("metrics_csv", "tensorboard", "wandb_project", "wandb_mode"),
    *("loader", "cache", "cache_kinds", "remat", "grad_accum", "fsdp", "shard_frozen"),
    *("offload_encoders", "cpu_devices", "judges_are_inputs", "download", "sample_*"),
)
# Keys that say where something is; it may have moved, under the same name.
PLACES = (
    *(
        "base",
        "base_config",
        "unet",
        "vae",
        "text_encoders",
        "id_encoder",
        "face_encoder",
        "data",
        "class_data",
        "csv",
        "data_dir",
        "start_from",
        "work",
    ),
    *("clip", "dino", "dinov2", "inception", "lpips", "cmmd_clip", "face_net", "face_detector"),
    *("pose_net", "classifier", "validation_prompts"),
    *("loss_pose_net", "loss_clip", "loss_face_net"),
)
# Keys that a run may change when it resumes, but that matter in a comparison: how long it trains,
# and how it is validated.
ON_THE_WAY = (
    *("steps", "clip", "dino", "dinov2", "inception", "fid_variant", "lpips", "cmmd_clip"),
    *("face_net", "face_detector", "pose_net", "classifier"),
    *("validat*", "metrics", "best_metric", "best_set", "early_stopping"),
)


class OldRun(ValueError):
    """A run of an earlier version, whose config has other names."""


def check_version(saved: dict, where: str | os.PathLike) -> None:
    """OldRun, with the command that helps, unless the saved config has today's names.

    Args:
        where: the run's working directory, for the message.
    """
    version = saved.get("version", 1)
    if version < VERSION:
        raise OldRun(
            f"{where}: was trained by an earlier version, whose configs use other names; rewrite "
            f"them once with: python -m persongen_jax.convert upgrade {where}"
        )
    if version > VERSION:
        raise OldRun(f"{where}: was trained by a later version of persongen_jax; update this one")


def config_differences(before: dict, now: dict, free: Sequence[str] = FREE) -> list[str]:
    """A line per key that differs and is not free: key: was -> is.

    Args:
        before: the config that a run was made with, complete (systems.open.complete_config).
        now: the config that it is to resume with.
        free: names of keys, or prefixes followed by a *.
    """
    lines = []
    for key in sorted(before.keys() | now.keys()):
        was, is_ = before.get(key), now.get(key)
        if key in PLACES and Path(str(was)).name == Path(str(is_)).name:
            continue
        if was != is_ and not any(_names(pattern, key) for pattern in free):
            lines.append(f"{key}: {was!r} -> {is_!r}")
    return lines


def check_resumable(workdir: str | os.PathLike, before: dict, now: dict) -> None:
    """ValueError with the differences if a run cannot resume with the config ``now``."""
    lines = config_differences(before, now, FREE + ON_THE_WAY)
    if lines:
        raise ValueError(
            f"{workdir} was trained with another config (was -> now): {'; '.join(lines)}. Use "
            "the old values; or give another --workdir, and to start from the weights that "
            f"were trained here, --config.start_from={workdir}"
        )


def pin_schedule_steps(config: ConfigDict, before: dict | None) -> ConfigDict:
    """The config with ``schedule_steps`` fixed if the learning rate decays.

    A run that resumes with more or fewer steps keeps its original schedule.

    Args:
        before: the config in the run's own checkpoint; None when the run begins.
    """
    if config.lr_schedule == "constant" or config.schedule_steps:
        return config
    config = config.copy_and_resolve_references()
    if before is None:
        config.schedule_steps = config.steps
    else:
        config.schedule_steps = before["schedule_steps"] or before["steps"]
    return config


def pin_references(config: ConfigDict, before: dict | None) -> ConfigDict:
    """The config with ``references`` as when the run began; see systems/sdxl_config.py."""
    if before is None or "references" not in config:
        return config
    config = config.copy_and_resolve_references()
    config.references = before.get("references", config.references)
    return config


def check_steps(config: ConfigDict, workdir: str | os.PathLike, start: int) -> list[str]:
    """Lines to log when a run resumes from step ``start``; ValueError if it cannot.

    Returns:
        A list of lines for the log.
    """
    end, steps = config.schedule_steps, config.steps
    if start > steps:
        raise ValueError(
            f"{workdir}: step {start} is beyond config.steps={steps}; give --config.steps={start} "
            "or more, or another --workdir"
        )
    if config.lr_schedule == "constant" or end == steps:
        return []
    if end <= start < steps:
        raise ValueError(
            f"{workdir}: the learning rate (config.lr_schedule={config.lr_schedule}) has reached 0 "
            f"at step {end}, where this run's schedule ends (config.schedule_steps), so more "
            f"steps, to {steps}, would change nothing; give another --workdir with "
            f"--config.start_from={workdir} to continue from these weights with a new schedule"
        )
    line = f"lr_schedule={config.lr_schedule} ends at step {end} (config.schedule_steps)"
    if start:
        line += ", as at the start of this run"
    after = f", and the steps from there to {steps} change nothing" if end < steps else ""
    return [line + after]


def _names(pattern: str, key: str) -> bool:
    return key.startswith(pattern[:-1]) if pattern.endswith("*") else key == pattern
