"""The main job: it trains, its loss falls, it resumes bit for bit, and its result paints."""

import json
import subprocess
import sys

import jax
import numpy as np
import pytest
from PIL import Image

from configs.first_light import get_config
from persongen_jax import generate, train
from persongen_jax.checkpoint import load_trained
from persongen_jax.sharding import make_mesh, replicated


@pytest.fixture(scope="module")
def config(tiny_base, sample_photos):
    config = get_config()
    config.base, config.data = str(tiny_base), str(sample_photos)
    config.loader = "memory"
    config.batch_size = 4
    config.log_every, config.checkpoint_every = 2, 3
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    """Six steps in one go."""
    workdir = tmp_path_factory.mktemp("run")
    config = config.copy_and_resolve_references()
    config.steps = 6
    train.train(config, workdir)
    return workdir


def trained(workdir):
    arrays, config = load_trained(workdir, replicated(make_mesh()))
    return jax.tree.map(np.asarray, arrays), config


def metrics(workdir):
    rows = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k != "images_per_second"} for row in rows]


def test_resumed_run_is_bit_identical(config, run, tmp_path):
    config = config.copy_and_resolve_references()
    config.steps = 3
    train.train(config, tmp_path)
    config.steps = 6
    train.train(config, tmp_path)
    whole, _ = trained(run)
    resumed, _ = trained(tmp_path)
    assert whole.keys() == resumed.keys()
    assert all(np.array_equal(whole[path], resumed[path]) for path in whole)
    # Step 3 closes a run of its own and so gets a line of its own; 2 and 6 average the same steps.
    assert metrics(tmp_path)[0] == metrics(run)[0]
    assert metrics(tmp_path)[-1]["step"] == metrics(run)[-1]["step"] == 6


def test_tf_data_trains_the_same(config, run, tmp_path):
    config = config.copy_and_resolve_references()
    config.steps, config.loader = 6, "tf_data"
    train.train(config, tmp_path)
    assert all(np.array_equal(a, b) for a, b in zip(*map(values, (run, tmp_path)), strict=True))


def values(workdir):
    arrays, _ = trained(workdir)
    return [arrays[path] for path in sorted(arrays)]


def test_the_loss_falls(config, tmp_path):
    config = config.copy_and_resolve_references()
    config.steps, config.warmup_steps, config.checkpoint_every = 60, 5, 60
    train.train(config, tmp_path)
    losses = [row["loss"] for row in metrics(tmp_path)]
    assert np.mean(losses[-10:]) < 0.95 * np.mean(losses[:3])


def test_only_what_is_trained_is_saved_with_its_config(config, run):
    arrays, saved = trained(run)
    assert all("lora" in path or path.startswith("id_encoder/") for path in arrays)
    assert not any("vision_model" in path for path in arrays)
    assert saved["base"] == config.base and saved["method"] == "photomaker"


def test_other_references_and_prompts_compile_nothing(config, tmp_path):
    """The step is one program, whatever the number of references in its batches."""
    from persongen_jax.diffusion import NoiseSchedule
    from persongen_jax.partition import make_optimizer, split_model

    base, method = train.build_model(config)
    schedule = NoiseSchedule.from_config(base.scheduler_config)
    graphdef, trainable, frozen, groups = split_model(base.model, method.groups)
    tx = make_optimizer(config, groups)
    empty_ids = base.tokenizers.encode("")

    def losses_of(model, batch, step):
        return train.example_losses(model, method, schedule, config, empty_ids, batch, step)

    step_fn = train.make_train_step(losses_of, graphdef, tx)
    opt_state = tx.init(trainable)
    batches = train.open_batches(config, base, method, 0)
    counts = set()
    for step in range(4):
        batch = next(batches)
        counts |= set(batch["id_mask"].sum(1).tolist())
        trainable, opt_state, _ = step_fn(trainable, opt_state, frozen, batch, np.int32(step))
    assert len(counts) > 1
    assert step_fn._cache_size() == 1


def run_generate(tiny_base, run, photos, out, *more):
    arguments = ["--base", str(tiny_base), "--method-weights", str(run), "--out", str(out)]
    arguments += ["--reference", str(photos / "astronaut.png"), "--steps", "4", *more]
    return generate.generate(generate.parse_arguments(arguments))


def test_generate_paints_with_what_was_trained(tiny_base, run, sample_photos, tmp_path):
    prompt = ["--prompt", "a woman img in a red hat", "--no-compilation-cache"]
    merge = ["--start-merge-step", "1"]
    (path,) = run_generate(tiny_base, run, sample_photos, tmp_path, *prompt, *merge)
    picture = Image.open(path)
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == prompt[1]
    assert json.loads(picture.text["settings"])["method_weights"] == str(run)
    # Merged only after the last step, the identity never acts: another picture.
    (late,) = run_generate(
        tiny_base, run, sample_photos, tmp_path, *prompt, "--start-merge-step", "9"
    )
    assert late != path
    assert not np.array_equal(np.asarray(picture), np.asarray(Image.open(late)))


def test_a_trained_lora_leaves_as_a_file_of_diffusers(tiny_base, run, tmp_path):
    from diffusers import StableDiffusionXLPipeline
    from safetensors.numpy import load_file

    from persongen_jax.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(tiny_base)
    pipe.load_method(run)
    pipe.save_lora(tmp_path / "pytorch_lora_weights.safetensors", "method:photomaker")
    theirs = StableDiffusionXLPipeline.from_pretrained(tiny_base)
    theirs.load_lora_weights(str(tmp_path))
    layer = theirs.unet.down_blocks[1].attentions[0].transformer_blocks[0].attn1.to_q
    arrays, _ = trained(run)
    path = "unet/down_blocks/1/attentions/0/transformer_blocks/0/attn1/to_q/lora/up"
    assert np.abs(arrays[path]).max() > 0
    (up,) = layer.lora_B.values()
    assert np.array_equal(up.weight.detach().numpy().T, arrays[path])
    assert len(load_file(tmp_path / "pytorch_lora_weights.safetensors")) == sum(
        "lora" in name for name in arrays
    )
    with pytest.raises(ValueError, match="method:photomaker"):
        pipe.save_lora(tmp_path / "x.safetensors", "other")


def test_commands_from_a_shell(tiny_base, sample_photos, tmp_path):
    """As a user calls it, with overrides; a dry run prints the counts and trains nothing."""
    command = [sys.executable, "-m", "persongen_jax.train", "--config", "configs/first_light.py"]
    command += [f"--config.base={tiny_base}", f"--config.data={sample_photos}", "--dry_run"]
    command += ["--workdir", str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lora:" in done.stdout and "frozen:" in done.stdout
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--config.base="], "--config.base=DIR"),
        (["--config.base=/nowhere"], "/nowhere"),
        (["--config.data=/nowhere"], "/nowhere"),
        (["--config.ranks=4"], "ranks"),
        (["--config.method=photo"], "photomaker"),
        (["--config.loader=fast"], "tf_data"),
    ],
)
def test_bad_settings_end_in_one_line(arguments, named, tiny_base, sample_photos, tmp_path):
    command = [sys.executable, "-m", "persongen_jax.train", "--config", "configs/first_light.py"]
    command += [f"--config.base={tiny_base}", f"--config.data={sample_photos}", *arguments]
    command += ["--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert named in done.stderr
    assert "Traceback" not in done.stderr
