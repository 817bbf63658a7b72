"""The command line: images with notes in them, marks, LoRA and the scheduler's settings."""

import json

import numpy as np
import pytest
from PIL import Image

from persongen_jax.evaluation.folders.layouts import read_images
from persongen_jax.generate import __main__ as generate
from persongen_jax.generate.base import parse_embedding
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.saving import ImageFolder
from persongen_jax.pipeline.watermark import has_watermark
from persongen_jax.weights.formats.adapters import extract_adapter
from persongen_jax.weights.formats.embeddings.writing import write_embeddings
from tests.generate.command import pixels, run
from tests.helpers.lora_files import save
from tests.pipeline.test_saving import GENERATED, source_type

WIDTHS = {"clip_l": 32, "clip_g": 64}  # of the small base's text encoders


def test_prompts_notes_and_numbers(small_base, tmp_path, capsys):
    out = tmp_path / "out"
    out.mkdir()
    (out / "00007.png").write_bytes(b"mine")
    (out / "cover.png").write_bytes(b"mine too")
    file = tmp_path / "prompts.txt"
    file.write_text("\n  a castle,  höher als alles \n\n", encoding="utf-8")
    prompts = ["--prompt", "a man", "--prompt", "a woman", "--prompt-file", file]
    settings = ["--negative-prompt", "blurry", "--seed", "5", "--images-per-prompt", "2"]
    run(small_base, out, *prompts, *settings)

    paths = [out / f"{n:05d}.png" for n in range(8, 14)]
    assert capsys.readouterr().out.splitlines() == list(map(str, paths))
    assert sorted(out.iterdir()) == [out / "00007.png", *paths, out / "cover.png"]
    assert (out / "00007.png").read_bytes() == b"mine"
    notes = [Image.open(path).text for path in paths]
    texts = ["a man", "a woman", "a castle,  höher als alles"]
    assert [note["prompt"] for note in notes] == [text for text in texts for _ in range(2)]
    assert [note["index"] for note in notes] == list("012345")
    assert [note["number"] for note in notes] == list("010101")
    assert {note["negative_prompt"] for note in notes} == {"blurry"}
    assert {note["seed"] for note in notes} == {"5"}
    settings = json.loads(notes[0]["settings"])
    assert settings["steps"] == 2 and settings["base"] == str(small_base)
    assert settings["guidance_scale"] == 5.0 and settings["lora"] == []
    assert len({pixels(path).tobytes() for path in paths}) == 6

    first = {path: path.read_bytes() for path in out.iterdir()}
    run(small_base, out, "--prompt", "a man")
    same = [*prompts[:2], "--negative-prompt", "blurry", "--seed", "5", "--images-per-prompt", "2"]
    run(small_base, tmp_path / "other", *same)
    assert {path: path.read_bytes() for path in first} == first
    assert set(out.iterdir()) == {*first, out / "00014.png"}
    # The same seed and settings give the same bytes, including notes.
    again = [(tmp_path / "other" / f"{n:05d}.png").read_bytes() for n in range(2)]
    assert again == [path.read_bytes() for path in paths[:2]]
    # evaluate --images reads the notes.
    entries = read_images("other", tmp_path / "other", alone="ann").entries
    found = [(entry.text, entry.seed) for entry in entries]
    assert found == [("a man", "5"), ("a man", "5 #2")]


def test_the_command_generates_what_the_pipeline_generates(small_base, pipe, tmp_path):
    run(small_base, tmp_path, "--prompt", "a man", "--negative-prompt", "b", "--seed", "9")
    settings = {"seed": 9, "num_inference_steps": 2, "batch_size": 1, "output_type": "np"}
    wanted = pipe("a man", "b", **settings).images
    assert np.array_equal(pixels(tmp_path / "00000.png"), (wanted[0] * 255).round())


def test_images_are_marked_unless_asked_not_to(small_base, pipe, tmp_path, capsys):
    size = ["--height", 256, "--width", 256, "--prompt", "blue ice"]
    run(small_base, tmp_path, *size)
    run(small_base, tmp_path, *size, "--no-mark")
    marked, plain = (tmp_path / name for name in ("00000.png", "00001.png"))
    assert has_watermark(pixels(marked)) and not has_watermark(pixels(plain))
    assert source_type(marked) == GENERATED and source_type(plain) is None
    assert 0.1 < np.abs(pixels(marked).astype(int) - pixels(plain)).mean() < 10
    for path, there in ((marked, True), (plain, False)):
        assert json.loads(Image.open(path).text["settings"])["watermark"] is there
    assert "warning" not in capsys.readouterr().err
    settings = {"seed": 42, "num_inference_steps": 2, "batch_size": 1, "output_type": "np"}
    wanted = pipe("blue ice", height=256, width=256, **settings).images
    assert np.array_equal(pixels(plain), (wanted[0] * 255).round())


def test_a_picture_too_small_for_the_watermark_says_so(small_base, tmp_path, capsys):
    run(small_base, tmp_path, "--prompt", "a", "--prompt", "b")
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert len(said) == 1 and "no watermark: 64x64" in said[0] and "256" in said[0]
    for path in (tmp_path / "00000.png", tmp_path / "00001.png"):
        assert json.loads(Image.open(path).text["settings"])["watermark"] is False
        assert source_type(path) == GENERATED
    run(small_base, tmp_path, "--prompt", "a", "--no-mark")
    assert "warning" not in capsys.readouterr().err
    assert source_type(tmp_path / "00002.png") is None


def lora_file(path):
    rng = np.random.default_rng(0)
    stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_out_0"
    tensors = {
        f"{stem}.lora_down.weight": rng.standard_normal((4, 64)).astype(np.float32),
        f"{stem}.lora_up.weight": rng.standard_normal((64, 4)).astype(np.float32),
        f"{stem}.alpha": np.array(2.0, np.float32),
    }
    return save(path, tensors)


