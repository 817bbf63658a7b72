"""Losses by small networks: against transformers' CLIP, and against the recogniser as a judge."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from data_pipeline.faces.align import TEMPLATE, align_faces
from data_pipeline.faces.box_crop import crop_box
from persongen_jax.losses.base import Decoded
from persongen_jax.losses.clip import Similarity
from persongen_jax.losses.identity import Identity, large_box, stretched
from persongen_jax.metrics.face_embedder import open_face_embedder
from persongen_jax.systems.sdxl_config import sdxl_defaults
from persongen_jax.weights.errors import MissingFile
from persongen_jax.weights.formats.arcface import load_arcface
from persongen_jax.weights.saver import save_module
from tests.helpers.encoders.tiny_clip import write_tiny_clip
from tests.helpers.iresnet_twin import TorchIResNet, randomise_statistics
from tests.helpers.keypoint_nets import write_keypoint_net
from tests.helpers.twins import randomise

SIZE = 16
NET = {"layers": (1, 1), "widths": (4, 8), "input_size": SIZE, "embedding_dim": 6}


def values_of(loss, images, target=None, size=None, **batch):
    size = size or images.shape[1:3]
    batch = {name: jnp.asarray(array) for name, array in batch.items()}

    @nnx.jit
    def run(network):
        return loss(network, Decoded(jnp.asarray(images), size, lambda: target, batch))

    return [np.asarray(array) for array in run(loss.network())]


def test_l_clip_is_that_of_transformers(tmp_path, capsys):
    """On images of CLIP's own size; a caption is cut at the tower's length."""
    theirs, config = write_tiny_clip(tmp_path), sdxl_defaults()
    config.loss_clip = str(tmp_path)
    loss = Similarity(config)
    (field,) = loss.fields("img")  # no network is opened yet
    ids = np.stack([field._encode(text) for text in ("a man", "a woman in a hat " * 40)])
    assert ids.shape == (2, 77)
    images = np.random.default_rng(0).random((2, 32, 32, 3)).astype(np.float32)
    values, counted = values_of(loss, images, caption_ids=ids)
    mean = np.float32([0.48145466, 0.4578275, 0.40821073])
    std = np.float32([0.26862954, 0.26130258, 0.27577711])
    pixels = torch.from_numpy(((images - mean) / std).transpose(0, 3, 1, 2))
    with torch.no_grad():
        out = theirs(input_ids=torch.from_numpy(ids).long(), pixel_values=pixels)
    cosines = (out.image_embeds * out.text_embeds).sum(-1).numpy()
    np.testing.assert_allclose(values, 1 - cosines, atol=1e-5)
    assert counted.all() and np.ptp(values) > 1e-3
    assert "the loss 'clip' compares images and captions by" in capsys.readouterr().err
    config.loss_clip = str(tmp_path / "none")
    with pytest.raises(MissingFile, match="no such directory or file"):
        Similarity(config)


@pytest.fixture(scope="module")
def recogniser(tmp_path_factory):
    """The folder of a small one, next to its detector."""
    folder = tmp_path_factory.mktemp("faces")
    twin = randomise_statistics(randomise(TorchIResNet(**NET)))
    torch.save(twin.state_dict(), folder / "backbone.pth")
    net = load_arcface(folder / "backbone.pth", input_size=SIZE).model
    settings = {"input_size": SIZE, "licence": "none"}
    save_module(net, folder / "face_net", settings, file_name="model.safetensors")
    write_keypoint_net(folder / "face_detector", present=3.0)
    return folder / "face_net"


def test_identity_is_that_of_the_recogniser_as_a_judge(recogniser):
    """Aligned crops; a face of less than a quarter of the input does not count."""
    config = sdxl_defaults()
    config.loss_face_net = str(recogniser)
    rng = np.random.default_rng(0)
    images, target = rng.integers(0, 256, (2, 4, 40, 44, 3), np.uint8)
    landmarks = TEMPLATE[None] / 5 + rng.normal(0, 0.5, (4, 5, 2)) + [8, 6]
    landmarks[3] = landmarks[2].mean(0) + (landmarks[2] - landmarks[2].mean(0)) / 8
    given = {"landmarks": np.float32(landmarks), "landmarks_mask": np.ones((4, 5), bool)}
    given["face_box"] = np.zeros((4, 4), np.float32)
    given["landmarks_mask"][2, 0] = False  # and there is no box
    floats = [np.float32(pixels / 255) for pixels in (images, target)]
    values, counted = values_of(Identity(config), *floats, **given)
    assert counted.tolist() == [True, True, False, False]
    embedder = open_face_embedder(recogniser)
    ours, theirs = (
        embedder.embed_crops(align_faces(pixels, landmarks, SIZE)) for pixels in (images, target)
    )
    wanted = 1 - (ours * theirs).sum(-1)
    np.testing.assert_allclose(values[:2], wanted[:2], atol=0.01)  # uint8 is rounded
    assert np.abs(values[:2]).min() > 0.02


def test_a_box_without_margin_is_cut_and_stretched_as_facenets_are():
    """Smaller and larger than the crop, in part outside of the image, of other proportions."""
    image = np.random.default_rng(0).integers(0, 256, (50, 60, 3), np.uint8)
    boxes = np.array([[3.7, 4.2, 55.1, 48.9], [20, 10, 29, 17], [-5, 30, 20, 70.0]])
    images = np.repeat(image[None], len(boxes), 0)
    cut = jax.jit(stretched, static_argnums=2)
    found = cut(jnp.asarray(images, jnp.float32), jnp.asarray(boxes, jnp.float32), SIZE)
    wanted = np.stack([crop_box(image, box, SIZE) for box in boxes])
    assert np.abs(found - wanted).max() < 1.01  # Pillow rounds after each axis
    small = jnp.float32([[0, 0, 0, 0], [10, 10, 13, 30], [10, 10, 15, 30], [55, 10, 70, 30]])
    counted = large_box(small, (50, 60), SIZE)
    assert counted.tolist() == [False, False, True, True]
    assert np.isfinite(cut(jnp.asarray(images, jnp.float32), small[1:], SIZE)).all()
    assert np.isfinite(cut(jnp.asarray(images, jnp.float32), small[:3], SIZE)).all()
