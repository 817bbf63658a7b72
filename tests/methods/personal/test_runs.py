"""Runs on one person: class images, resuming, exports that diffusers opens with the same image."""

import numpy as np
import pytest
from PIL import Image

from persongen_jax import train
from persongen_jax.convert.__main__ import main as convert
from persongen_jax.parallel.sharding import make_mesh, replicated
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.class_images import generate_missing
from persongen_jax.systems.open import open_system
from persongen_jax.training.trained import load_trained
from persongen_jax.weights.formats.embeddings.writing import write_embeddings
from tests.helpers.training_runs import changed, metrics
from tests.pipeline.pictures import to_torch

pytestmark = pytest.mark.slow
PIXEL = 2 / 255
TOWERS, CLIPS = ("text_encoder", "text_encoder_2"), ("clip_l", "clip_g")
PROMPT, SIDE = "a photo of a ohwx woman", 32
SHORT = {"steps": 2, "warmup_steps": 0, "checkpoint_every": 2, "log_every": 1}
SETTINGS = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": SIDE, "width": SIDE}
RATES = {name: 2e-2 for name in ("lr_lora", "lr_text_lora", "lr_embeddings", "lr_unet")}
METHODS = {
    "lora": {"lora_targets": "attention+conv", "text_rank": 2, "rank": 4},
    "dora": {"method": "lora", "lora_dora": True, "rank": 2},
    "dreambooth": {"train_text_encoders": True, "lr_unet": 1e-3, "lr_text_encoders": 1e-3},
    "textual_inversion": {"token": "<me>", "num_vectors": 2, "lr_embeddings": 0.2},
    "pivotal_tuning": {"token": "<me>", "num_vectors": 2, "rank": 2, "embedding_norm": 0.1},
}


def run_of(config, name, workdir, **more):
    settings = {"method": name, **SHORT, **RATES, **METHODS[name], **more}
    assert train.train(changed(config, **settings), workdir)
    return workdir


