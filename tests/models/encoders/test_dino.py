"""DINO's and DINOv2's encoders against transformers' on torch, from every layout of their files."""

import jax
import numpy as np
import pytest
import torch
from flax import nnx
from PIL import Image
from safetensors.torch import save_file

from data_pipeline.pictures.transforms import IMAGENET_MEAN, IMAGENET_STD, imagenet_preprocess
from persongen_jax.models.encoders.dino import DinoViT, bicubic_matrix
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.formats.dino import load_dino
from persongen_jax.weights.loader import parameter_leaves
from tests.helpers.encoders.dino_files import facebook_names, torch_dino, torch_dinov2
from tests.helpers.twins import nhwc, relative_error

TOLERANCE = 1e-5  # relative, of float32
TWINS = {"dino": torch_dino, "dinov2": torch_dinov2}
# The table's own size, higher than wide, and as many patches as the square in another shape.
SIZES = [None, (48, 24), (16, 64)]


class Twins:
    """transformers' network, and ours from a folder of theirs and from facebookresearch's file."""

    def __init__(self, name, folder):
        self.name, self.torch = name, TWINS[name]()
        self.torch.save_pretrained(folder / name)
        self.state = facebook_names(self.torch)
        torch.save(self.state, folder / f"{name}.pth")
        nets = load_dino(folder / name), load_dino(folder / f"{name}.pth")
        self.ours, self.facebook = (self.compiled(net) for net in nets)
        self.arrays = [parameter_leaves(net) for net in nets]

    @staticmethod
    def compiled(net):
        return jax.jit(lambda images: (*net.hidden_states(images), net(images)))

    def images(self, size):
        size = size or (self.torch.config.image_size,) * 2
        return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))

    def run_torch(self, images):
        more = {"interpolate_pos_encoding": True} if self.name == "dino" else {}
        with torch.no_grad():
            out = self.torch(images, output_hidden_states=True, **more)
        return (*out.hidden_states, out.last_hidden_state[:, 0])


@pytest.fixture(scope="module", params=TWINS)
def twins(request, tmp_path_factory):
    return Twins(request.param, tmp_path_factory.mktemp("dino"))


def same(found, wanted):
    assert len(found) == len(wanted) == 4 and found[-1].dtype == np.float32
    for a, b in zip(found, wanted, strict=True):
        assert relative_error(a, b) < TOLERANCE


@pytest.mark.parametrize("size", SIZES)
def test_as_transformers_layer_by_layer_and_whole(twins, size):
    images = twins.images(size)
    same(twins.ours(nhwc(images)), twins.run_torch(images))


