"""The command line: images with notes in them, warnings, and one-line errors."""

import json
import shutil

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from configs.first_light import get_config
from data_pipeline.faces.align import align_face
from data_pipeline.faces.find import NoFaceFound, crop_face
from data_pipeline.prompts import Tokenizers
from persongen_jax.face_detectors import open_detector
from persongen_jax.generate import __main__ as generate
from persongen_jax.generate import files as generate_files
from persongen_jax.pipeline import Pipeline
from persongen_jax.pipeline.saving import ImageFolder
from persongen_jax.pipeline.watermark import has_watermark
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model
from persongen_jax.weights.formats.adapters import extract_adapter
from persongen_jax.weights.formats.photomaker import save_photomaker
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.keypoint_nets import write_keypoint_net
from tests.helpers.lora_files import save
from tests.pipeline.test_saving import GENERATED, source_type

# One batch size and number of steps nearly everywhere, so one compiled program.
SAME = ["--no-compilation-cache", "--batch-size", "1", "--steps", "2"]


@pytest.fixture(scope="module")
def method_weights(small_base, tmp_path_factory):
    """What a training run of zero steps leaves behind."""
    config = get_config()
    config.base = str(small_base)
    system = open_system(config)
    workdir = tmp_path_factory.mktemp("run")
    checkpoints = Checkpoints(workdir)
    trainable = split_model(system.model, system.table)[1]
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config.to_dict())
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def pipe(small_base):
    return Pipeline.from_pretrained(small_base)


@pytest.fixture(scope="module")
def tokenizers(small_base):
    return Tokenizers.from_pretrained(small_base)


def image_file(path, size=(40, 48)):
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path)
    return str(path)


def run(base, out, *arguments):
    generate.main(["--base", str(base), "--out", str(out), *SAME, *map(str, arguments)])


def fails(capsys, base, out, *arguments):
    """The one line that the command ends with; nothing was generated."""
    with pytest.raises(SystemExit) as caught:
        run(base, out, *arguments)
    message = caught.value.code
    assert isinstance(message, str) and message.startswith("error: ")
    assert "\n" not in message
    assert not out.exists()
    assert "step/s" not in capsys.readouterr().err  # no progress bar in front of the message
    return message


def pixels(path):
    return np.asarray(Image.open(path))


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


def test_with_references_the_cut_part_is_what_is_not_read(
    small_base, method_weights, tokenizers, tmp_path, capsys
):
    class_words = tokenizers.tokenizer("a man").input_ids
    count = 3
    # "a" is one token. With three references "man" appears three times, and the trigger not at all.
    room = 75 - (len(class_words) - 2) - (count - 1)
    reference = image_file(tmp_path / "face.png")
    method = ["--method-weights", method_weights, "--no-crop", *["--reference", reference] * count]
    # From the first step on: before the merge step the prompt stands there without copies.
    method += ["--start-merge-step", "-1"]
    fits = "a man img" + " a" * room
    run(small_base, tmp_path / "out", *method, "--prompt", fits, "--negative-prompt", "a " * 76)
    said = capsys.readouterr().err
    assert 'the negative prompt is too long; this part is cut: "a ' in said
    assert "the prompt is too long" not in said
    run(small_base, tmp_path / "out", *method, "--prompt", fits + " Castle on a hill")
    assert 'warning: the prompt is too long; this part is cut: "Castle on a hill"\n' in (
        capsys.readouterr().err
    )
    note = Image.open(tmp_path / "out" / "00001.png").text
    assert note["prompt"].startswith("a man img a")
    assert json.loads(note["settings"])["reference"] == [reference] * count
    # The part that was cut had no influence.
    run(small_base, tmp_path / "out", *method, "--prompt", fits)
    assert np.array_equal(*(pixels(tmp_path / "out" / f"0000{n}.png") for n in (1, 2)))


