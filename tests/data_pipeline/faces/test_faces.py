"""Face detection in photographs, by each of the detectors."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.faces import detectors, shipped
from data_pipeline.faces.detectors.insightface_scrfd import find_model, is_available
from data_pipeline.faces.find import NoFaceFound, crop_face, find_face
from persongen_jax.face_detectors import open_detector, open_reference_detector
from tests.helpers.keypoint_nets import BOX, LANDMARKS, write_keypoint_net

skimage_data = pytest.importorskip("skimage.data")

# ---- YuNet, by onnxruntime and in JAX ----------------------------------------------------------

OPENERS = {"onnxruntime": detectors.open_detector, "jax": open_detector}


@pytest.fixture(scope="module", params=OPENERS)
def yunet(request):
    return OPENERS[request.param]("yunet")


def assert_is_her_face(box, scale=1.0):
    """Eyes, nose and mouth of the astronaut, located by hand, are inside a tight box."""
    x0, y0, x1, y1 = np.array(box) / scale
    for x, y in ((208, 102), (243, 102), (226, 122), (226, 146)):
        assert x0 < x < x1 and y0 < y < y1
    assert 70 < x1 - x0 < 140


@pytest.mark.parametrize("scale", [0.5, 1, 2.5])
def test_finds_the_astronaut_at_any_size(yunet, scale):
    image = Image.fromarray(skimage_data.astronaut())
    side = round(512 * scale)
    (faces,) = yunet.find([np.asarray(image.resize((side, side)))])
    assert len(faces) == 1 and faces[0].score > 0.8
    assert_is_her_face(faces[0].box, scale)
    eye, other, nose, *_ = faces[0].landmarks / scale
    assert np.allclose([eye, other, nose], [(208, 102), (243, 102), (226, 122)], atol=6)


def test_finds_a_close_up(yunet):
    image = np.ascontiguousarray(skimage_data.astronaut()[20:220, 125:325])
    x0, y0, x1, y1 = find_face(image, detector=yunet)
    assert_is_her_face((x0 + 125, y0 + 20, x1 + 125, y1 + 20))
    assert all(type(v) is int for v in (x0, y0, x1, y1))


@pytest.mark.parametrize("large_first", [True, False])
def test_takes_the_largest_of_two(yunet, large_first):
    small = skimage_data.astronaut()[:256, 100:356]
    large = small[:200, 28:228].repeat(2, 0).repeat(2, 1)
    small = np.pad(small, ((0, 144), (0, 0), (0, 0)))
    pair = [large, small] if large_first else [small, large]
    image = np.concatenate(pair, 1)
    assert len(yunet.find([image])[0]) == 2
    x0, _, x1, _ = find_face(image, detector=yunet)
    assert x1 - x0 > 140 and (x0 < 256) == large_first


@pytest.mark.parametrize("name", ["coffee", "rocket", "cat"])
def test_no_face(yunet, name):
    with pytest.raises(NoFaceFound, match=r"cup\.png.*--face-box X0,Y0,X1,Y1.*--no-crop"):
        find_face(getattr(skimage_data, name)(), "cup.png", yunet)


def test_pictures_of_any_number_and_shape(yunet):
    shapes = [(1, 1), (3, 800), (64, 64), (16, 16), (300, 20), (9, 9)]
    assert yunet.find([np.full((*shape, 3), 128, np.uint8) for shape in shapes]) == [[]] * 6
    assert yunet.find([]) == [] and yunet.detect([]) == []


def test_a_large_face_does_not_hide_a_small_one(yunet):
    """Room around a large face makes a small one smaller still."""
    large = np.asarray(
        Image.fromarray(skimage_data.astronaut()[20:220, 125:325]).resize((600, 600))
    )
    small = np.asarray(Image.fromarray(skimage_data.astronaut()[20:220, 125:325]).resize((60, 60)))
    image = np.zeros((600, 700, 3), np.uint8)
    image[:, :600], image[500:560, 620:680] = large, small
    (faces,) = yunet.find([image])
    widths = sorted(face.box[2] - face.box[0] for face in faces)
    assert len(faces) == 2 and widths[0] < 40 and widths[1] > 200


def test_both_find_the_same(tmp_path):
    images = [skimage_data.astronaut(), skimage_data.astronaut()[:300, :300], skimage_data.cat()]
    images.append(np.ascontiguousarray(skimage_data.astronaut()[20:220, 125:325, ::-1]))
    found = [open_("yunet").find(images) for open_ in OPENERS.values()]
    for ours, theirs in zip(*found, strict=True):
        assert len(ours) == len(theirs)
        for a, b in zip(ours, theirs, strict=True):
            assert np.abs(np.subtract(a.box, b.box)).max() < 0.5
            assert np.abs(a.landmarks - b.landmarks).max() < 0.5
            assert a.score == pytest.approx(b.score, abs=1e-4)


def test_a_file_of_its_own_and_its_terms(yunet):
    file = shipped.shipped_file("yunet")
    same = type(yunet)(file)
    assert same.find([skimage_data.astronaut()]) != [[]]
    assert "MIT" in yunet.licence and "not named" in yunet.licence and not same.licence
    assert open_detector(str(file)).name == detectors.open_detector(str(file)).name == "yunet"


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(shipped, "PACKAGE", "a_package_that_is_not_installed")
    assert not shipped.is_shipped()
    with pytest.raises(FileNotFoundError, match=r"persongen_jax\[faces\].*opencv_zoo"):
        find_face(np.zeros((64, 64, 3), np.uint8))


def test_another_file_in_the_package_is_not_taken(monkeypatch, tmp_path):
    models = tmp_path / "models"
    models.mkdir()
    for name, *_ in shipped.FILES.values():
        (models / name).write_bytes(b"another")
    monkeypatch.setattr(shipped, "_folders", lambda: [models])
    assert shipped.is_shipped()
    with pytest.raises(FileNotFoundError, match="SHA-256 differs"):
        open_detector("yunet")


# ---- The miniature's keypoint net --------------------------------------------------------------


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """The relevant part of a base model's directory."""
    folder = tmp_path_factory.mktemp("base")
    write_keypoint_net(folder / "face_detector", present=2.0)
    write_keypoint_net(folder / "blind", present=-2.0)
    return folder


