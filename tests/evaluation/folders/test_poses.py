"""Poses in metadata.jsonl: every form, refusals, and the figures of a scored folder."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.drawing.people import examples
from persongen_jax import evaluate
from persongen_jax.evaluation.folders.entries import LayoutError
from persongen_jax.evaluation.folders.layouts import read_images
from persongen_jax.evaluation.folders.poses import read_pose
from persongen_jax.miniature.__main__ import ASSETS

TWELVE = [[10.0 + i, 20.0 + 2 * i] for i in range(12)]
HEAD = [[15.0, 2.0]] * 5
NET = f"pose_net=keypoints:{ASSETS / 'judges' / 'face_detector'}"


def test_forms_of_keypoints(tmp_path):
    def read(**line):
        return read_pose(line, tmp_path, "here")

    assert read() is None and read(prompt="a person") is None
    plain = read(keypoints=TWELVE)
    assert np.array_equal(plain.joints, TWELVE) and plain.known.all()
    assert plain.box == (10, 20, 21, 42) and plain.area is None
    whole = read(keypoints=HEAD + TWELVE, area=30)
    assert np.array_equal(whole.joints, TWELVE) and whole.area == 30
    assert whole.box == (10, 2, 21, 42)  # the head is in it
    hidden = [v for x, y in TWELVE for v in (x, y, 2)]
    hidden[2] = 0
    flat = read(keypoints=hidden, person_box=[0, 1, 2, 3])
    assert np.array_equal(flat.joints, TWELVE) and flat.box == (0, 1, 2, 3)
    assert flat.known.tolist() == [False] + [True] * 11
    seen = read(keypoints=TWELVE, visibility=[False] * 2 + [True] * 10)
    assert seen.known.sum() == 10 and seen.box == (12, 24, 21, 42)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ({"keypoints": TWELVE[:3]}, "COCO's 17 joints or the last 12"),
        ({"keypoints": "left"}, "COCO's 17 joints or the last 12"),
        ({"keypoints": [[0.1, 0.9]] * 12}, "are these fractions"),
        ({"keypoints": [[float("nan"), 1]] * 12}, "no finite numbers"),
        ({"keypoints": TWELVE, "visibility": [1] * 12}, "true or false for each"),
        ({"keypoints": TWELVE, "pose": "a.png"}, "give one of them"),
        ({"pose": "nowhere.png"}, "'nowhere.png': no such image"),
        ({"visibility": [True] * 12}, "visibility without keypoints"),
        ({"keypoints": TWELVE, "person_box": [1, 2, 3]}, r"give \[x0, y0, x1, y1\]"),
        ({"keypoints": TWELVE, "person_box": [3, 2, 1, 4]}, "is empty"),
        ({"keypoints": TWELVE, "area": 0}, "square pixels"),
    ],
)
def test_refusals(line, said, tmp_path):
    with pytest.raises(LayoutError, match=f"here: .*{said}"):
        read_pose(line, tmp_path, "here")


def test_a_folder_is_scored_by_its_poses(tmp_path, capsys):
    drawn = examples(
        "out_of_train", [0, 0, 1, 1], np.arange(4) + 9_000_000, framing_weights=(0, 0, 1)
    )
    folder, lines = tmp_path / "made", []
    folder.mkdir()
    for i, image in enumerate(drawn.images):
        Image.fromarray(image).save(folder / f"{i}.png")
        line = {"file_name": f"{i}.png", "person": f"p{i // 2}"}
        if i < 3:
            line |= {"keypoints": drawn.keypoints[i].tolist()}
            line |= {"visibility": drawn.visibility[i].tolist()}
        lines.append(line)
    Image.fromarray(drawn.images[0]).save(tmp_path / "pose.png")
    lines[1] = {"file_name": "1.png", "person": "p0", "pose": "../pose.png"}
    (folder / "metadata.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert not any("not read" in note for note in read_images("made", folder).notes)
    out = tmp_path / "out"
    words = ["--metrics", "oks", "pck", "pose_error", "--encoder", NET, "--out", str(out)]
    evaluate.main(["--images", str(folder), *words, "--cache", str(tmp_path / "cache")])
    found = json.loads((out / "scores.json").read_text())["metrics"]
    assert found["oks"]["n"] == 3 and found["oks"]["not_measured"] == ["3.png"]
    assert "1 images have none that is known" in capsys.readouterr().out
    for name in ("scores.md", "scores.html"):
        assert "the network found the poses in 1 pose images" in (out / name).read_text()
    rows = (out / "images.csv").read_text().splitlines()
    column = rows[0].split(",").index("oks")
    first, second, third, fourth = (row.split(",")[column] for row in rows[1:])
    assert float(first) > 0.8 and float(third) > 0.8  # where they were drawn
    assert float(second) < float(first) and fourth == ""