def test_a_photograph_a_photomaker_file_and_scales(small_base, method_weights, tmp_path):
    """The face is found and cropped; the scales and the merge step are applied."""
    data = pytest.importorskip("skimage.data")
    astronaut = data.astronaut()
    Image.fromarray(astronaut).save(tmp_path / "me.png")
    pipe = Pipeline.from_pretrained(small_base)
    pipe.load_method("photomaker", method_weights)
    save_photomaker(pipe.model, tmp_path / "photomaker.safetensors")
    arguments = ["--method-weights", tmp_path / "photomaker.safetensors", "--detector", "cascade"]
    arguments += ["--reference", tmp_path / "me.png", "--prompt", "a woman img"]
    arguments += ["--start_merge_step", "0", "--scale", "identity=0.5", "--scale", "lora=0"]
    run(small_base, tmp_path / "out", *arguments)
    wanted = pipe(
        "a woman img",
        references=[[crop_face(astronaut)]],
        scales={"identity": 0.5, "lora": 0},
        start_merge_step=0,
        seed=42,
        num_inference_steps=2,
        batch_size=1,
    ).images[0]
    path = tmp_path / "out" / "00000.png"
    assert np.array_equal(pixels(path), np.asarray(wanted))
    note = json.loads(Image.open(path).text["settings"])
    assert note["scale"] == ["identity=0.5", "lora=0"] and note["start_merge_step"] == 0
    assert note["method_weights"] == str(tmp_path / "photomaker.safetensors")


def test_references_of_a_faceid_file_are_aligned(small_base, tmp_path):
    unet = UNet2DConditionModel.from_pretrained(small_base / "unet")
    for kind in ("faceid", "base"):
        write_ip_adapter(tmp_path / f"{kind}.safetensors", unet, kind, 32)
    write_keypoint_net(tmp_path / "detector", present=3.0)
    detector = f"keypoints:{tmp_path / 'detector'}"
    photo = image_file(tmp_path / "me.png", (160, 120))

    def crop(kind, *more):
        weights = str(tmp_path / f"{kind}.safetensors")
        arguments = ["--base", str(small_base), "--reference", photo, "--method-weights", weights]
        args = generate.parse_arguments([*arguments, *more])
        how = {"base": args.base, "detector": args.detector, "crop": not args.no_crop}
        (person,), _ = generate_files.read_references(args.reference, weights, **how)
        return np.asarray(person[0])

    (found,) = open_detector(detector).detect([pixels(photo)])
    wanted = align_face(pixels(photo), found.landmarks)
    assert np.array_equal(crop("faceid", "--detector", detector), wanted)
    square = crop_face(pixels(photo), detector=open_detector(detector))
    assert np.array_equal(crop("base", "--detector", detector), square)
    assert np.array_equal(crop("faceid", "--no-crop"), pixels(photo))
    write_keypoint_net(tmp_path / "blind", present=-3.0)
    with pytest.raises(NoFaceFound, match=r"me\.png .*aligned crop"):
        crop("faceid", "--detector", f"keypoints:{tmp_path / 'blind'}")
    pytest.importorskip("skimage")
    with pytest.raises(ValueError, match="cascade: .*no landmarks.*--detector insightface"):
        crop("faceid", "--detector", "cascade")


def test_the_cut_part_of_a_plain_prompt(small_base, tmp_path, capsys):
    prompts = ["--prompt", "a " * 75 + "Castle, in ruins", "--prompt", "a " * 75]
    run(small_base, tmp_path, *prompts, "--no-mark")
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said == ['warning: the prompt is too long; this part is cut: "Castle, in ruins"']


PROMPT = ["--prompt", "a man"]
PLAIN_ERRORS = {
    "no prompt": ([], "--prompt-file"),
    "prompt file": (["--prompt-file", "/nowhere/prompts.txt"], "/nowhere/prompts.txt"),
    "reference alone": ([*PROMPT, "--reference", "x.png"], "--method-weights"),
    "name alone": ([*PROMPT, "--method", "photomaker"], "--method photomaker"),
    "scheduler": ([*PROMPT, "--scheduler", "heun"], "'heun'"),
    "height": ([*PROMPT, "--height", "60"], "height=60"),
    "steps": ([*PROMPT, "--steps", "0"], "num_inference_steps=0"),
    "images": ([*PROMPT, "--images-per-prompt", "0"], "num_images_per_prompt=0"),
    "lora": ([*PROMPT, "--lora", "/nowhere/x.safetensors@0.5"], "/nowhere/x.safetensors:"),
    "scale": ([*PROMPT, "--scale", "identity"], "NAME=NUMBER"),
    "scales alone": ([*PROMPT, "--scale", "identity=1"], "references"),
    "lora weight": ([*PROMPT, "--lora", "x.safetensors@much"], "'much' is not a number"),
}


