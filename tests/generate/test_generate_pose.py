"""--pose: the skeleton of the person in a photograph, and what is said where there is none."""

import json

import numpy as np
import pytest
from PIL import Image

from configs.first_light import get_config
from data_pipeline.drawing.people import examples
from data_pipeline.pictures.reading import ImageError
from data_pipeline.pose.body18 import COLOURS
from persongen_jax.generate.pose import NoPersonFound, draw_pose, find_pose, pose_image
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.pose_nets import open_pose_net
from persongen_jax.systems.open import open_system
from persongen_jax.training.checkpoint import Checkpoints
from persongen_jax.training.partition import split_model
from tests.generate.command import pixels, run
from tests.generate.test_generate_errors import fails

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
    # Twice as large, and of a wide image the middle.
    large = pose_image(image, net, 128, 128)
    assert np.abs(np.subtract(middle(large, COLOURS[5]), 2 * shoulder)).max() < 6
    wide = np.pad(image, ((0, 0), (16, 16), (0, 0)), mode="edge")
    again = pose_image(wide, net, 64, 64)
    assert np.abs(np.subtract(middle(again, COLOURS[5]), shoulder)).max() < 4


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


@pytest.fixture(scope="module")
def controlled(small_base, tmp_path_factory):
    """A run of zero steps of a method that reads the input pose."""
    config = get_config()
    config.base, config.method = str(small_base), "tests.methods.additions:Controlled"
    config.lr_hint = 1e-3
    system = open_system(config)
    workdir = tmp_path_factory.mktemp("controlled")
    checkpoints = Checkpoints(workdir)
    trainable = split_model(system.model, system.table)[1]
    checkpoints.save(0, trainable, {"count": np.zeros(1)}, config.to_dict())
    checkpoints.close()
    return workdir


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
