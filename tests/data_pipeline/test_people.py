"""Drawn people: reproducible, different people apart, features where the landmarks say."""

import json
import re
from dataclasses import fields, replace

import numpy as np
import pytest
from PIL import Image

from data_pipeline import people as command
from data_pipeline.drawing import people as api
from data_pipeline.drawing.canvas import Canvas
from data_pipeline.drawing.identities import GROUP, INNER, OUT_OF_DOMAIN, RANGES
from data_pipeline.drawing.pictures import SCENES
from data_pipeline.records.manifest import read_manifest
from tests.data_pipeline.crowd import N

PORTRAITS = (1, 0, 0)


def same(a, b):
    """Whether two batches of images agree in every field."""
    return all(
        all(np.array_equal(x[k], y[k]) for k in x) if isinstance(x, dict) else np.array_equal(x, y)
        for x, y in ((getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
    )


def test_same_seed_same_bytes(crowd):
    who, pictures, drawn = crowd
    assert same(drawn, api.render(who, pictures))
    other = api.render(who, api.draw_pictures(seed=2, count=N))
    assert (drawn.images != other.images).any(axis=(1, 2, 3)).all()


def test_a_picture_does_not_depend_on_its_batch(crowd):
    who, pictures, drawn = crowd
    order = np.random.default_rng(0).permutation(N)[:23]
    some = api.render(who.take(order), pictures.take(order))
    np.testing.assert_array_equal(some.images, drawn.images[order])
    np.testing.assert_array_equal(some.landmarks, drawn.landmarks[order])
    assert some.captions == [drawn.captions[i] for i in order]
    for i in range(0, N, 16):
        alone = api.render(who.take([i]), pictures.take([i]))
        np.testing.assert_array_equal(alone.images[0], drawn.images[i])


def test_example_is_stateless():
    several = api.examples("out_of_train", [4, 9, 4], [0, 7, 8])
    one = api.example("out_of_train", 9, 7)
    assert one.identity[0] == several.identity[1] and one.captions[0] == several.captions[1]
    np.testing.assert_array_equal(one.images[0], several.images[1])
    assert several.identity[0] == several.identity[2] != several.identity[1]
    np.testing.assert_array_equal(
        api.identity_of("in_train", 5).eye_spacing,
        api.make_identities("in_train", 6).eye_spacing[5:],
    )


def test_splits_hold_different_people():
    batches = {split: api.make_identities(split, 500) for split in api.SPLITS}
    names = np.concatenate([b.name for b in batches.values()])
    assert len(set(names)) == 2000
    looks = np.concatenate([b.eye_spacing for b in batches.values()])
    assert len(np.unique(looks)) == 2000  # nobody is drawn twice, and no number is used twice
    other_seed = api.make_identities("in_train", 500, seed=1)
    assert not np.isin(other_seed.eye_spacing, batches["in_train"].eye_spacing).any()
    with pytest.raises(ValueError, match="in_train, out_of_train"):
        api.make_identities("train", 3)
    with pytest.raises(ValueError, match="indices"):
        api.identity_of("in_train", 1_000_000)


def test_attributes_stay_in_their_ranges():
    who = api.make_identities("in_train", 2000)
    children = who.age == 0
    for name, (low, high) in RANGES.items():
        values = getattr(who, name)[~children]
        slack = 0.2 if name in ("build", "brow_thickness", "chin") else 0  # women's are smaller
        assert values.min() >= low * (1 - 0.3 * (slack > 0)) - 1e-9, name
        assert values.max() <= high + 1e-9, name
    assert (who.hair < 10).all() and (who.hair_colour < 7).all()
    assert not (who.beard[who.feminine | children] > 0).any()
    assert not (who.hair[who.feminine | children] < 2).any()  # none of them is bald
    for column in ("class_word", "hair", "hair_colour", "beard", "glasses", "eye_colour"):
        assert np.bincount(getattr(who, column)).min() > 20, column


def test_out_of_domain_is_never_shown_in_training():
    strangers = api.make_identities("out_of_domain", 500)
    assert (strangers.hair >= 10).all() and (strangers.hair_colour >= 7).all()
    for name in ("skin", "nose_width", "mouth_width"):
        low, high = RANGES[name]
        outside = (getattr(strangers, name) < low) | (getattr(strangers, name) > high)
        assert outside.all(), name
    assert set(OUT_OF_DOMAIN) <= set(RANGES)


def test_look_alikes_differ_in_the_inner_face_only():
    doubles = api.make_identities("look_alikes", 3 * GROUP)
    for start in range(0, 3 * GROUP, GROUP):
        group = doubles.take(slice(start, start + GROUP))
        for field in fields(group):
            values = getattr(group, field.name)
            if field.name in ("name", "number"):
                continue
            if field.name not in INNER:
                assert (values == values[0]).all(), field.name
            elif field.name != "eye_colour":
                assert len(np.unique(values)) == GROUP, field.name
    assert len(np.unique(doubles.skin)) == 3
    # In the same image only the inner face differs, and there it does.
    pictures = api.draw_pictures(seed=4, count=1, framing_weights=PORTRAITS).take([0] * GROUP)
    drawn = api.render(doubles.take(slice(0, GROUP)), pictures)
    differ = (drawn.images != drawn.images[:1]).any(axis=(0, -1))
    x0, y0, x1, y1 = np.rint(drawn.face_box[0]).astype(int)
    glasses = 3  # the temples of glasses may exceed the face box by a few pixels
    assert differ[y0:y1, x0:x1].any()
    differ[y0:y1, x0 - glasses : x1 + glasses] = False
    assert not differ.any()


def test_boxes_landmarks_and_frame(crowd):
    who, _, drawn = crowd
    x0, y0, x1, y1 = drawn.face_box.T
    assert (drawn.face_box >= 0).all() and (drawn.face_box <= 64).all()
    for k in range(5):
        x, y = drawn.landmarks[:, k].T
        assert ((x0 <= x) & (x <= x1) & (y0 <= y) & (y <= y1)).all()
    left_eye, right_eye, nose, left_mouth, right_mouth = drawn.landmarks.transpose(1, 0, 2)
    assert (left_eye[:, 0] < right_eye[:, 0]).all()
    assert (left_mouth[:, 0] < right_mouth[:, 0]).all()
    assert (nose[:, 1] > (left_eye + right_eye)[:, 1] / 2).all()
    portrait = drawn.attributes["framing"] == "portrait"
    height = (y1 - y0)[portrait] / 64
    assert 0.46 < height.min() and height.max() < 0.66
    assert 0.50 < height.mean() < 0.60


def test_features_are_where_the_landmarks_say():
    """Change one feature's colour or width: the difference must be at its landmark."""
    n, size = 120, 128
    who = api.make_identities("in_train", n)
    who = replace(who, glasses=0 * who.glasses, hair=np.where(who.hair == 6, 2, who.hair))
    pictures = api.draw_pictures(seed=6, count=n, framing_weights=PORTRAITS)
    pictures = replace(
        pictures, gaze=0 * pictures.gaze, hat=0 * pictures.hat, tilt=0 * pictures.tilt
    )
    pictures = replace(pictures, pose=0 * pictures.pose, turn=0.5 * pictures.turn)
    drawn = api.render(who, pictures, size)

    def changed(**traits):
        other = api.render(replace(who, **traits), pictures, size)
        return (other.images != drawn.images).any(-1)

    eyes = changed(eye_colour=(who.eye_colour + 1) % 5)
    mouths = changed(lip_colour=(who.lip_colour + 1) % 3)
    noses = changed(nose_width=who.nose_width + 0.05)
    for i in range(n):
        left, right, nose, left_mouth, right_mouth = drawn.landmarks[i]
        rows, columns = np.nonzero(eyes[i])
        for eye, side in ((left, columns < nose[0]), (right, columns >= nose[0])):
            assert (
                np.hypot(columns[side].mean() + 0.5 - eye[0], rows[side].mean() + 0.5 - eye[1]) < 3
            )
        rows, columns = np.nonzero(mouths[i])
        # Lips end in a point, whose last pixel may be too faint to count.
        assert -1.2 < columns.min() - left_mouth[0] + 0.5 < 3
        assert -1.2 < right_mouth[0] - columns.max() - 0.5 < 3
        assert rows.min() - 2 < left_mouth[1] < rows.max() + 2
        rows, columns = np.nonzero(noses[i])
        assert abs((columns.min() + columns.max() + 1) / 2 - nose[0]) < 2
        assert rows.min() < nose[1] < rows.max() + 2


def test_eyes_do_not_look_like_skin(crowd):
    """What an aligner needs to find is distinct, in all framings but the widest."""
    who, _, drawn = crowd
    near = (drawn.attributes["framing"] == "portrait") & (drawn.attributes["gaze"] == "camera")
    for eye in (0, 1):
        x, y = np.floor(drawn.landmarks[:, eye]).astype(int).T
        contrast = np.abs(drawn.images[np.arange(N), y, x] - who.skin_rgb * 255).sum(1)
        assert np.mean(contrast[near] > 90) > 0.97


def test_windows_cut_nothing_off(crowd, monkeypatch):
    """Painting in small windows is an optimisation, so it must equal painting whole frames."""
    who, pictures, drawn = crowd

    def whole(self, window, rows):
        height, width = self.pixels.shape[2:]
        return np.zeros(len(rows), int), np.zeros(len(rows), int), width, height

    monkeypatch.setattr(Canvas, "_window", whole)
    np.testing.assert_array_equal(api.render(who, pictures).images, drawn.images)
    strangers = api.make_identities("out_of_domain", N)
    slow = api.render(strangers, pictures).images
    monkeypatch.undo()
    np.testing.assert_array_equal(api.render(strangers, pictures).images, slow)


def test_an_aligned_crop_puts_everybodys_features_in_place(crowd):
    """Landmarks after the best similarity transform onto their mean shape: small residuals only."""
    drawn = crowd[2]
    points = drawn.landmarks[..., 0] + 1j * drawn.landmarks[..., 1]
    points = points - points.mean(1, keepdims=True)
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    mean = points[0]
    for _ in range(3):
        turn = (mean[None] * points.conj()).sum(1)
        points = points * (turn / np.abs(turn))[:, None]
        mean = points.mean(0) / np.linalg.norm(points.mean(0))
    between_eyes = abs(mean[1] - mean[0])
    assert np.abs(points - mean).max() < 0.55 * between_eyes
    assert np.abs(points - mean).mean() < 0.15 * between_eyes


def test_keypoints():
    drawn = api.render(
        api.make_identities("in_train", 300),
        api.draw_pictures(seed=2, count=300, framing_weights=(1, 1, 1)),
    )
    inside = ((drawn.keypoints > 0) & (drawn.keypoints < 64)).all(-1)
    assert not (drawn.visibility & ~inside).any()
    framing, clothes = drawn.attributes["framing"], drawn.attributes["clothes"]
    assert (drawn.visibility == inside)[clothes != "cloak"].all()
    cloaked = (clothes == "cloak") & (framing == "full")
    assert cloaked.any() and not drawn.visibility[clothes == "cloak"][:, 6:10].any()
    full = (framing == "full") & (clothes != "cloak")
    assert full.any() and drawn.visibility[full][:, [0, 1, 6, 7, 8, 9, 10, 11]].all()
    portrait = framing == "portrait"
    assert drawn.visibility[portrait][:, :2].any(1).mean() > 0.8
    # COCO's "left" is the person's, so it is on the image's right; feet are below knees.
    assert (drawn.keypoints[:, 0, 0] > drawn.keypoints[:, 1, 0]).all()
    assert (drawn.keypoints[:, 10, 1] > drawn.keypoints[:, 8, 1]).all()


def test_hands_have_the_colour_of_skin_or_gloves():
    """Wrists are where hands begin: a point a little further along the forearm is skin."""
    who = api.make_identities("in_train", 200)
    pictures = api.draw_pictures(seed=3, count=200, framing_weights=(0, 0, 1))
    calm = replace(pictures, light_strength=0 * pictures.unit, warmth=0 * pictures.unit)
    calm = replace(calm, brightness=1 + 0 * pictures.unit, pose=0 * pictures.pose)
    drawn = api.render(who, calm, size=128)
    bare = (drawn.attributes["clothes"] != "space suit") & drawn.visibility[:, 4]
    elbow, wrist = drawn.keypoints[bare, 2], drawn.keypoints[bare, 4]
    hand = wrist + 0.2 * (wrist - elbow)
    x, y = np.clip(np.floor(hand), 0, 127).astype(int).T
    colour = drawn.images[np.flatnonzero(bare), y, x]
    seen = (hand > 1).all(1) & (hand < 127).all(1)
    assert seen.sum() > 50
    assert (np.abs(colour - who.skin_rgb[bare] * 255).max(1)[seen] < 12).all()


def test_command_writes_a_data_set(tmp_path, capsys):
    arguments = ["--identities", "3", "--pictures", "4", "--split", "look_alikes", "--seed", "5"]
    for name in ("a", "b"):
        command.main(["--out", str(tmp_path / name), *arguments])
    out = tmp_path / "a"
    files = sorted(p.relative_to(out) for p in out.rglob("*") if p.is_file())
    assert len(files) == 12 + 3
    assert all((out / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files)

    records = read_manifest(out)
    truth = [json.loads(line) for line in (out / "ground_truth.jsonl").read_text().splitlines()]
    assert len(records) == len(truth) == 12 and len({r.identity for r in records}) == 3
    for record, line in zip(records, truth, strict=True):
        assert record.image.endswith(line["image"]) and record.background and record.body
        assert list(record.face_box) == line["face_box"]
        assert np.shape(line["landmarks"]) == (5, 2) and np.shape(line["keypoints"]) == (12, 2)
        assert len(line["visibility"]) == 12 and line["attributes"]["scene"] in SCENES
        assert Image.open(record.image).size == (64, 64)
    assert Image.open(out / "sheet.png").size == (4 * 64, 3 * 64)

    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("keep")
    with pytest.raises(SystemExit, match="^error: .*--force"):
        command.main(["--out", str(tmp_path / "c"), *arguments])
    with pytest.raises(SystemExit, match="^error: "):
        command.main(["--out", str(tmp_path / "d"), "--identities", "0"])


def test_masks_are_where_the_person_and_the_face_are(crowd):
    """Outside the person's mask nothing but the light depends on the person."""
    who, pictures, drawn = crowd
    person, face = api.render_masks(who, pictures)
    assert person.shape == face.shape == drawn.images.shape[:3] and person.dtype == np.uint8
    assert (face <= person).all()
    other = api.render(api.make_identities("out_of_train", N), pictures)
    theirs, _ = api.render_masks(api.make_identities("out_of_train", N), pictures)
    same_clothes = (drawn.attributes["clothes"] == other.attributes["clothes"])[:, None, None]
    scene = (person == 0) & (theirs == 0) & same_clothes
    difference = drawn.images[scene].astype(int) - other.images[scene]
    assert np.abs(difference).max() <= 1  # less than half a level of coverage counts as none
    bare = (drawn.attributes["hat"] == "none") & (drawn.attributes["hair"] == "bald")
    for mask, (x0, y0, x1, y1) in zip(face[bare], drawn.face_box[bare], strict=True):
        rows, columns = np.nonzero(mask > 127)
        found = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        np.testing.assert_allclose(found, (x0, y0, x1, y1), atol=1.5)
    assert bare.any() and (face > 127).any((1, 2)).mean() > 0.99


def faults_with(kind, k, rows=N):
    """Faults of one kind at part k only."""
    faults = {"missing": np.zeros((rows, 5), bool), "smeared": np.zeros((rows, 5), bool)}
    faults["offset"] = np.zeros((rows, 5, 2))
    faults[kind][:, k] = [0.4, 0.0] if kind == "offset" else True
    return api.Faults(**faults)


@pytest.mark.slow
def test_faults_spoil_their_own_part_and_no_other(crowd):
    who, pictures, drawn = crowd
    whole = drawn.images.astype(int)

    def change(kind, k):
        spoiled = api.render(who, pictures, faults=faults_with(kind, k))
        np.testing.assert_array_equal(spoiled.landmarks, drawn.landmarks)
        return np.abs(spoiled.images - whole).sum(-1)

    without = [change("missing", k) for k in range(5)]  # where each part is painted
    for kind in ("missing", "smeared", "offset"):
        for k in range(5):
            assert faults_with(kind, k).present.sum(0).tolist() == [N * (i != k) for i in range(5)]
            changed = change(kind, k)
            assert (changed * (without[k] > 0)).any((1, 2)).mean() > 0.8, (kind, k)
            if kind == "offset":  # a part that moves may come to lie on another
                continue
            for j in set(range(5)) - {k}:
                strong = (without[j] > 60) & (without[k] == 0)
                assert changed[strong].mean() < 0.15 * without[j][strong].mean(), (kind, k, j)


def test_a_fault_does_not_depend_on_its_batch(crowd):
    who, pictures, _ = crowd
    faults = api.Faults.draw(np.arange(N), rate=0.8)
    spoiled = api.render(who, pictures, faults=faults).images
    for row in (3, 11):
        alone = api.render(who.take([row]), pictures.take([row]), faults=faults.take([row]))
        np.testing.assert_array_equal(alone.images[0], spoiled[row])


def test_drawn_faults_come_at_their_rate():
    faults = api.Faults.draw(np.arange(4000), rate=0.3)
    assert abs((~faults.present).mean() - 0.3) < 0.02
    moved = (faults.offset != 0).any(-1)
    for kind in (faults.missing, faults.smeared, moved):
        assert abs(kind.mean() - 0.1) < 0.02
    assert (faults.missing.astype(int) + faults.smeared + moved).max() == 1


def test_wider_framings_are_named(crowd):
    drawn = crowd[2]
    for framing, word in (("half", "half-length"), ("full", "full-length")):
        named = np.array([word in caption for caption in drawn.captions])
        np.testing.assert_array_equal(named, drawn.attributes["framing"] == framing)


NOUNS = {"shelf": "(?:book)?shelf", "boat": "boat", "planet": "planet"}


def test_objects_are_on_the_side_that_captions_name():
    drawn = api.examples("in_train", np.arange(600), np.arange(600), size=8)
    things = {thing for pair in api.OBJECTS.values() for thing in pair} - {"none"}
    checked = set()
    for i, text in enumerate(drawn.backgrounds):
        for thing in things:
            noun = NOUNS.get(thing, thing)
            # Up to the next comma or "and", a thing's own side.
            found = re.search(
                rf"{noun}(?:(?! and |,).)*? (?:on|to) the (?:far )?(left|right)", text
            )
            if found:
                assert drawn.attributes[f"{found.group(1)}_object"][i] == thing, text
                checked.add((thing, found.group(1)))
    assert len(checked) >= 2 * (len(things) - 2)