@pytest.fixture(scope="module")
def latents():
    return np.random.default_rng(0).standard_normal((1, SIDE // 8, SIDE // 8, 4)).astype(np.float32)


def ours(pipe, latents, prompt=PROMPT):
    return pipe([prompt], latents=latents, output_type="np", **SETTINGS).images


def theirs(base, latents, change=lambda pipe: None, prompt=PROMPT):
    from diffusers import StableDiffusionXLPipeline

    pipe = StableDiffusionXLPipeline.from_pretrained(base)
    pipe.set_progress_bar_config(disable=True)
    change(pipe)
    return pipe([prompt], latents=to_torch(latents), output_type="np", **SETTINGS).images


@pytest.mark.parametrize("name", ["lora", "dora"])
def test_a_lora_is_the_same_in_diffusers_and_from_every_file(
    name, personal_config, latents, golden, tmp_path
):
    config = personal_config
    run = run_of(config, name, tmp_path / "run")
    pipe = Pipeline.from_pretrained(config.base)
    plain = ours(pipe, latents)
    pipe.load_method(None, run)
    found = ours(pipe, latents)
    assert np.abs(found - plain).max() > 5 * PIXEL
    pipe.unload_method()
    assert np.array_equal(ours(pipe, latents), plain)
    for form in ("diffusers-lora", "kohya-lora", "peft", "comfy"):
        out = tmp_path / (form if form == "peft" else f"{form}.safetensors")
        convert(["export", "--format", form, str(run), str(out)])
        pipe.load_lora(out)
        assert np.abs(ours(pipe, latents) - found).max() < 1e-4, form
        pipe.unload_lora()

    def change(pipe):
        pipe.load_lora_weights(str(tmp_path), weight_name="diffusers-lora.safetensors")

    expected = golden(lambda: theirs(config.base, latents, change))
    assert np.abs(found - expected).max() < PIXEL


def test_a_dreambooth_directory_opens_in_diffusers(personal_config, latents, golden, tmp_path):
    config = personal_config
    run, out = run_of(config, "dreambooth", tmp_path / "run"), tmp_path / "whole"
    convert(["export", "--format", "diffusers", str(run), str(out)])
    pipe = Pipeline.from_pretrained(config.base)
    plain = ours(pipe, latents)
    pipe.load_method(None, run)
    found = ours(pipe, latents)
    assert np.abs(found - plain).max() > 5 * PIXEL
    pipe.unload_method()
    assert np.array_equal(ours(pipe, latents), plain)
    assert np.abs(ours(Pipeline.from_pretrained(out), latents) - found).max() < 1e-4
    assert np.abs(golden(lambda: theirs(out, latents)) - found).max() < PIXEL
    # A word that was loaded before stays, whatever tables come and go.
    widths = [getattr(pipe.model, name).config["hidden_size"] for name in TOWERS]
    rows = {n: np.full((1, w), 0.1, np.float32) for n, w in zip(CLIPS, widths, strict=True)}
    write_embeddings(tmp_path / "me.safetensors", "<me>", rows, "kohya")
    pipe.load_textual_inversion(tmp_path / "me.safetensors")
    with_word = ours(pipe, latents, "a photo of <me>")
    pipe.load_method(None, run)
    assert np.isfinite(ours(pipe, latents, "a photo of <me>")).all()
    assert np.array_equal(ours(pipe, latents), found)
    pipe.unload_method()
    assert np.array_equal(ours(pipe, latents, "a photo of <me>"), with_word)


@pytest.mark.parametrize("name", ["textual_inversion", "pivotal_tuning"])
def test_a_word_acts_where_it_is_and_only_there(name, personal_config, latents, tmp_path):
    config = personal_config
    run = run_of(config, name, tmp_path / "run")
    arrays, _ = load_trained(run, replicated(make_mesh()))
    rows = {path: array.shape for path, array in arrays.items() if path.endswith("added")}
    assert len(rows) == 2 and {shape[0] for shape in rows.values()} == {2}
    pipe = Pipeline.from_pretrained(config.base)
    plain = {text: ours(pipe, latents, text) for text in ("a photo of <me>", "a photo")}
    pipe.load_method(None, run)
    found = {text: ours(pipe, latents, text) for text in plain}
    assert np.abs(found["a photo of <me>"] - plain["a photo of <me>"]).max() > 2 * PIXEL
    same = np.array_equal(found["a photo"], plain["a photo"])
    assert same == (name == "textual_inversion")
    # The trigger word stands for it too.
    assert np.array_equal(ours(pipe, latents, "a photo of woman img"), found["a photo of <me>"])
    pipe.unload_method()
    assert all(np.array_equal(ours(pipe, latents, text), plain[text]) for text in plain)
    # As a file of any form it has the same effect; pivotal tuning's LoRA is a file of its own.
    if name == "pivotal_tuning":
        convert(["export", "--format", "kohya-lora", str(run), str(tmp_path / "lora.safetensors")])
        pipe.load_lora(tmp_path / "lora.safetensors")
    for form in ("diffusers", "kohya", "pivotal", "pti"):
        ending = {"diffusers": "", "pti": ".pti"}.get(form, ".safetensors")
        out = tmp_path / f"{form}{ending}"
        convert(["export", "--format", f"embedding-{form}", str(run), str(out)])
        pipe.load_textual_inversion(out, token="<me>")
        difference = np.abs(ours(pipe, latents, "a photo of <me>") - found["a photo of <me>"]).max()
        assert difference < 1e-4, form
        pipe.unload_textual_inversion()


def test_class_images_have_a_guidance_of_their_own(personal_config, tmp_path):
    own = {"class_prompt": "a photo of a woman", "num_class_images": 1, "validation_steps": 2}
    own |= {"rank": 2, "lora_targets": "cross-attention", "text_rank": 0, "method": "lora"}
    made = {}
    for guidance in (0.0, personal_config.validation_guidance, 1.0):
        folder = tmp_path / str(guidance)
        given = {**own, "class_data": str(folder), "class_guidance": guidance}
        generate_missing(open_system(changed(personal_config, **given)))
        made[guidance] = (folder / "0000.png").read_bytes()
    assert personal_config.validation_guidance > 1
    assert made[0.0] == made[personal_config.validation_guidance] != made[1.0]


def test_missing_class_images_are_generated_once_and_may_move(
    personal_config, tmp_path, capsys, caplog
):
    config, folder = personal_config, tmp_path / "class"
    own = {"class_data": str(folder), "class_prompt": "a photo of a woman", "num_class_images": 3}
    own |= {"validation_steps": 2, "rank": 2, "lora_targets": "cross-attention", "text_rank": 0}
    folder.mkdir()
    mine = np.full((40, 40, 3), 9, np.uint8)
    Image.fromarray(mine).save(folder / "0001.png")
    run_of(config, "lora", tmp_path / "run", **own)
    assert "generating 2 class images of 'a photo of a woman'" in capsys.readouterr().out
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert sorted(files) == ["0000.png", "0001.png", "0002.png"]
    assert np.array_equal(np.asarray(Image.open(folder / "0001.png")), mine)
    # Each depends on its number alone: one that is lost comes again, by whichever run.
    (folder / "0002.png").unlink()
    run_of(config, "lora", tmp_path / "again", **own)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    # Two trainings of one command are the same.
    one, two = (load_trained(tmp_path / n, replicated(make_mesh()))[0] for n in ("run", "again"))
    assert one.keys() == two.keys()
    assert all(np.array_equal(one[path], two[path]) for path in one)
    assert metrics(tmp_path / "run") == metrics(tmp_path / "again")
    # A run goes on after they have moved, and says where one is another.
    moved = tmp_path / "other" / "class"
    moved.parent.mkdir()
    folder.rename(moved)
    run_of(config, "lora", tmp_path / "run", **{**own, "class_data": str(moved), "steps": 3})
    assert "continuing from step 2" in capsys.readouterr().out
    Image.fromarray(mine).save(moved / "0000.png")
    run_of(config, "lora", tmp_path / "run", **{**own, "class_data": str(moved), "steps": 4})
    assert "have changed under the same names" in caplog.text and "0000.png" in caplog.text
