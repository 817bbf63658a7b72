"""All identity methods in the miniature, compared: the same budget, several seeds.

    python -m persongen_jax.study --config configs/study_mini.py

Any key can be overridden with --config.KEY=VALUE, such as --config.seeds="(0,)" or
--config.methods="('photomaker','photomaker_bg')". The same command resumes where it stopped.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.workdir = "runs/study_mini"
    config.seeds = (0, 1)
    # The methods to compare. Each is trained by ``config_files`` with its name inserted; costs are
    # relative to the first.
    config.methods = (
        *("photomaker", "id_branch", "dual", "ip_lora"),
        *("photomaker_bg", "photomaker_bg_body", "cascade"),
    )
    config.config_files = "configs/mini/{}.py"

    # The training's keys that are set alike for all, and in further dictionaries for one method:
    # config.only.id_branch = {"lr_identity": 1e-4}. Keys: configs/base.py.
    config.overrides = ConfigDict({"steps": 400, "validation_every": 100, "checkpoint_every": 200})
    config.only = ConfigDict()

    # The final evaluation: options of persongen_jax.evaluate.
    config.evaluation = ConfigDict({"people_per_set": 10, "images_each": 2, "batch": 16})

    # Time of a step, measured in turns: rounds, and steps of each method per round. 0 rounds: no
    # measurement. The images come from ``cost_data``; "" uses the training's.
    config.cost_rounds = 5
    config.cost_steps = 4
    config.cost_data = "people:in_train?identities=16&pictures=4"
    # Full-size config files by method; their trained parameters are counted without weights.
    full_size = {name: f"configs/{name}.py" for name in config.methods}
    config.full_size_files = ConfigDict({**full_size, "photomaker": "configs/base.py"})
    return config
