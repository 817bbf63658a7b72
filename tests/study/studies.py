"""The config of a study of two methods, and those of its trainings."""

from configs import study_mini

METHODS, SEEDS, STEPS = ("photomaker", "photomaker_bg"), (0, 1), 2

TRAINING = """
from configs.first_light import get_config as first_light


def get_config():
    config = first_light()
    config.method = {method!r}
    config.update({settings!r})
    return config
"""

SETTINGS = {
    "base": "weights/sdxl",
    "data": "people:in_train?identities=4&pictures=3",
    "loader": "memory",
    "rank": 2,
    "batch_size": 2,
    "checkpoint_every": 1,
    "validation_every": 1,
    "validate_in_train": "people:in_train?identities=2&pictures=2",
    "validate_out_of_train": "people:out_of_train?identities=2&pictures=2",
    "validation_people": 2,
    "validation_images": 1,
    "validation_steps": 2,
    "validation_merge_step": 0,
}


def make_study(folder):
    """The study's config, whose trainings are those of ``write_trainings``."""
    study = study_mini.get_config()
    study.workdir = str(folder / "study")
    study.methods, study.seeds = METHODS, SEEDS
    study.config_files = str(folder / "{}.py")
    study.overrides.update({"steps": STEPS, "validation_every": 1, "checkpoint_every": 1})
    return study


def write_trainings(folder, **changes):
    for method in METHODS:
        text = TRAINING.format(method=method, settings={**SETTINGS, **changes})
        (folder / f"{method}.py").write_text(text)
