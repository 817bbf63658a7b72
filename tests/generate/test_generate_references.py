"""References: found, cropped or aligned; prompts with them, and the part that is cut."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.faces.find import NoFaceFound, crop_face
from data_pipeline.pictures.transforms import square_face_crop
from data_pipeline.prompts import Tokenizers
from persongen_jax.face_detectors import open_detector
from persongen_jax.generate import __main__ as generate
from persongen_jax.generate import files as generate_files
from persongen_jax.pipeline import Pipeline
from persongen_jax.training.trained import saved_config
from persongen_jax.weights.formats.photomaker import save_photomaker
from tests.generate.command import image_file, pixels, run
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
    arguments = ["--method-weights", tmp_path / "photomaker.safetensors", "--detector", "yunet"]
    arguments += ["--reference", tmp_path / "me.png", "--prompt", "a woman img"]
    arguments += ["--start_merge_step", "0", "--scale", "identity=0.5", "--scale", "lora=0"]
    # Without one a file has zeros on the other side, a run the empty prompt.
    arguments += ["--negative-prompt", "blurry"]
    run(small_base, tmp_path / "out", *arguments)
    wanted = pipe(
        "a woman img",
        "blurry",
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


def test_faces_are_located_for_methods_that_align_them(tmp_path):
    """FaceID, PhotoMaker v2 and others get the photograph with its landmarks."""
    write_keypoint_net(tmp_path / "detector", present=3.0)
    detector = f"keypoints:{tmp_path / 'detector'}"
    photo = image_file(tmp_path / "me.png", (160, 120))
    how = {"base": "", "detector": detector, "crop": True}
    ((face,),) = generate_files.locate_faces([photo], **how)
    (found,) = open_detector(detector).detect([pixels(photo)])
    assert np.array_equal(face.image, pixels(photo))
    assert np.array_equal(face.landmarks, found.landmarks)
    assert generate_files.locate_faces([photo], **{**how, "crop": False}) is None
    write_keypoint_net(tmp_path / "blind", present=-3.0)
    with pytest.raises(NoFaceFound, match=r"me\.png .*aligned crop"):
        generate_files.locate_faces([photo], **{**how, "detector": f"keypoints:{tmp_path}/blind"})


def read(weights, items, **how):
    how = {"base": "", "detector": "yunet", "crop": True, **how}
    return generate_files.read_references(list(map(str, items)), weights, **how)


def test_several_files_and_folders_are_one_person(tmp_path):
    (tmp_path / "ann").mkdir()
    files = [image_file(tmp_path / "ann" / f"{n}.png", (20 + n, 20)) for n in range(3)]
    args = generate.parse_arguments(["--base", "x", "--reference", *files[:2], "--prompt", "a"])
    assert args.reference == files[:2]
    (person,), _ = read("x", [tmp_path / "ann"], crop=False)
    assert [len(image) for image in person] == [20, 21, 22]
    Image.new("L", (8, 8)).save(tmp_path / "left.png")
    (person,), regions = read("x", [f"{tmp_path}/ann@{tmp_path}/left.png"], crop=False)
    assert len(person) == 3 and len(regions) == 1
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="empty: a folder without images"):
        read("x", [tmp_path / "empty"])
    for n in range(3, 6):
        image_file(tmp_path / "ann" / f"{n}.png")
    with pytest.raises(ValueError, match="6 references .*ann/0.png.* give one to 4 of a person"):
        read("x", [tmp_path / "ann"])


def test_a_face_box_is_cut_like_a_face_that_was_found(tmp_path):
    photo = image_file(tmp_path / "me.png", (160, 120))
    box = generate_files.parse_box("20,30,60,80.5")
    assert box == (20, 30, 60, 80.5)
    (person,), _ = read("x", [photo], boxes=[box])
    assert np.array_equal(person[0], square_face_crop(pixels(photo), box))
    # Boxes belong to files in the order of the arguments, whoever they show.
    for region in ("left", "right"):
        Image.new("L", (8, 8)).save(tmp_path / f"{region}.png")
    items = [f"{photo}@{tmp_path}/{region}.png" for region in ("left", "right", "left")]
    boxes = [(0, 0, 10 * n, 10 * n) for n in (1, 2, 3)]
    (left, right), _ = read("x", items, boxes=boxes)
    image, people = pixels(photo), ((0, 2), (1,))
    wanted = [[square_face_crop(image, boxes[n]) for n in person] for person in people]
    for found, crops in zip((left, right), wanted, strict=True):
        assert all(np.array_equal(a, b) for a, b in zip(found, crops, strict=True))
    (person,), _ = read("x", [photo], boxes=[(10, 10, 5000, 90)])  # over the edge, as in training
    assert np.array_equal(person[0], square_face_crop(pixels(photo), (10, 10, 120, 90)))
    for boxes, items, crop, said in (
        ([box], [photo, photo], True, "1 times --face-box, but there are 2 references"),
        ([box], [photo], False, "--no-crop cuts no face"),
        (
            [(0.1, 0.1, 0.6, 0.8)],
            [photo],
            True,
            "has less than 2 pixels; give pixels, not fraction",
        ),
        ([(500, 0, 600, 9)], [photo], True, "lies outside of .*me.png, which has 120x160 pixels"),
    ):
        with pytest.raises(ValueError, match=said):
            read("x", items, boxes=boxes, crop=crop)
    for text, said in (("1,2,3", "four"), ("0,0,inf,inf", "four"), ("5,5,2,9", "empty")):
        with pytest.raises(ValueError, match=f"--face-box {text}: .*{said}"):
            generate_files.parse_box(text)


def test_a_checkpoint_of_a_run_by_its_path(small_base, method_weights, pipe, tmp_path, capsys):
    reference = image_file(tmp_path / "face.png")
    given = ["--reference", reference, "--no-crop", "--prompt", "a man img"]
    for name in ("", "checkpoints/0", "checkpoints"):
        run(small_base, tmp_path / "out", "--method-weights", method_weights / name, *given)
    images = [pixels(tmp_path / "out" / f"0000{n}.png") for n in range(3)]
    assert np.array_equal(images[0], images[1]) and np.array_equal(images[0], images[2])
    with pytest.raises(SystemExit, match="no checkpoint of step 7; there are 0"):
        run(small_base, tmp_path, "--method-weights", method_weights / "checkpoints/7", *given)


def test_references_are_cut_as_the_run_was_trained(method_weights, tmp_path, monkeypatch, caplog):
    photo = image_file(tmp_path / "me.png", (160, 120))
    config = saved_config(method_weights)
    assert config["references"] == "auto"  # of a run that was never trained: by a detector
    with pytest.raises(NoFaceFound):
        read(method_weights, [photo])
    monkeypatch.setattr(
        generate_files, "saved_config", lambda path: {**config, "references": "whole"}
    )
    (person,), _ = read(method_weights, [photo])
    assert np.array_equal(person[0], pixels(photo))
    assert "reads whole images as references, so they are not cropped" in caplog.text
    (person,), _ = read(method_weights, [photo], boxes=[(20, 30, 60, 80)])
    assert len(person[0]) < 120
    with pytest.raises(NoFaceFound):  # as --method-option references=face
        read(method_weights, [photo], show="face")


def test_the_cut_part_of_a_plain_prompt(small_base, tmp_path, capsys):
    prompts = ["--prompt", "a " * 75 + "Castle, in ruins", "--prompt", "a " * 75]
    run(small_base, tmp_path, *prompts, "--no-mark")
    said = [line for line in capsys.readouterr().err.splitlines() if "warning" in line]
    assert said == ['warning: the prompt is too long; this part is cut: "Castle, in ruins"']
