"""How published tables were measured: what stays fixed when several weight files are compared."""

from typing import Any

# How many sets of people a benchmark has; BoLID's paper names none, and any will do.
NUMBER_OF_SETS = {"thesis": 3, "photomaker": 1}

# Keys of a config (systems/sdxl_config.py) by benchmark.
BENCHMARKS: dict[str, dict[str, Any]] = {
    # The thesis, section 4: one reference, three sets of people, four prompts.
    "thesis": {
        "validation_prompts": "thesis",
        "validation_people": 10,
        "validation_references": 1,
        "validation_images": 5,
        "validation_size": 512,
        "validation_steps": 50,
        "validation_guidance": 5.0,
        "validation_merge_step": 10,
        "validation_seed": 42,
        "metrics": ("clip_t", "face_sim", "detection_rate"),
    },
    # PhotoMaker, arXiv 2312.04461, section 4: 25 people, four pictures of each as input, 40
    # prompts, four images, 50 steps of DDIM. From which step the identity acts is not said: its
    # demonstration's default, a fifth. The negative prompt is not said either: ours.
    "photomaker": {
        "validation_prompts": "photomaker",
        "validation_people": 25,
        "validation_references": 4,
        "validation_images": 4,
        "validation_size": 1024,
        "validation_steps": 50,
        "validation_guidance": 5.0,
        "validation_merge_step": 10,
        "validation_scheduler": "ddim",
        "validation_seed": 42,
        "metrics": (
            *("clip_t", "clip_i", "dino_i", "face_sim", "detection_rate"),
            *("face_diversity", "fid"),
        ),
    },
    # BoLID, section 4: FID, Pose_acc and CLIP's score, 30 steps, guidance 7.5. It does not say of
    # whom and from which prompts: the thesis' people and prompts, and identity from the first step.
    "bolid": {
        "validation_prompts": "thesis",
        "validation_people": 10,
        "validation_references": 1,
        "validation_images": 5,
        "validation_size": 512,
        "validation_steps": 30,
        "validation_guidance": 7.5,
        "validation_merge_step": -1,
        "validation_seed": 42,
        "metrics": ("clip_t", "fid", "pose_error", "joints_found", "face_sim", "detection_rate"),
    },
}