@pytest.mark.parametrize("case", PLAIN_ERRORS)
def test_errors_are_one_line_and_name_the_thing(case, small_base, tmp_path, capsys):
    arguments, named = PLAIN_ERRORS[case]
    assert named in fails(capsys, small_base, tmp_path / "out", *arguments)


@pytest.mark.parametrize(
    "gone", ["", "unet/diffusion_pytorch_model.safetensors", "vae", "tokenizer"]
)
def test_a_part_of_the_base_that_is_not_there(gone, small_base, tmp_path, capsys):
    base = tmp_path / "base"
    if gone:
        shutil.copytree(small_base, base)
        target = base / gone
        shutil.rmtree(target) if target.is_dir() else target.unlink()
    assert str(base / gone.split("/")[0]) in fails(capsys, base, tmp_path / "out", *PROMPT)


def test_a_prompt_file_that_is_no_text(small_base, tmp_path, capsys):
    (tmp_path / "prompts.txt").write_bytes(b"caf\xe9")
    message = fails(capsys, small_base, tmp_path / "out", "--prompt-file", tmp_path / "prompts.txt")
    assert "prompts.txt" in message and "UTF-8" in message


REFERENCE_ERRORS = {
    "no trigger": ("a man", "face.png", 1, ["--no-crop"], '"img" appears 0 times'),
    "two triggers": ("a man img img", "face.png", 1, ["--no-crop"], '"img" appears 2 times'),
    "leading trigger": ("img of a man", "face.png", 1, ["--no-crop"], 'opens the prompt "img of'),
    "late trigger": ("a " * 80 + "man img", "face.png", 1, ["--no-crop"], "too late"),
    "five": ("a man img", "face.png", 5, ["--no-crop"], "5 references"),
    "no image": ("a man img", "notes.txt", 1, ["--no-crop"], "notes.txt"),
    "no file": ("a man img", "gone.png", 1, [], "gone.png"),
    "no face": ("a man img", "face.png", 1, ["--detector", "cascade"], "--no-crop"),
    "no detector": ("a man img", "face.png", 1, ["--detector", "yolo"], "'yolo'"),
    "no such scale": ("a man img", "face.png", 1, ["--no-crop", "--scale", "x=1"], "'x'"),
    "method alone": ("a man img", "face.png", 0, [], "give --reference"),
    "other method": (
        "a man img",
        "face.png",
        1,
        ["--no-crop", "--method", "photomaker_bg"],
        "not of 'photomaker_bg'",
    ),
}


@pytest.mark.parametrize("case", REFERENCE_ERRORS)
def test_errors_about_references(case, small_base, method_weights, tmp_path, capsys):
    prompt, name, count, more, named = REFERENCE_ERRORS[case]
    if case == "no face":
        pytest.importorskip("skimage")
    Image.new("RGB", (64, 64), "gray").save(tmp_path / "face.png")
    (tmp_path / "notes.txt").write_text("no picture")
    references = ["--reference", tmp_path / name] * count
    message = fails(
        capsys,
        small_base,
        tmp_path / "out",
        "--method-weights",
        method_weights,
        "--prompt",
        prompt,
        *references,
        *more,
    )
    assert named in message


def test_method_weights_that_are_not_there(small_base, tmp_path, capsys):
    reference = image_file(tmp_path / "face.png")
    arguments = ["--method-weights", tmp_path / "run", "--reference", reference, "--no-crop"]
    message = fails(capsys, small_base, tmp_path / "out", *PROMPT, *arguments)
    assert str(tmp_path / "run") in message