def facebook_positions(table, shape, patch):
    """facebookresearch's interpolate_pos_encoding, as in both of their repositories."""
    side = int((table.shape[1] - 1) ** 0.5)
    rows, columns = (n // patch for n in shape)
    if rows * columns == side**2 and shape[0] == shape[1]:
        return table
    patches = torch.nn.functional.interpolate(
        table[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2),
        scale_factor=((rows + 0.1) / side, (columns + 0.1) / side),
        mode="bicubic",
    )
    assert patches.shape[2:] == (rows, columns)
    patches = patches.permute(0, 2, 3, 1).reshape(1, -1, table.shape[2])
    return torch.cat([table[:, :1], patches], 1)


@pytest.mark.parametrize("size", SIZES[1:])
def test_facebookresearchs_files_and_their_positions(twins, size, monkeypatch):
    images = twins.images(size)
    patch = twins.torch.config.patch_size
    table = facebook_positions(twins.state["pos_embed"], images.shape[2:], patch)
    embeddings = twins.torch.embeddings
    monkeypatch.setattr(embeddings, "interpolate_pos_encoding", lambda *_: table)
    same(twins.facebook(nhwc(images)), twins.run_torch(images))


def test_all_layouts_hold_the_same(twins, tmp_path):
    save_file(twins.state, tmp_path / "a.safetensors")
    save_file(dict(twins.torch.state_dict()), tmp_path / "b.safetensors")  # transformers 5's names
    wanted = twins.arrays[0]
    others = [parameter_leaves(load_dino(tmp_path / f"{name}.safetensors")) for name in "ab"]
    for found in (twins.arrays[1], *others):
        assert found.keys() == wanted.keys()
        assert all(np.array_equal(found[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(("old", "new", "offset"), [(37, 16, 0.1), (14, 30, 0.0), (3, 1, 0.1)])
def test_positions_are_interpolated_as_by_torch(old, new, offset):
    values = torch.randn(1, 1, old, old, generator=torch.Generator().manual_seed(0))
    how = {"scale_factor": ((new + offset) / old,) * 2} if offset else {"size": (new, new)}
    wanted = torch.nn.functional.interpolate(values, mode="bicubic", **how)[0, 0].numpy()
    matrix = bicubic_matrix(old, new, offset)
    assert np.abs(matrix @ values[0, 0].numpy() @ matrix.T - wanted).max() < 1e-5
    assert np.allclose(matrix.sum(1), 1, atol=1e-6)


def test_the_published_sizes():
    """ViT-S/16 has 21.67 M numbers, DINOv2's ViT-S/14 22.06 M with a table for 518 pixels."""
    v2 = {"patch_size": 14, "image_size": 518, "layer_scale": True}
    for config, numbers, positions in [({}, 21_665_664, 197), (v2, 22_056_192, 1370)]:
        net = nnx.eval_shape(lambda c=config: DinoViT(c, rngs=UnusedRngs()))
        leaves = parameter_leaves(net)
        assert sum(leaf.size for leaf in leaves.values()) == numbers
        assert leaves["pos_embed",].shape == (1, positions, 384)


def test_what_is_no_encoder_is_refused(tmp_path):
    state = facebook_names(torch_dinov2())
    path = tmp_path / "a.safetensors"

    def refused(tensors, error, match):
        save_file(tensors, path)
        with pytest.raises(error, match=match):
            load_dino(path)

    with pytest.raises(MissingFile, match="dino_deitsmall16_pretrain.pth"):
        load_dino(tmp_path / "none.pth")
    refused({"a": torch.zeros(2)}, KeyMismatch, "no image encoder of DINO")
    refused({**state, "register_tokens": torch.zeros(1, 4, 128)}, WeightsError, "registers")
    refused({**state, "blocks.0.mlp.w12.weight": torch.zeros(4, 4)}, WeightsError, "giant")
    refused({**state, "more": torch.zeros(2)}, KeyMismatch, "more")
    refused({k: v for k, v in state.items() if k != "blocks.1.ls2.gamma"}, KeyMismatch, "ls2.gamma")
    refused({**state, "pos_embed": torch.zeros(1, 8, 128)}, BadConfig, "a square")
    narrow = {**state, "patch_embed.proj.weight": torch.zeros(100, 3, 8, 8)}
    refused(narrow, BadConfig, "multiple of 64")
    save_file({**state, "head.weight": torch.zeros(3, 128)}, path)  # a head is not used
    with pytest.raises(ValueError, match=r"\[b, h, w, 3\]"):
        load_dino(path)(np.zeros((1, 4, 40, 3), np.float32))


@pytest.mark.parametrize("shape", [(300, 400), (223, 640), (256, 257)])
def test_images_are_prepared_as_by_torchvision(shape):
    """Resize(256, bicubic), CenterCrop(224) and Normalize, written plainly."""
    picture = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    short = min(shape)
    h, w = (256 if side == short else int(256 * side / short) for side in shape)
    image = Image.fromarray(picture).resize((w, h), Image.Resampling.BICUBIC)
    top, left = int(round((h - 224) / 2.0)), int(round((w - 224) / 2.0))
    image = np.asarray(image.crop((left, top, left + 224, top + 224)), np.float32) / 255
    found = imagenet_preprocess(picture)
    assert found.shape == (224, 224, 3) and found.dtype == np.float32
    assert np.allclose(found, (image - IMAGENET_MEAN) / IMAGENET_STD, atol=1e-6)
