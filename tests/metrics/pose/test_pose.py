"""Pose metrics: formulas by hand, the miniature's judge on drawn people, and what is missing."""

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from data_pipeline.drawing.people import examples
from data_pipeline.records.drawn import records_of
from data_pipeline.records.schema import Record
from persongen_jax.metrics.base import Generated, Known, People
from persongen_jax.metrics.judges import Judges, NoJudge
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.pose.scores import SIGMAS, oks, pck, square_error
from persongen_jax.metrics.pose.targets import Target, as_inputs, of_record
from persongen_jax.metrics.registry import open_metrics
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.pose_nets import open_pose_net

NAMES = ("pose_error", "pck", "oks", "joints_found")
NET = f"keypoints:{ASSETS / 'judges' / 'face_detector'}"
NOBODY = Known("set", People(lambda: []), People(lambda: []))
COUNT, SIDE = 64, 64


@pytest.fixture(scope="module")
def metrics():
    return open_metrics(ConfigDict({"metrics": NAMES, "pose_net": NET}))


@pytest.fixture(scope="module")
def drawn():
    """Whole and half figures of strangers."""
    number = np.arange(COUNT) + 9_000_000
    return examples("out_of_train", np.arange(COUNT) // 4, number, framing_weights=(0, 1, 1))


@pytest.fixture(scope="module")
def targets(drawn):
    records = records_of(drawn, [str(i) for i in range(COUNT)])
    return [of_record(record, (SIDE, SIDE), (SIDE, SIDE)) for record in records]


def measured(metrics, images, targets, owners=None):
    owners = owners or ["a"] * len(images)
    return measure_all(metrics, Generated(images, owners, None, as_inputs(targets)), NOBODY)


# ---- formulas ----------------------------------------------------------------------------------


def test_formulas_by_hand():
    steps = np.zeros((3, 12, 2))
    steps[0, 0], steps[0, 1] = (3, 4), (6, 8)
    counted = np.zeros((3, 12), bool)
    counted[0, :2] = counted[1] = True
    sizes = np.array([(50, 100), (10, 10), (10, 10)])
    found = square_error(steps, counted, sizes)
    assert found[0] == pytest.approx(((0.03**2 + 0.08**2) + (0.06**2 + 0.16**2)) / 2)
    assert found[1] == 0 and np.isnan(found[2])
    boxes = np.array([(0, 0, 40, 60), (5, 5, 5, 5), (0, 0, 1, 1)])
    found = pck(steps, counted, boxes, 0.1)  # 5 and 10 pixels; a tenth is 6
    assert found[0] == 0.5 and np.isnan(found[1:]).all()
    found = oks(steps, counted, np.array([1000.0, 0, 1]))
    by_coco = [np.exp(-d / (2 * 0.079) ** 2 / 1000 / 2) for d in (25, 100)]
    assert found[0] == pytest.approx(np.mean(by_coco)) and np.isnan(found[1:]).all()
    assert SIGMAS.shape == (12,) and SIGMAS.argmax() == 6  # hips are the least exact


def test_a_records_pose_follows_its_crop(drawn):
    record = records_of(drawn, ["0"])[0]
    target = of_record(record, (SIDE, 2 * SIDE), (2 * SIDE, 2 * SIDE))  # the middle, twice as large
    moved = (np.array(record.keypoints) * 2) - [SIDE, 0]
    shift = target.joints - moved
    assert np.allclose(shift, shift[0]) and abs(shift[0, 1]) < 1e-6
    assert not (target.known & (target.joints[:, 0] > 2 * SIDE)).any()
    assert of_record(Record("0", "a", ""), (8, 8), (8, 8)) is None


# ---- the miniature's judge ---------------------------------------------------------------------


def test_the_judge_finds_drawn_joints_and_tells_poses_apart(metrics, drawn, targets):
    true = measured(metrics, drawn.images, targets, [str(n) for n in drawn.identity])
    assert true["pose_error"]["mean"] < 0.01 and true["pck"]["mean"] > 0.9
    assert true["oks"]["mean"] > 0.8 and true["joints_found"]["mean"] > 0.9
    known = sum(int(target.known.sum()) for target in targets)
    assert true["oks"]["joints"] == known > 300
    assert f"of {known:,} known joints are found" in true["oks"]["note"]
    assert true["oks"]["judge"] == NET and true["pck"]["alpha"] == 0.1
    low, high = (true["oks"][end] for end in ("low", "high"))
    assert low < true["oks"]["mean"] < high  # over people
    other = measured(metrics, drawn.images, targets[1:] + targets[:1])
    assert other["oks"]["mean"] < true["oks"]["mean"] / 2
    assert other["pose_error"]["mean"] > 3 * true["pose_error"]["mean"]


def test_the_face_is_part_of_its_points(drawn):
    """COCO's 17, with eyes and nose of the landmarks; no ears."""
    net = open_pose_net(NET)
    points, scores = net.points(drawn.images)
    assert points.shape == (COUNT, 17, 2) and not scores[:, 3:5].any()
    joints, found = net(drawn.images)
    assert np.array_equal(joints, points[:, 5:]) and np.array_equal(found, scores[:, 5:] == 1)
    there = scores[:, 0] == 1
    assert there.mean() > 0.9 and np.array_equal(scores[:, 1] == 1, there)
    far = points[there][:, [2, 1, 0]] - drawn.landmarks[there][:, :3]  # the right eye is first
    assert np.median(np.linalg.norm(far, axis=-1)) < 1 and np.abs(far).max() < 8


def test_joints_are_pixels_of_images_that_are_not_square(metrics, drawn):
    wide = drawn.images[:3, 10:-10]
    square = np.pad(wide, ((0, 0), (10, 10), (0, 0), (0, 0)), mode="edge")
    joints, found = metrics[0].pose.net([*wide, *square])
    assert np.allclose(joints[:3], joints[3:] - [0, 10]) and (found[:3] == found[3:]).all()
    assert found[:3].any() and joints.shape == (6, 12, 2)


def test_the_person_of_a_pose_image_has_the_pose(metrics, drawn, tmp_path):
    path = tmp_path / "pose.png"
    Image.fromarray(drawn.images[0]).save(path)
    grey = tmp_path / "grey.png"
    Image.fromarray(np.full((SIDE, SIDE, 3), 128, np.uint8)).save(grey)
    poses = [Target(image=str(path)), Target(image=str(path)), Target(image=str(grey))]
    found = measured(metrics, drawn.images[:3], poses)
    values = metrics[0](Generated(drawn.images[:3], ["a"] * 3, None, as_inputs(poses)), NOBODY)
    assert values.values[0] == 0 < values.values[1] and np.isnan(values.values[2])
    assert "found the poses in 2 pose images, in 1 of which nobody is found" in found["oks"]["note"]
    assert found["oks"]["missing"] == 1
    broken = tmp_path / "broken.png"
    broken.write_text("no picture")
    found = measured(metrics, drawn.images[:2], [Target(image=str(broken)), poses[0]])
    assert found["oks"]["missing"] == 1 and str(broken) in found["oks"]["note"]


def test_what_is_not_known_or_found_is_counted(metrics, drawn, targets):
    nobody = np.full((SIDE, SIDE, 3), 128, np.uint8)
    images = [drawn.images[0], drawn.images[1], nobody]
    found = measured(metrics, images, [targets[0], None, targets[2]])
    assert found["oks"]["missing"] == 2 and found["oks"]["n"] == 1
    assert found["joints_found"]["n"] == 2 and found["joints_found"]["missing"] == 1
    assert "1 images have none that is known" in found["oks"]["note"]
    single = np.zeros(12, bool)
    single[0] = True  # a joint, and so no extent
    alone = Target(targets[0].joints, single)
    found = measured(metrics, images[:1], [alone])
    assert found["oks"]["missing"] == 1 and found["pose_error"]["n"] == 1


def test_no_pose_at_all(metrics, drawn, capsys):
    assert as_inputs([None, None]) == {}
    assert measured(metrics, drawn.images[:2], [None, None]) == {}
    said = capsys.readouterr().out
    assert (
        "OKS gives no figure: no image's pose is known: give keypoints in the references'" in said
    )


def test_faults_of_the_network():
    with pytest.raises(NoJudge, match=r"config\.pose_net names no pose network"):
        _ = Judges(ConfigDict({"pose_net": ""})).pose
    for name in ("openpose", "movenet", "keypoints:"):
        with pytest.raises(ValueError, match=f"'{name}' is unknown: give movenet:FILE"):
            open_pose_net(name)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_pose_net("movenet:nowhere.json")
