"""Images to face embeddings: a real recogniser's twin after a real keypoint net."""

import numpy as np
import pytest
import torch

from data_pipeline.faces import shipped
from data_pipeline.faces.align import align_face
from data_pipeline.faces.box_crop import crop_box
from persongen_jax.metrics.face_embedder import BATCH, FaceEmbedder, open_face_embedder
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.formats.arcface import INSIGHTFACE_LICENCE, load_arcface
from persongen_jax.weights.formats.opencv_faces import load_sface
from persongen_jax.weights.saver import save_module
from tests.helpers.encoders.judge_files import seeded, shapes_of
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.keypoint_nets import LANDMARKS, write_keypoint_net
from tests.helpers.twins import randomise, relative_error

# The weights alone would allow crops of 16 pixels too.
SIZE = 15
CONFIG = {"layers": (1, 1), "widths": (4, 8), "input_size": SIZE, "embedding_dim": 6}
LICENCE = "Apache-2.0, trained on drawings"


@pytest.fixture(scope="module")
def twin():
    return randomise_statistics(randomise(TorchIResNet(**CONFIG)))


@pytest.fixture(scope="module")
def assets(twin, tmp_path_factory):
    """Folders like the miniature's."""
    folder = tmp_path_factory.mktemp("assets")
    torch.save(twin.state_dict(), folder / "backbone.pth")
    net = load_arcface(folder / "backbone.pth", input_size=SIZE).model
    config = {"input_size": SIZE, "licence": LICENCE}
    save_module(net, folder / "face_net", config, file_name="model.safetensors")
    write_keypoint_net(folder / "sdxl" / "face_detector", present=3.0)
    write_keypoint_net(folder / "blind", present=-3.0)
    return folder


@pytest.fixture(scope="module")
def embedder(assets):
    return open_face_embedder(assets / "face_net")


def pictures(count, size=(40, 40), seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, *size, 3), np.uint8)


def expected(twin, images):
    """PyTorch on the aligned crops; the detector sees a face at the same place in every square."""
    landmarks = np.array(LANDMARKS) * images.shape[1]
    crops = np.stack([align_face(image, landmarks, SIZE) for image in images])
    with torch.no_grad():
        out = twin(torch.from_numpy((crops.transpose(0, 3, 1, 2) - 127.5) / 127.5).float()).numpy()
    return out / np.linalg.norm(out, axis=1, keepdims=True)


def test_embeddings_are_the_recognisers_of_the_aligned_faces(embedder, twin):
    images = pictures(3)
    found, detected = embedder.embed(images)
    assert found.dtype == np.float32 and detected.dtype == bool and detected.all()
    assert embedder.dim == 6 and found.shape == (3, 6)
    assert embedder.detector_name.startswith("keypoints:/")  # which one "auto" has found
    assert relative_error(found, expected(twin, images)) < 1e-5
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


def test_any_number_of_pictures_is_one_program(embedder):
    embedder.embed(pictures(2))
    compiled = embedder._run._cache_size(), embedder.detector._run._cache_size()
    images = pictures(BATCH + 3, seed=1)
    found, detected = embedder.embed(images)
    assert (embedder._run._cache_size(), embedder.detector._run._cache_size()) == compiled == (1, 1)
    assert found.shape == (BATCH + 3, 6) and detected.sum() == BATCH + 3
    # The position in the batch does not matter.
    assert np.allclose(found[-1], embedder.embed(images[-1:])[0][0], atol=1e-6)


def test_pictures_of_several_sizes(embedder, twin):
    small, large = pictures(1, (24, 24))[0], pictures(1, (50, 50))[0]
    found, _ = embedder.embed([small, large])
    for row, image in zip(found, (small, large), strict=True):
        assert relative_error(row, expected(twin, image[None])[0]) < 1e-5


def test_facenet_reads_the_detectors_box(assets, tmp_path):
    path = tmp_path / "facenet.pt"
    state = seeded(shapes_of("facenet 2"))
    torch.save({key: torch.from_numpy(value) for key, value in state.items()}, path)
    embedder = open_face_embedder(path, f"keypoints:{assets / 'sdxl' / 'face_detector'}")
    assert (embedder.size, embedder.dim) == (160, 32) and "VGGFace2" in embedder.licence
    images = pictures(2, (90, 120))
    detections = embedder.detect(images)
    crops = [crop_box(x, d.box, 160) for x, d in zip(images, detections, strict=True)]
    found, seen = embedder.embed(images, detections)
    assert seen.all() and np.array_equal(found, embedder.embed_crops(np.stack(crops)))
    assert np.allclose(np.linalg.norm(found, axis=1), 1)


def test_where_no_face_is_there_are_zeros(assets):
    detector = f"keypoints:{assets / 'blind'}"
    found, detected = open_face_embedder(assets / "face_net", detector).embed(pictures(2))
    assert not detected.any() and found.shape == (2, 6) and not found.any()
    assert open_face_embedder(assets / "face_net", detector).embed([])[0].shape == (0, 6)


def test_a_file_and_its_folder_open_alike_and_name_their_licences(assets, embedder):
    assert embedder.licence == LICENCE and embedder.size == SIZE
    file = open_face_embedder(assets / "face_net" / "model.safetensors")
    assert file.licence == LICENCE and file.size == SIZE
    assert np.array_equal(file.embed(pictures(1))[0], embedder.embed(pictures(1))[0])
    detector = f"keypoints:{assets / 'blind'}"
    other = open_face_embedder(assets / "backbone.pth", detector)
    assert other.licence == INSIGHTFACE_LICENCE and other.size == 16
    assert other.detector_name == detector


def test_a_detector_without_landmarks_is_refused(embedder, monkeypatch):
    monkeypatch.setattr(embedder.detector, "gives_landmarks", False)
    with pytest.raises(ValueError, match="'keypoints' finds no landmarks.*yunet"):
        FaceEmbedder(load_sface(), embedder.detector)


def test_a_recogniser_without_a_detector_beside_it_gets_yunet(assets, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    alone = tmp_path / "inner" / "face_net"
    alone.mkdir(parents=True)
    (alone / "model.safetensors").write_bytes(
        (assets / "face_net" / "model.safetensors").read_bytes()
    )
    assert open_face_embedder(alone).detector_name == "yunet"
    monkeypatch.setattr(shipped, "PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(FileNotFoundError, match=r"no yunet: .*persongen_jax\[faces\]"):
        open_face_embedder(alone)


def test_what_is_not_there_is_named(assets, tmp_path):
    with pytest.raises(MissingFile, match="w600k_r50.onnx"):
        open_face_embedder(tmp_path / "gone.onnx", f"keypoints:{assets / 'blind'}")
    with pytest.raises(MissingFile, match=r"holds no model\.safetensors"):
        open_face_embedder(tmp_path)


def test_crops_of_another_size_are_refused(embedder):
    with pytest.raises(ValueError, match=r"\[n, 15, 15, 3\]"):
        embedder.embed_crops(pictures(1, (17, 17)))