@pytest.fixture(scope="module")
def keypoints(base):
    return open_detector(f"keypoints:{base / 'face_detector'}")


@pytest.mark.parametrize(("height", "width"), [(16, 16), (64, 64), (30, 60), (61, 20)])
def test_positions_are_pixels_of_the_picture(keypoints, height, width):
    """The net sees the image centred in a square, and answers in sides of that."""
    (face,) = keypoints.detect([np.zeros((height, width, 3), np.uint8)])
    side = max(height, width)
    shift = np.array([(side - width) // 2, (side - height) // 2])
    assert np.allclose(face.landmarks, np.array(LANDMARKS) * side - shift, atol=1e-4)
    assert np.allclose(face.box, np.array(BOX) * side - [*shift, *shift], atol=1e-4)
    assert face.score == pytest.approx(1 / (1 + np.exp(-2.0)), rel=1e-5)


def test_pictures_of_several_sizes_in_one_program(keypoints):
    sizes = [(8, 8), (20, 30), *[(16, 16)] * 40]
    faces = keypoints.detect([np.zeros((*size, 3), np.uint8) for size in sizes])
    assert [round(face.box[2] - face.box[0]) for face in faces] == [4, 15, *[8] * 40]
    assert keypoints._run._cache_size() == 1
    assert keypoints.detect([]) == []


def test_a_net_that_sees_no_face(base):
    blind = open_detector("keypoints", base / "blind")
    assert blind.detect([np.zeros((16, 16, 3), np.uint8)]) == [None]
    with pytest.raises(NoFaceFound, match=r"me\.png \(16x16 pixels, detector keypoints\)"):
        find_face(np.zeros((16, 16, 3), np.uint8), "me.png", blind)


def test_references_are_cropped_around_the_box(keypoints):
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    assert find_face(image, detector=keypoints) == (40, 40, 120, 140)
    # The longer side, 100, and 20 % more on either side.
    assert np.array_equal(crop_face(image, detector=keypoints), image[20:160, 10:150])


# ---- InsightFace's SCRFD -----------------------------------------------------------------------

SQUARE = 64  # pixels, of the faces that the stand-in model finds


def write_scrfd(path):
    """An ONNX model with SCRFD's inputs and outputs, whose faces are red squares.

    The score of a cell of 8 x 8 pixels is its redness; box and landmarks are at fixed distances.
    """
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def constant(name, array):
        return numpy_helper.from_array(np.asarray(array), name)

    # Means over cells of (r, g, b) in [-1, 1]: 1 for pure red, at most 0 for anything else tested.
    constants = [
        constant("redness", np.array([0.5, -0.25, -0.25], np.float32).reshape(1, 3, 1, 1)),
        constant("column", np.array([-1, 1], np.int64)),
        constant("none", np.zeros((), np.float32)),
        constant("box", np.array([[0, 0, 7, 7]], np.float32)),
        constant("points", np.array([[1, 2, 5, 2, 3, 3, 2, 5, 4, 5]], np.float32)),
    ]
    nodes, outputs = [], {}
    for stride in (8, 16, 32):
        s = str(stride)
        shape = {"kernel_shape": [stride, stride], "strides": [stride, stride]}
        nodes += [
            helper.make_node("AveragePool", ["input"], [f"mean{s}"], **shape),
            helper.make_node("Conv", [f"mean{s}", "redness"], [f"red{s}"]),
            helper.make_node("Reshape", [f"red{s}", "column"], [f"cells{s}"]),
            helper.make_node("Mul", [f"cells{s}", "none"], [f"zeros{s}"]),
            # Two anchors per cell; the second never detects anything, nor do the large strides.
            helper.make_node(
                "Concat",
                [f"cells{s}" if stride == 8 else f"zeros{s}", f"zeros{s}"],
                [f"pairs{s}"],
                axis=1,
            ),
            helper.make_node("Reshape", [f"pairs{s}", "column"], [f"score{s}"]),
            helper.make_node("Mul", [f"score{s}", "none"], [f"rows{s}"]),
            helper.make_node("Add", [f"rows{s}", "box"], [f"box{s}"]),
            helper.make_node("Add", [f"rows{s}", "points"], [f"kps{s}"]),
        ]
        for kind, width in (("score", 1), ("box", 4), ("kps", 10)):
            info = helper.make_tensor_value_info(kind + s, TensorProto.FLOAT, [None, width])
            outputs.setdefault(kind, []).append(info)
    graph = helper.make_graph(
        nodes,
        "scrfd",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, None, None])],
        [info for kind in ("score", "box", "kps") for info in outputs[kind]],
        constants,
    )
    opset = [helper.make_opsetid("", 13)]
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


