"""The main job: it trains, its loss falls, it writes logs, and its result generates images."""

import csv
import json
import struct
import subprocess
import sys
import weakref

import jax
import numpy as np
import pytest
from PIL import Image

from persongen_jax import train
from persongen_jax.generate import __main__ as generate
from persongen_jax.parallel.sharding import make_mesh, put_batch, replicated
from persongen_jax.systems.assembly import assemble
from persongen_jax.systems.open import open_system
from persongen_jax.training.partition import leaf_paths
from persongen_jax.training.trained import load_trained
from tests.helpers.training_runs import (
    PROMPTS,
    STEPS,
    TIMES,
    metrics,
    small_base,
    small_config,
    whole_run,
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small_base(tmp_path_factory)


@pytest.fixture
def config(base, sample_photos):
    return small_config(base, sample_photos)


@pytest.fixture(scope="module")
def run(tmp_path_factory, sample_photos):
    return whole_run(tmp_path_factory, sample_photos)


def trained(workdir):
    arrays, config = load_trained(workdir, replicated(make_mesh()))
    return jax.tree.map(np.asarray, arrays), config


def test_the_loss_falls(run):
    losses = [row["loss"] for row in metrics(run)]
    assert np.mean(losses[-4:]) < 0.95 * np.mean(losses[:2])


def test_every_line_of_the_log_is_complete(run):
    for line in (run / "metrics.jsonl").read_text().splitlines():
        row = json.loads(line)
        names = ["step", "loss", "grad_norm", "face_box_fallbacks", "skipped", *TIMES]
        assert list(row) == names
        assert row["images_per_second"] > 0 and 0 <= row["data_wait"] <= 1 and 0 < row["mfu"] < 1.5


def events(folder):
    """What TensorBoard reads: length, its checksum, the event, its checksum."""
    from tensorboard.compat.proto.event_pb2 import Event

    (path,) = folder.glob("events.out.tfevents.*")
    data, place = path.read_bytes(), 0
    while place < len(data):
        (length,) = struct.unpack_from("<Q", data, place)
        yield Event.FromString(data[place + 12 : place + 12 + length])
        place += 16 + length


def test_tensorboard_shows_metrics_and_contact_sheets(run):
    pytest.importorskip("tensorboard")
    values = [(e.step, value) for e in events(run / "tensorboard") for value in e.summary.value]
    losses = [(step, v.simple_value) for step, v in values if v.tag == "training/loss"]
    assert np.allclose(losses, [(row["step"], row["loss"]) for row in metrics(run)])
    images = [(step, v.tag, v.image) for step, v in values if v.HasField("image")]
    assert [step for step, tag, _ in images if tag == "validation/in_train"] == [0, 25, STEPS]
    for number, prompt in enumerate(PROMPTS, 1):
        tag = f"samples/{number}: {prompt}"
        assert [step for step, own, _ in images if own == tag] == [0, 20, STEPS]
    assert len(images) == 9
    assert all(i.width > 0 and i.encoded_image_string[1:4] == b"PNG" for *_, i in images)


def test_samples_are_of_every_prompt_and_change_as_it_learns(run):
    paths = [path.relative_to(run / "samples") for path in (run / "samples").rglob("*.png")]
    places = [(i, j) for i in (1, 2) for j in (1, 2)]
    names = [f"step_{step:06d}/{i}_{j}.png" for step in (0, 20, STEPS) for i, j in places]
    assert sorted(map(str, paths)) == names
    pixels = [Image.open(run / "samples" / name).tobytes() for name in names]
    assert len(set(pixels)) == len(names)


def test_the_table_has_the_log_s_lines(run):
    with open(run / "metrics.csv", newline="") as file:
        table = [[float(cell) for cell in row.values()] for row in csv.DictReader(file)]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert table == [list(json.loads(line).values()) for line in lines]


def test_validation_at_the_beginning_on_the_way_and_at_the_end(run):
    lines = (run / "validation" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, 25, STEPS]
    assert len(list((run / "validation").glob("step_*_in_train.png"))) == 3


def test_the_average_is_what_is_used(run):
    """The average of only what is trained, with its config."""
    import orbax.checkpoint as ocp

    arrays, saved = trained(run)
    folder = run / "checkpoints" / str(STEPS)
    average, last = (ocp.StandardCheckpointer().restore(folder / n) for n in ("ema", "trainable"))
    assert arrays.keys() == average.keys() == last.keys()
    assert all(np.array_equal(arrays[path], average[path]) for path in arrays)
    assert any(not np.array_equal(arrays[path], last[path]) for path in arrays)
    assert all("lora" in path or path.startswith("id_encoder/") for path in arrays)
    assert not any("vision_model" in path for path in arrays)
    assert saved["method"] == "photomaker" and saved["ema_decay"] == 0.5


def test_tf_data_gives_the_same_batches(config):
    system = open_system(config)
    config.loader = "memory"
    ours = next(system.examples(3))
    config.loader = "tf_data"
    theirs = next(system.examples(3))
    assert jax.tree.all(jax.tree.map(np.array_equal, ours, theirs))


def test_other_references_prompts_and_masks_compile_nothing(config):
    """The step is one program, whatever the number of references in its batches."""
    mesh = make_mesh()
    system = open_system(config, mesh)
    parts = assemble(system, mesh)
    state, batches = parts.state, system.examples(0)
    references, prompts, boxes = set(), set(), set()
    with jax.set_mesh(mesh):
        for step in range(4):
            batch = next(batches)
            references |= set(batch["id_mask"].sum(1).tolist())
            prompts |= {ids.tobytes() for ids in batch["input_ids"]["text"]}
            boxes |= {box.tobytes() for box in batch["face_box"]}
            state, _ = parts.step(state, parts.frozen, put_batch(mesh, batch), np.int32(step))
    assert min(map(len, (references, prompts, boxes))) > 1
    assert parts.step._cache_size() == 1


def test_a_run_starts_from_photomaker_weights(config, tmp_path):
    from persongen_jax.weights.formats.photomaker import save_photomaker

    model = open_system(config).model
    leaves = leaf_paths(model)
    changed = {path: np.asarray(leaf[...]) for path, leaf in leaves.items() if "id_enc" in path}
    for path, value in changed.items():
        leaves[path].set_value(value + 1.0)
    save_photomaker(model, tmp_path / "weights.safetensors")
    config.start_from = str(tmp_path / "weights.safetensors")
    started = leaf_paths(open_system(config).model)
    assert any("vision_model" in path for path in changed)
    assert all(np.array_equal(started[path][...], value + 1.0) for path, value in changed.items())


def run_generate(base, run, photos, out, *more):
    arguments = ["--base", str(base), "--method-weights", str(run), "--out", str(out)]
    arguments += ["--reference", str(photos / "astronaut.png"), "--steps", "4", *more]
    return generate.generate(generate.parse_arguments(arguments))


def test_generate_uses_what_was_trained(base, run, sample_photos, tmp_path):
    prompt = ["--prompt", "a woman img in a red hat", "--no-compilation-cache"]
    merge = ["--start-merge-step", "1"]
    (path,) = run_generate(base, run, sample_photos, tmp_path, *prompt, *merge)
    picture = Image.open(path)
    assert picture.size == (64, 64)
    assert picture.text["prompt"] == prompt[1]
    assert json.loads(picture.text["settings"])["method_weights"] == str(run)
    # Merged only after the last step, the identity never acts: another image.
    (late,) = run_generate(base, run, sample_photos, tmp_path, *prompt, "--start-merge-step", "9")
    assert late != path
    assert not np.array_equal(np.asarray(picture), np.asarray(Image.open(late)))


def test_a_trained_lora_leaves_as_a_file_of_diffusers(base, run, tmp_path):
    from diffusers import StableDiffusionXLPipeline
    from safetensors.numpy import load_file

    from persongen_jax.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(base)
    pipe.load_method(None, run)
    pipe.save_lora(tmp_path / "pytorch_lora_weights.safetensors", "method:photomaker")
    theirs = StableDiffusionXLPipeline.from_pretrained(base)
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


def test_a_dry_run_prints_counts_and_settings(config, tmp_path, capsys):
    train.train(config, tmp_path / "run", dry_run=True)
    said = capsys.readouterr().out
    assert "lora: " in said and "frozen: " in said and "ema_decay: 0.5" in said
    assert not (tmp_path / "run").exists()


BAD_SETTINGS = {
    "no base": ({"base": ""}, "--config.base=DIR"),
    "base": ({"base": "/nowhere"}, "/nowhere"),
    "no data": ({"data": ""}, "--config.data=DIR"),
    "data": ({"data": "/nowhere"}, "/nowhere"),
    "method": ({"method": "photo"}, "photomaker"),
    "loader": ({"loader": "fast"}, "tf_data"),
    "schedule": ({"lr_schedule": "step"}, "cosine"),
    "parts": ({"grad_accum": 3}, "config.batch_size=4"),
    "weights": ({"start_from": "/nowhere/photomaker.bin"}, "/nowhere/photomaker.bin"),
    "patterns": ({"trainable": (("unet/nose/.*", "lora"),)}, "match no parameter.*unet/nose"),
}


@pytest.mark.parametrize("case", BAD_SETTINGS)
def test_bad_settings_are_named(case, config, tmp_path):
    changes, named = BAD_SETTINGS[case]
    config.update(changes)
    with pytest.raises((ValueError, OSError), match=named):
        train.train(config, tmp_path)


@pytest.mark.parametrize(
    ("argument", "named"), [("--config.ranks=4", "ranks"), ("--config.base=/nowhere", "/nowhere")]
)
def test_errors_end_the_command_in_one_line(argument, named, tmp_path):
    command = [sys.executable, "-m", "persongen_jax.train", "--config", "configs/first_light.py"]
    command += [argument, "--workdir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and named in done.stderr
    assert "Traceback" not in done.stderr


def test_nothing_holds_the_first_batch_when_it_is_used():
    held = [np.zeros(3)]
    first = weakref.ref(held[0])
    batches = train.prepend(held, iter([np.ones(3)]))
    next(batches)
    assert first() is None
    assert next(batches).sum() == 3
