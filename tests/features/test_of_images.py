"""Features of images are kept by content, and computed once for each."""

from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.faces.detectors import Detection
from persongen_jax.features.of_images import KeptFeatures
from persongen_jax.features.store import FeatureTable, digest_of, stored_spec
from persongen_jax.metrics.face_judge import FaceJudge
from persongen_jax.metrics.feature_judges import ClipJudge, CmmdJudge, InceptionJudge

FACE = Detection((1.5, 2.0, 3.0, 4.25), np.arange(10.0).reshape(5, 2) / 3, 0.7)
WEIGHTS = {"kernel": np.ones((2, 3), np.float32)}


def pictures(*greys):
    return [np.full((4, 4 + grey % 3, 3), grey, np.uint8) for grey in greys]


class Mean:
    """Counts what it is asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, images):
        self.asked += [int(image[0, 0, 0]) for image in images]
        means = np.array([[image.mean(), 1] for image in images], np.float32)
        return {"features": means, "found": means[:, 0] > 2}


def test_each_image_once_whatever_its_name_and_also_for_the_next_process(tmp_path):
    mean = Mean()
    kept = KeptFeatures(tmp_path, "grey", WEIGHTS)
    rows = kept(pictures(1, 2, 1), mean)
    assert mean.asked == [1, 2] and rows["features"][:, 0].tolist() == [1, 2, 1]
    again = KeptFeatures(tmp_path, "grey", WEIGHTS)
    rows = again(pictures(3, 1), mean)
    assert mean.asked == [1, 2, 3] and rows["found"].tolist() == [True, False]
    assert (again.computed, again.found) == (1, 1)
    assert rows["features"].dtype == np.float32 and rows["found"].dtype == bool


def test_other_weights_or_another_preparation_have_their_own_rows(tmp_path):
    mean = Mean()
    KeptFeatures(tmp_path, "grey", WEIGHTS)(pictures(1), mean)
    KeptFeatures(tmp_path, "grey", {"kernel": 2 * WEIGHTS["kernel"]})(pictures(1), mean)
    KeptFeatures(tmp_path, "grey, turned", WEIGHTS)(pictures(1), mean)
    assert mean.asked == [1, 1, 1]


def test_known_digests_are_believed(tmp_path):
    images = pictures(1, 2)

    class Named(list):
        digests = [digest_of(image) for image in images]
        names = ["ann/1.png", "ann/2.png"]

    mean = Mean()
    KeptFeatures(tmp_path, "grey", WEIGHTS)(images, mean)
    KeptFeatures(tmp_path, "grey", WEIGHTS)(Named([None, None]), mean)  # nothing is read
    assert mean.asked == [1, 2]
    with pytest.raises(ValueError, match="ann/2.png: its features by nets are not finite.*1 of 2"):
        KeptFeatures(tmp_path, "nets", WEIGHTS)(
            Named(images), lambda some: {"features": np.array([[0.0], [np.nan]])}
        )
    (only,) = tmp_path.iterdir()  # nothing was stored of the second
    assert stored_spec(only) == {"features": ((2,), np.float32), "found": ((), bool)}


def test_a_folder_without_rows_has_no_spec(tmp_path):
    assert stored_spec(tmp_path / "none") is None
    (tmp_path / "0.safetensors").write_bytes(b"damaged")
    assert stored_spec(tmp_path) is None
    spec = {"a": ((2, 3), np.dtype(np.int16))}
    table = FeatureTable(tmp_path, spec)
    table.put(b"k" * 16, {"a": np.zeros((2, 3), np.int16)})
    table.flush()
    assert stored_spec(tmp_path) == spec


def test_judges_keep_features_and_faces(tmp_path):
    class Clip:
        family, image_size, networks = "CLIP", 8, (WEIGHTS,)
        vision_config = {"hidden_act": "gelu"}
        calls, config = 0, {"heads": 2}

        def image_features(self, images):
            self.calls += len(images)
            return np.array([[image.mean()] for image in images], np.float32)

    class Faces(Clip):
        detector_name, size, dim, licence, crop = "yunet", 8, 1, "", "aligned"

        def detect(self, images):
            return [FACE if image.mean() > 2 else None for image in images]

        def embed(self, images, detections):
            return self.image_features(images), np.array([each is not None for each in detections])

    clip, faces = Clip(), Faces()
    for _ in range(2):
        judges = ClipJudge(clip), FaceJudge(faces)
        for judge in judges:
            judge.keep(tmp_path)
        made = SimpleNamespace(images=pictures(1, 5), once=lambda key, make: make())
        assert judges[0].features(made).tolist() == [[1], [5]]
        assert judges[1].embed(made)[1].tolist() == [False, True]
        missed, found = judges[1].detections(made)
        assert missed is None and (found.box, found.score) == (FACE.box, FACE.score)
        assert np.array_equal(found.landmarks, FACE.landmarks)
    assert clip.calls == faces.calls == 2
    boxes = FaceJudge(faces)
    faces.crop = "box"
    boxes.keep(tmp_path)
    boxes.embed(made)
    assert faces.calls == 4  # another crop, other rows


@pytest.mark.parametrize("act", ["gelu", "quick_gelu"])
def test_features_of_one_files_weights_differ_by_its_config(act, tmp_path):
    """Such as an activation that was guessed for a file, and is then said by a folder."""

    class Clip:
        family, image_size, networks = "CLIP", 8, (WEIGHTS,)

        def __init__(self, hidden_act, value):
            self.vision_config, self.value = {"hidden_act": hidden_act}, value

        def image_features(self, images):
            return np.full((len(images), 1), self.value, np.float32)

    def features(clip):
        judge = ClipJudge(clip)
        judge.keep(tmp_path)
        made = SimpleNamespace(images=pictures(1), once=lambda key, make: make())
        return judge.features(made).item()

    assert features(Clip("gelu", 1.0)) == 1.0
    assert features(Clip(act, 2.0)) == (1.0 if act == "gelu" else 2.0)


def test_nobody_has_no_face(tmp_path):
    class Faces:
        detector_name, size, dim, licence, crop, networks = "yunet", 8, 3, "", "box", ()
        config: dict = {}

        def detect(self, images):
            return []

        def embed(self, images, detections):
            return np.zeros((0, self.dim), np.float32), np.zeros(0, bool)

    judge = FaceJudge(Faces())
    judge.keep(tmp_path)
    assert judge.embedder.embed([])[0].shape == (0, 3) and judge.embedder.detect(iter([])) == []


def test_resizes_of_inception_have_their_own_rows_with_logits(tmp_path):
    class Inception:
        networks, calls = (WEIGHTS,), 0

        def __init__(self, variant):
            self.variant = variant

        def outputs(self, images):
            self.calls += len(images)
            means = np.array([[image.mean()] for image in images], np.float32)
            return means, np.concatenate([means, -means], 1)

    made = SimpleNamespace(images=pictures(1, 5), once=lambda key, make: make())
    counts = []
    for variant in ("clean", "pytorch-fid", "clean"):
        judge = InceptionJudge(Inception(variant))
        judge.keep(tmp_path)
        assert judge.features(made).tolist() == [[1], [5]]
        assert judge.logits(made).tolist() == [[1, -1], [5, -5]]
        counts.append(judge.embedder.calls)
    assert counts == [2, 2, 0]
    clip = SimpleNamespace(family="CLIP", image_size=8)
    assert CmmdJudge(clip).about != ClipJudge(clip).about