@pytest.fixture(scope="module")
def pack(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_scrfd(home / ".insightface/models/buffalo_l/det_10g.onnx")
    return home


def square_picture(colour):
    image = np.zeros((320, 640, 3), np.uint8)
    image[64 : 64 + SQUARE, 128 : 128 + SQUARE] = colour
    return image


def test_insightface_sees_the_picture_as_it_is(pack):
    detector = open_detector("insightface", pack / ".insightface/models/buffalo_l")
    red, blue = square_picture((255, 0, 0)), square_picture((0, 0, 255))
    double = red.repeat(2, 0).repeat(2, 1)
    found = detector.detect([red, blue, double])
    assert found[1] is None
    # The stand-in's first red cell, with distances of up to 7 cells to the right and below; plus
    # half a pixel, because the origin is the corner here and the pixel's centre in InsightFace.
    assert np.allclose(found[0].box, np.array([128, 64, 184, 120]) + 0.5)
    assert np.allclose(found[0].landmarks[0], [136.5, 80.5])
    assert np.allclose(found[0].landmarks[4], [160.5, 104.5])
    assert 0.9 < found[0].score <= 1
    # An image of twice the size is scaled down first.
    assert np.allclose(found[2].landmarks[0], [272.5, 160.5])
    assert detector.gives_landmarks and "non-commercial" in detector.licence


def test_which_detector_crops_references(base, pack, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(pack))
    assert is_available()
    assert open_reference_detector(base).name == "keypoints"
    assert open_reference_detector(tmp_path).name == "insightface"
    assert open_reference_detector(base, "yunet").name == "yunet"
    monkeypatch.setenv("HOME", str(tmp_path))
    assert not is_available()
    assert open_reference_detector(tmp_path).name == "yunet"
    assert open_reference_detector().name == "yunet"


def test_where_insightface_models_are_looked_for(pack, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    models = pack / ".insightface/models"
    file = models / "buffalo_l/det_10g.onnx"
    for path in (file, models / "buffalo_l", pack / ".insightface"):
        assert find_model(path) == file
    assert find_model() is None and find_model("buffalo_l") is None
    monkeypatch.setenv("HOME", str(pack))
    assert find_model() == find_model("buffalo_l") == file


def test_absent_models_and_a_wrong_file_are_named(tmp_path, monkeypatch, pack):
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"det_\*\.onnx.*buffalo_l\.zip.*non-commercial"):
        open_detector("insightface")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        open_detector("insightface:/nowhere")


@pytest.mark.parametrize(("name", "said"), [("yolo", "yunet"), ("keypoints", "keypoints:DIR")])
def test_unknown_detectors_are_named(name, said):
    with pytest.raises(ValueError, match=said):
        open_detector(name)
