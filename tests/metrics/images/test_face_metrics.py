"""Metrics of faces, on embeddings with obvious answers."""

from types import SimpleNamespace

import numpy as np
import pytest

from persongen_jax.metrics.face_similarity import rank1
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.registry import METRICS, find_class
from tests.metrics.known import TableJudges, generated, known_set

CONFIG = SimpleNamespace(face_net="net.onnx", face_detector="table")
# Others have tests of their own, in test_diversity.py and test_verification.py.
NAMES = [
    name
    for name in METRICS
    if find_class(name).judge_key in ("face_net", "face_detector")
    and name not in ("copy", "face_sharpness")
    and not name.startswith("tar_far")
]
AXES = np.eye(4)[:3]  # the images 0, 1, 2 are a, b, c
ABC = {"a": [0], "b": [1], "c": [2]}


def towards(first, second, cosine):
    """A unit vector with this cosine to axis ``first``, the rest along ``second``."""
    vector = np.zeros(4)
    vector[first], vector[second] = cosine, np.sqrt(1 - cosine**2)
    return vector


def measures_of(judges, made, known, names=NAMES):
    return measure_all([find_class(name)(CONFIG, judges) for name in names], made, known)


def test_faces_by_hand(capsys):
    table = [
        *AXES,
        towards(0, 1, 0.8),  # a: right, 0.6 to b
        towards(0, 1, 0.6),  # a: nearer to b
        np.full(4, np.nan),  # b: no face, and so anything
        towards(1, 3, 0.5),  # b: right
    ]
    found = [True] * 5 + [False, True]
    judges = TableJudges(table, found)
    measures = measures_of(judges, generated([3, 4, 5, 6], "aabb"), known_set(ABC))
    assert list(measures) == [name for name in NAMES if name != "rank1_100"]
    said = "rank-1/100 gives no figure: there is nobody to search among; give a gallery"
    assert said in capsys.readouterr().out
    assert measures["face_sim"]["mean"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    assert measures["face_sim"]["n"] == 3
    assert measures["face_sim_misses_as_0"]["mean"] == pytest.approx((0.8 + 0.6 + 0.5) / 4)
    assert measures["detection_rate"]["mean"] == 0.75
    assert measures["cosine_true"]["mean"] == pytest.approx((0.8 + 0.6 + 0.5) / 3)
    # The two others of each: (0.6 + 0) / 2, (0.8 + 0) / 2, 0.
    assert measures["cosine_others"]["mean"] == pytest.approx((0.3 + 0.4 + 0) / 3)
    assert measures["rank1_10"]["mean"] == 0.5 and measures["rank1_10"]["among"] == 3
    assert measures["rank1_10"]["chance"] == pytest.approx(1 / 3)
    assert measures["rank1_10"]["people"] == {"a": [0.5, 2], "b": [0.5, 2]}
    assert measures["face_sim"]["judge"] == measures["rank1_10"]["judge"] == "net.onnx"
    assert measures["detection_rate"]["judge"] == "table"
    # References, the gallery, and the generated images: each once for all metrics.
    calls = sorted(call for call in judges.faces.embedder.calls if call)
    assert calls == [[0, 1, 2], [0, 1, 2], [3, 4, 5, 6]]


def test_ranks_agree_with_rank1_and_the_gallery_may_be_larger():
    rng = np.random.default_rng(0)
    names = [f"p{i:02d}" for i in range(30)]
    gallery = rng.standard_normal((30, 8))
    gallery /= np.linalg.norm(gallery, axis=1, keepdims=True)
    owners = np.array(names[:12]).repeat(4)
    embeddings = gallery[np.arange(12).repeat(4)] + 0.4 * rng.standard_normal((48, 8))
    found = rng.random(48) < 0.8
    judges = TableJudges(np.concatenate([gallery, embeddings]), [*[True] * 30, *found])
    everyone = {name: [i] for i, name in enumerate(names)}
    known = known_set(dict(list(everyone.items())[:12]), everyone)
    measures = measures_of(judges, generated(np.arange(30, 78), owners), known)
    few = np.isin(owners, names[:10])
    wanted = rank1(embeddings[few], owners[few], gallery[:10], names[:10], found[few])
    assert 0.2 < wanted["rank1"] < 0.95
    assert measures["rank1_10"]["mean"] == pytest.approx(wanted["rank1"])
    assert measures["rank1_10"]["n"] == 40 and measures["rank1_10"]["among"] == 10
    wanted = rank1(embeddings, owners, gallery, names, found)
    assert measures["rank1_100"]["mean"] == pytest.approx(wanted["rank1"])
    assert measures["rank1_100"]["among"] == 30


def test_people_missing_in_the_large_gallery_are_added():
    judges = TableJudges(AXES)
    known = known_set({"a": [0]}, {"b": [1], "c": [2]})
    measures = measures_of(judges, generated([0, 1], "aa"), known)
    assert measures["rank1_100"]["among"] == 3 and measures["rank1_100"]["mean"] == 0.5


def test_people_without_a_face_in_their_reference_are_left_out(capsys):
    judges = TableJudges([*AXES, AXES[1]], [True, False, True, True])
    known = known_set({"a": [0], "b": [1]})
    measures = measures_of(judges, generated([0, 3], "ab"), known)
    assert "in_train: no face found in the references of b: left out" in capsys.readouterr().out
    assert measures["face_sim"]["people"] == {"a": [1.0, 1]}
    assert measures["detection_rate"]["people"] == {"a": [1.0, 1]}
    assert measures["cosine_others"]["n"] == 0  # there is nobody else
    nobody = measures_of(judges, generated([3], "b"), known)
    assert {measure["n"] for measure in nobody.values()} == {0}


def test_no_face_at_all():
    judges = TableJudges([*AXES, AXES[0]], [True, True, True, False])
    measures = measures_of(judges, generated([3, 3], "ab"), known_set(ABC))
    assert measures["face_sim"]["mean"] is None and measures["rank1_10"]["mean"] == 0
    assert measures["face_sim_misses_as_0"]["mean"] == 0 and measures["detection_rate"]["n"] == 2
