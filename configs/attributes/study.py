"""Does conditioning on attributes lower the Fréchet distance? The seed's claim, over five seeds.

    python -m persongen_jax.study --config configs/attributes/study.py
    python -m benchmarks.attributes frechet --study runs/attributes/study

Both generate without guidance, which trades similarity to the data for attributes. Train the judge
first: configs/attributes/classifier.py:drawn_faces. 250 steps took 74 minutes on two cores that
were also busy with other work, and are too few to learn the attributes; for a full-length study set
--config.overrides.steps=2000.
"""

from configs.study_mini import get_config as study


def get_config():
    config = study()
    config.workdir = "runs/attributes/study"
    config.seeds = (0, 1, 2, 3, 4)
    config.methods = ("drawn_faces", "drawn_faces_unconditional")
    config.config_files = "configs/attributes/{}.py"
    config.overrides = {"steps": 250, "validation_every": 0, "checkpoint_every": 125}
    config.evaluation = {"images_each": 500, "guidance": 0.0}
    config.cost_rounds, config.cost_data, config.full_size_files = 0, "", {}
    return config