def test_lora_with_a_weight(small_base, tmp_path):
    folder = tmp_path / "mine@home"  # an @ that does not separate a weight
    folder.mkdir()
    file = lora_file(folder / "style.safetensors")
    for loras in ((f"{file}@0.5",), (file,), (f"{file}@0",), (f"{file}@0.5", f"{file}@0.5")):
        options = [word for lora in loras for word in ("--lora", lora)]
        run(small_base, tmp_path / "out", "--prompt", "a man", *options)
    half, whole, none, twice = (
        pixels(tmp_path / "out" / f"0000{n}.png").astype(int) for n in range(4)
    )
    assert np.abs(whole - twice).max() <= 1  # the same file twice adds up
    assert np.abs(half - none).max() > 5 and np.abs(whole - half).max() > 5

    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_lora(file, weight=0.5)
    settings = {"seed": 42, "num_inference_steps": 2, "batch_size": 1}
    assert np.array_equal(np.asarray(pipe("a man", **settings).images[0]), half)
    note = json.loads(Image.open(tmp_path / "out" / "00000.png").text["settings"])
    assert note["lora"] == [f"{file}@0.5"]


def test_where_an_embedding_is_and_what_its_word_is(tmp_path):
    (tmp_path / "a:b.pt").write_bytes(b"")
    assert parse_embedding("me.pt") == ("me.pt", "")
    assert parse_embedding("x/me.pt:<me>") == ("x/me.pt", "<me>")
    assert parse_embedding(f"{tmp_path}/a:b.pt") == (f"{tmp_path}/a:b.pt", "")
    for item in ("", ":me", "me.pt:"):
        with pytest.raises(ValueError, match="--embedding .*: give a file, or FILE:WORD"):
            parse_embedding(item)


@pytest.mark.slow
def test_embeddings_of_words(small_base, tmp_path, capsys):
    rng = np.random.default_rng(0)
    files = {}
    for name, form in (("<me>", "diffusers"), ("hat.safetensors", "kohya")):
        rows = {t: rng.standard_normal((2, width)) for t, width in WIDTHS.items()}
        files[name] = tmp_path / name
        rows = {tower: each.astype(np.float32) for tower, each in rows.items()}
        write_embeddings(files[name], name.split(".")[0], rows, form)
    given = [str(files["<me>"]), f"{files['hat.safetensors']}:<hat>"]
    options = [word for each in given for word in ("--embedding", each)]
    run(small_base, tmp_path / "out", "--prompt", "<me> in a <hat>", *options)
    assert "the word" not in capsys.readouterr().err
    run(small_base, tmp_path / "out", "--prompt", "a man", *options)
    said = capsys.readouterr().err
    assert all(f"the word {word!r} of embedding" in said for word in ("<me>", "<hat>"))

    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_textual_inversion(files["<me>"])
    pipe.load_textual_inversion(files["hat.safetensors"], "<hat>")
    settings = {"seed": 42, "num_inference_steps": 2, "batch_size": 1}
    image = pixels(tmp_path / "out" / "00000.png")
    assert np.array_equal(np.asarray(pipe("<me> in a <hat>", **settings).images[0]), image)
    note = json.loads(Image.open(tmp_path / "out" / "00000.png").text["settings"])
    assert note["embedding"] == given


def test_a_folder_that_cannot_be_written_costs_no_image(small_base, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    options = ("--prompt", "a man")
    with pytest.raises(SystemExit, match="file.*is a file; name another folder for images"):
        run(small_base, tmp_path / "file", *options)
    with pytest.raises(SystemExit, match="is a file; name another folder for images"):
        run(small_base, tmp_path / "file" / "inner", *options)
    assert "step/s" not in capsys.readouterr().err
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "²³.png").write_bytes(b"")
    assert ImageFolder(tmp_path / "out")._next == 0


def test_unloading_leaves_a_method_its_own_lora(small_base, method_weights, tmp_path):
    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_method(None, method_weights)
    trained = extract_adapter(pipe.model.unet)
    pipe.load_lora(lora_file(tmp_path / "style.safetensors"))
    pipe.unload_lora()
    found = extract_adapter(pipe.model.unet)
    assert found.keys() == trained.keys()
    assert all(np.array_equal(found[k].down, trained[k].down) for k in trained)


def test_scheduler_settings(small_base, pipe, tmp_path):
    """Another spacing, and Karras sigmas; their effect is tested with the pipeline."""
    euler = ["--scheduler", "euler", "--timestep-spacing", "trailing", "--prompt", "a man"]
    run(small_base, tmp_path, *euler)
    run(small_base, tmp_path, *euler, "--karras")
    settings = {"seed": 42, "num_inference_steps": 2, "batch_size": 1}
    options = {"timestep_spacing": "trailing"}
    for n, more in enumerate(({}, {"use_karras_sigmas": True})):
        wanted = pipe(
            "a man", scheduler="euler", scheduler_options={**options, **more}, **settings
        ).images[0]
        found = pixels(tmp_path / f"0000{n}.png").astype(int)
        assert np.abs(found - np.asarray(wanted)).max() <= 1
    # Two steps have the same sigmas either way.
    arguments = generate.parse_arguments(["--base", "x", *euler, "--karras"])
    assert generate.scheduler_options(arguments) == {**options, **more}
    run(small_base, tmp_path, "--prompt", "a man")
    assert np.abs(found - pixels(tmp_path / "00002.png")).max() > 1
    note = json.loads(Image.open(tmp_path / "00001.png").text["settings"])
    assert (
        note["karras"] and note["timestep_spacing"] == "trailing" and note["scheduler"] == "euler"
    )
