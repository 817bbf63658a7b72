"""Samples of one's own prompts, and a run on another noise schedule: what it shows is what it is.

That samples change nothing of a training is in test_resume.py.
"""

import numpy as np
import pytest
from PIL import Image

from persongen_jax.diffusion.schedule import NoiseSchedule
from persongen_jax.evaluation.progress.samples import Samples
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.open import open_run, open_system
from persongen_jax.systems.sdxl_config import sdxl_defaults
from persongen_jax.train import train
from persongen_jax.training.logs.weights_and_biases import run_id
from persongen_jax.training.unused_keys import unused_keys
from tests.evaluation.tiny import with_config
from tests.helpers.training_runs import PROMPTS, changed, metrics, small_base, small_config
from tests.training.test_logs import history


@pytest.fixture
def config(tmp_path_factory, sample_photos):
    config = small_config(small_base(tmp_path_factory), sample_photos)
    config.sample_prompts, config.sample_every, config.sample_images = PROMPTS, 2, 2
    config.validation_steps, config.validation_merge_step = 2, 0
    config.steps, config.checkpoint_every = 2, 2
    return config


@pytest.mark.slow
def test_prompts_are_checked_before_the_first_step(config, tmp_path):
    system = open_system(config)
    for changes, said in (
        ({"sample_prompts": ()}, "needs prompts"),
        ({"sample_prompts": ("a photo of a {word}",)}, "img"),
        ({"sample_prompts": ("a photo of a {animal} img",)}, "braces may contain"),
    ):
        with pytest.raises(ValueError, match=said):
            Samples(with_config(system, changed(config, **changes)), tmp_path)
    # What a resumed run has yet to reach is made again.
    for name in ("step_000002", "step_000004"):
        (tmp_path / "samples" / name).mkdir(parents=True)
    samples = Samples(system, tmp_path, 2)
    assert [path.name for path in samples.folder.iterdir()] == ["step_000002"]
    assert not samples.has(2) and samples.person.crops


def test_settings_of_validations_act_on_samples():
    config = sdxl_defaults()
    config.validation_every, config.validation_steps, config.sample_seed = 0, 2, 7
    off = "\n".join(unused_keys(config, sdxl_defaults(), ["lora"]))
    assert "config.validation_steps; that needs config.validation_every above 0" in off
    assert "config.sample_seed; that needs config.sample_every above 0" in off
    config.sample_every = 5
    assert unused_keys(config, sdxl_defaults(), ["lora"]) == []


def pictures(workdir):
    paths = sorted((workdir / "samples").rglob("*.png"))
    names = [str(path.relative_to(workdir / "samples")) for path in paths]
    return dict(zip(names, (np.asarray(Image.open(path)) for path in paths), strict=True))


@pytest.mark.slow
def test_a_run_to_v_without_terminal_signal_shows_what_the_pipeline_generates(
    config, tmp_path, monkeypatch, capsys
):
    config = changed(
        config,
        **{"prediction_type": "v_prediction", "zero_snr": True, "loss_type": "huber"},
        **{"timestep_bias": "later", "dtype": "float32"},
    )
    shown = tmp_path / "shown"
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    assert train(changed(config, wandb_project="people", wandb_mode="offline"), shown)
    assert "samples, step 2" in capsys.readouterr().out
    own = pictures(shown)
    assert list(own) == [
        f"step_{step:06d}/{i}_{j}.png" for step in (0, 2) for i in (1, 2) for j in (1, 2)
    ]

    # The run's schedule is the one that a pipeline samples after loading it, and no longer after.
    run = open_run(shown)
    assert run.system.schedule.alphas_cumprod[-1] == 0
    pipe = Pipeline.from_pretrained(config.base)
    before = pipe.base.scheduler_config
    pipe.load_method(None, shown)
    wanted = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    assert pipe.base.scheduler_config == {**before, **wanted, "timestep_spacing": "trailing"}
    schedule = NoiseSchedule.from_config(pipe.base.scheduler_config)
    assert np.array_equal(schedule.alphas_cumprod, run.system.schedule.alphas_cumprod)
    samples = Samples(run.system, tmp_path)
    (images,) = samples.generate(pipe, [samples.person])
    for i, j in np.ndindex(2, 2):
        saved = own[f"step_000002/{i + 1}_{j + 1}.png"].astype(int)
        assert np.abs(images[i, j].astype(int) - saved).max() <= 2
    pipe.unload_method()
    assert pipe.base.scheduler_config == before
    named = {"samples/1: " + PROMPTS[0], "samples/2: " + PROMPTS[1]}
    name, rows = history(*(shown / "wandb").glob("offline-run-*"))
    assert name == run_id(shown)
    assert {key.removesuffix(".path") for row in rows for key in row if ".path" in key} == named
    assert [row["training/loss"] for row in rows if "training/loss" in row] == [
        row["loss"] for row in metrics(shown)
    ]
