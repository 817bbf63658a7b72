"""References: found, cropped or aligned; prompts with them, and the part that is cut."""

import json

import numpy as np
import pytest
from diffusers import UNet2DConditionModel
from PIL import Image

from data_pipeline.faces.align import align_face
from data_pipeline.faces.find import NoFaceFound, crop_face
from data_pipeline.prompts import Tokenizers
from persongen_jax.face_detectors import open_detector
from persongen_jax.generate import __main__ as generate
from persongen_jax.generate import files as generate_files
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.formats.photomaker import save_photomaker
from tests.generate.command import image_file, pixels, run
from tests.helpers.ip_adapters import write_ip_adapter
from tests.helpers.keypoint_nets import write_keypoint_net


@pytest.fixture(scope="module")
def tokenizers(small_base):
    return Tokenizers.from_pretrained(small_base)


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
