import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.formats.keypoint_net import load_keypoint_net, save_keypoint_net

CONFIG = {"image_size": 16, "widths": (8, 16), "hidden_features": 12}


@pytest.fixture(scope="module")
def net():
    return KeypointNet(CONFIG, rngs=nnx.Rngs(0))


def test_shapes(net):
    out = net(np.zeros((3, 16, 16, 3), np.float32))
    shapes = {name: array.shape for name, array in out._asdict().items()}
    assert shapes == {
        "present": (3,),
        "face_box": (3, 4),
        "landmarks": (3, 5, 2),
        "keypoints": (3, 12, 2),
        "visibility": (3, 12),
    }


def test_folder_gives_the_same_net(net, tmp_path):
    save_keypoint_net(net, tmp_path / "net")
    images = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 3)).astype(np.float32)
    for a, b in zip(net(images), load_keypoint_net(tmp_path / "net")(images), strict=True):
        np.testing.assert_array_equal(a, b)


def test_errors(net, tmp_path):
    with pytest.raises(ValueError, match="unknown keys.*depth"):
        KeypointNet({"depth": 3}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="not a multiple of 4"):
        KeypointNet({**CONFIG, "image_size": 18}, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="resize them"):
        net(np.zeros((1, 8, 8, 3), np.float32))
    with pytest.raises(MissingFile, match="config.json and model.safetensors"):
        load_keypoint_net(tmp_path / "nothing")
