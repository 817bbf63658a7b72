"""--pose: the skeleton of the person in a photograph, and what is said where there is none."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.first_light import get_config
from data_pipeline.drawing.people import examples
from data_pipeline.pictures.reading import ImageError
from data_pipeline.pose.body18 import COLOURS
from persongen_jax.generate.pose import (
    NoPersonFound,
    draw_pose,
    find_bodies,
    find_pose,
    pose_image,
)
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.pose_nets import open_pose_net
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model
from tests.generate.command import pixels, run
from tests.generate.test_generate_errors import fails
from tests.helpers.training_runs import changed

NET = f"keypoints:{ASSETS / 'judges' / 'face_detector'}"


@pytest.fixture(scope="module")
def net():
    return open_pose_net(NET)


@pytest.fixture(scope="module")
def person():
    """A whole figure, uint8 [64, 64, 3], and where its left shoulder is."""
    drawn = examples("out_of_train", np.arange(1), np.arange(1), framing_weights=(0, 0, 1))
    return drawn.images[0], drawn.keypoints[0, 0]


def middle(picture, colour):
    rows, columns = np.nonzero((np.asarray(picture) == colour).all(2))
    return columns.mean() + 0.5, rows.mean() + 0.5


def test_the_skeleton_has_the_size_of_the_image(net, person):
    image, shoulder = person
    picture = pose_image(image, net, 64, 64)
    assert picture.size == (64, 64) and picture.mode == "RGB"
    assert np.abs(np.subtract(middle(picture, COLOURS[5]), shoulder)).max() < 3
    large = pose_image(image, net, 128, 128)
    assert np.abs(np.subtract(middle(large, COLOURS[5]), 2 * shoulder)).max() < 6
    # Of a tall image the middle.
    middle_rows = pose_image(image, net, 48, 64)
    assert np.abs(np.subtract(middle(middle_rows, COLOURS[5]), shoulder - (0, 8))).max() < 3
    thick = np.asarray(pose_image(image, net, 512, 512, "xinsir"))
    assert thick.any(2).sum() > np.asarray(pose_image(image, net, 512, 512)).any(2).sum()


def test_no_person(net, person, tmp_path):
    Image.new("RGB", (80, 60), "gray").save(tmp_path / "wall.png")
    with pytest.raises(NoPersonFound, match=r"wall\.png \(80x60 pixels\): give a photograph"):
        pose_image(tmp_path / "wall.png", net, 64, 64)
    found = find_pose(person[0], net)
    assert found.shape == (64, 64) and found.name == "the photograph" and not found.seen.all()
    aside = found._replace(shape=(64, 640))  # at the left of a wide one
    with pytest.raises(NoPersonFound, match=r"photograph \(640x64 pixels\): the person is not in"):
        draw_pose(aside, 64, 64)
    with pytest.raises(ImageError, match=r"nowhere\.png: no such image file"):
        pose_image(tmp_path / "nowhere.png", net, 64, 64)


def test_references_are_bodies_with_the_joints_that_are_found(net, person, capsys):
    image, shoulder = person
    wall = np.full_like(image, 128)
    (body,), (other,) = find_bodies([[image], [wall]], NET)
    (joints,), (found,) = net([image])
    assert body.image is image and np.array_equal(body.keypoints, joints)
    assert np.array_equal(body.visibility, found) and found.any()
    assert np.abs(body.keypoints[0] - shoulder).max() < 3
    assert not np.any(other.visibility)
    said = capsys.readouterr().err
    assert "no joint is found in reference 1 of person 2\n" in said and "person 1" not in said
    ((unknown,),) = find_bodies([[image]], None)
    assert unknown.keypoints is None and "--pose-net finds them" in capsys.readouterr().err


def untrained(workdir, small_base, **settings):
    """A run of zero steps."""
    config = changed(get_config(), base=str(small_base), **settings)
    system, checkpoints = open_system(config), Checkpoints(workdir)
    trainable = split_model(system.model, system.table)[1]
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config.to_dict())
    checkpoints.close()
    return workdir


@pytest.fixture(scope="module")
def controlled(small_base, tmp_path_factory):
    """Of a method that reads the input pose."""
    settings = {"method": "tests.methods.additions:Controlled", "lr_hint": 1e-3}
    return untrained(tmp_path_factory.mktemp("controlled"), small_base, **settings)


@pytest.mark.slow
def test_bolid_reads_the_joints_of_its_references(small_base, person, tmp_path, capsys):
    """By the network that --pose-net names; the same joints of another one are the same image."""
    recogniser = str(ASSETS / "face_net" / "model.safetensors")
    settings = {"method": "bolid", "bolid_reduced": 8, "face_encoder": recogniser}
    method = untrained(tmp_path / "run", small_base, **settings)
    photo = tmp_path / "her.png"
    Image.fromarray(person[0]).save(photo)
    asked = ["--method-weights", method, "--prompt", "a man", "--reference", photo, "--no-crop"]
    asked += ["--scale", "face=1", "--start-merge-step", "-1"]
    for pose_net in ([], ["--pose-net", NET], ["--pose-net", NET]):
        run(small_base, tmp_path / "out", *asked, *pose_net)
    unknown, first, second = (pixels(tmp_path / "out" / f"0000{n}.png") for n in range(3))
    assert "their joints are unknown; --pose-net finds them" in capsys.readouterr().err
    assert np.array_equal(first, second) and not np.array_equal(first, unknown)
    note = json.loads(Image.open(tmp_path / "out" / "00001.png").text["settings"])
    assert note["pose_net"] == NET


@pytest.mark.slow
def test_a_method_follows_the_skeleton(small_base, controlled, person, net, tmp_path, capsys):
    photo, skeleton = tmp_path / "her.png", tmp_path / "skeleton.png"
    Image.fromarray(person[0]).save(photo)
    method = ["--method-weights", controlled, "--prompt", "a man"]
    pose = ["--pose", photo, "--pose-net", NET, "--pose-out", skeleton]
    run(small_base, tmp_path / "out", *method, *pose)
    said = capsys.readouterr().err
    assert f"joints of the most prominent person in {photo}; the network looks for no other" in said
    note = json.loads(Image.open(tmp_path / "out" / "00000.png").text["settings"])
    assert note["pose"] == str(photo) and note["pose_net"] == NET
    height, width = pixels(tmp_path / "out" / "00000.png").shape[:2]
    assert np.array_equal(pixels(skeleton), pose_image(photo, net, height, width))
    run(small_base, tmp_path / "out", *method, "--input", f"pose={skeleton}")
    first, second = (pixels(tmp_path / "out" / f"0000{n}.png") for n in range(2))
    assert np.array_equal(first, second)
    black = tmp_path / "black.png"
    Image.new("RGB", (width, height)).save(black)
    run(small_base, tmp_path / "out", *method, "--input", f"pose={black}")
    assert not np.array_equal(first, pixels(tmp_path / "out" / "00002.png"))


def test_errors_are_one_line(small_base, person, tmp_path, capsys):
    photo, skeleton = tmp_path / "her.png", tmp_path / "skeleton.png"
    Image.fromarray(person[0]).save(photo)
    (tmp_path / "notes.txt").write_text("no picture")

    def said(*arguments):
        return fails(capsys, small_base, tmp_path / "out", "--prompt", "a man", *arguments)

    pose = ["--pose", photo]
    assert "give --pose-net too, movenet:FILE.json" in said(*pose)
    assert "'yolo' is unknown" in said(*pose, "--pose-net", "yolo")
    assert "notes.txt: cannot be decoded" in said(
        "--pose", tmp_path / "notes.txt", "--pose-net", NET
    )
    twice = said(*pose, "--pose-net", NET, "--input", f"pose={photo}")
    assert "--input pose: --pose draws that image already" in twice
    for name in ("skeleton.jpg", "nowhere/skeleton.png"):
        wrong = said(*pose, "--pose-net", NET, "--pose-out", tmp_path / name)
        assert "give a .png file in a folder that exists" in wrong
    unread = said(*pose, "--pose-net", NET, "--pose-out", skeleton)
    assert "no ControlNet is loaded that follows a skeleton" in unread and str(photo) in unread
    assert skeleton.exists()  # to look at, at least


def test_options_without_a_photograph(small_base, capsys, tmp_path):
    options = ["--pose-net", NET, "--pose-style", "xinsir", "--pose-out", "x.png"]
    with pytest.raises(SystemExit):
        run(small_base, tmp_path / "out", *options)  # no prompt either
    said = capsys.readouterr().err
    for name in ("--pose-net", "--pose-style", "--pose-out"):
        assert f"warning: {name} has no effect without --pose\n" in said
