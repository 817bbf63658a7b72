"""Config keys that have no effect in a run because of the values of other keys."""

from collections.abc import Collection, Sequence

from ml_collections import ConfigDict

CLASS_IMAGES = ("num_class_images", "class_guidance")
HUBER = ("huber_schedule", "huber_c")
BIAS = tuple(f"timestep_bias_{name}" for name in ("multiplier", "portion", "begin", "end"))

SAMPLES = ("sample_prompts", "sample_images", "sample_seed")
# Keys of validations by which samples are generated too.
READ_BY_SAMPLES = (
    *("validate_in_train", "validate_out_of_train", "validate_out_of_domain"),
    *("validation_references", "validation_steps", "validation_size", "validation_guidance"),
    *("validation_guidance_form", "validation_merge_step", "validation_negative_prompt"),
    *("validation_scheduler", "validation_batch"),
)

TEXT_RANK = "config.text_rank above 0"


def unused_keys(
    config: ConfigDict, defaults: ConfigDict, groups: Collection[str], unread: Sequence[str] = ()
) -> list[str]:
    """One line per reason why keys that were set are not read by this run.

    Args:
        config: of the run.
        defaults: of its system: what differs was given.
        groups: learning-rate groups that are trained.
        unread: keys that the method does not read.
    """

    def given(key):
        return key in config and key in defaults and config[key] != defaults[key]

    # The keys, whether they have an effect, and what would give them one.
    rows = [
        (("ema_warmup",), config.ema_decay > 0, "config.ema_decay above 0"),
        (("schedule_steps",), config.lr_schedule != "constant", "a decaying config.lr_schedule"),
        (("cache_kinds",), bool(config.get("cache")), "config.cache"),
        (("shard_frozen",), config.fsdp > 1, "config.fsdp above 1"),
        (("start_from_step",), bool(config.get("start_from")), "config.start_from"),
        (("wandb_mode",), bool(config.get("wandb_project")), "config.wandb_project"),
        (("best_set",), bool(config.get("best_metric")), "config.best_metric"),
        (SAMPLES, config.get("sample_every", 0) > 0, "config.sample_every above 0"),
        (HUBER, config.get("loss_type", "l2") != "l2", "config.loss_type='huber' or 'smooth_l1'"),
        (BIAS, bool(config.get("timestep_bias")), "config.timestep_bias"),
        (("prior_loss_weight",), bool(config.get("class_data")), "config.class_data"),
        (CLASS_IMAGES, bool(config.get("class_prompt")), "config.class_prompt"),
        (("keep_captions",), bool(config.get("shuffle_captions")), "config.shuffle_captions"),
        (("shuffle_captions",), not config.get("caption_templates"), "captions of their own"),
        (("text_alpha", "text_targets", "text_ranks"), bool(config.get("text_rank")), TEXT_RANK),
        (("loss_mask_outside",), bool(config.get("loss_mask")), "config.loss_mask"),
        (unread, False, f"another method than {config.get('method', '')}"),
    ]
    if config.validation_every <= 0:
        validation = sorted(k for k in config.keys() if k.startswith(("validate_", "validation_")))
        validation.remove("validation_every")
        if config.get("sample_every", 0) > 0:
            validation = [key for key in validation if key not in READ_BY_SAMPLES]
        judges = ("clip", "dino", "dinov2", "inception", "fid_variant", "lpips", "cmmd_clip")
        validation += [key for key in (*judges, "face_detector", "metrics") if key in config]
        rows += [(validation, False, "config.validation_every above 0")]
    lines = []
    for keys, acts, needed in rows:
        idle = [key for key in keys if given(key) and (keys is unread or key not in unread)]
        if idle and not acts:
            lines.append(f"without effect: config.{', '.join(idle)}; that needs {needed}")
    rates = sorted(key for key in config.keys() if key.startswith("lr_") and key != "lr_schedule")
    idle = [key for key in rates if given(key) and key.removeprefix("lr_") not in groups]
    if idle:
        trained = ", ".join(sorted(groups))
        lines.append(f"without effect: config.{', '.join(idle)}; this run trains {trained}")
    return lines
