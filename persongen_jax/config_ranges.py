"""Checks the ranges of a training config's numbers before anything is opened."""

import math

from ml_collections import ConfigDict

AT_LEAST_0 = (
    *("warmup_steps", "schedule_steps", "steps", "clip_norm", "keep_checkpoints", "max_bad_steps"),
    *("validation_every", "start_from_step", "lora_alpha", "early_stopping", "sample_every"),
    *("text_alpha", "text_rank", "num_class_images", "prior_loss_weight", "keep_captions"),
    *("embedding_steps", "embedding_norm", "class_guidance"),
    *("pulid_few_steps", "pulid_sem", "pulid_layout", "pulid_id"),
)
AT_LEAST_1 = (
    *("batch_size", "grad_accum", "fsdp", "cpu_devices", "size", "log_every"),
    *("sample_images", "facecdm_reduced", "bolid_reduced", "losses_downscale"),
    *("num_vectors", "face_point_radius", "pulid_crop"),
)


def check_ranges(config: ConfigDict) -> None:
    """ValueError that names the first key whose number makes no sense.

    Checks only keys that the config has; a system checks additional rules itself.
    """
    for key, value in config.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if wanted := _range_error(key, value):
            raise ValueError(f"config.{key}={value}: {wanted}")


def _range_error(key: str, value) -> str:
    """What is wrong with the number, or ""."""
    if not math.isfinite(value):
        return "give a finite number"
    if key.endswith("_prob") and not 0 <= value <= 1:
        return "a probability is 0 to 1"
    if key == "loss_mask_outside" and not 0 <= value <= 1:
        return "give 0 (nothing counts there) to 1 (as much as inside)"
    if key == "ema_decay" and not 0 <= value < 1:
        return "give 0 (no average) or a number below 1, such as 0.9999"
    rate = key.startswith("lr_")
    if (rate or key in AT_LEAST_0) and value < 0:
        return "give 0 or more"
    if key in AT_LEAST_1 and value < 1:
        return "give 1 or more"
    return ""


__all__ = ["check_ranges"]
