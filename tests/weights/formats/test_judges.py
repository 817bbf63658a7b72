"""The judging networks' files: every layout holds the same, and what is none of them is refused."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from persongen_jax.weights.errors import BadConfig, KeyMismatch, MissingFile, WeightsError
from persongen_jax.weights.formats.judges.facenet import is_facenet, load_facenet
from persongen_jax.weights.formats.judges.inception import load_inception
from persongen_jax.weights.formats.judges.lpips import load_lpips
from persongen_jax.weights.loader import parameter_leaves
from tests.helpers.encoders.judge_files import lpips_halves, seeded, shapes_of


def refused(load, path, tensors, error, match):
    save_file({key: np.ascontiguousarray(value) for key, value in tensors.items()}, path)
    with pytest.raises(error, match=match):
        load(path)


def test_what_is_not_fids_inception_is_refused(tmp_path):
    state, path = seeded(shapes_of("inception 2")), tmp_path / "a.safetensors"
    with pytest.raises(MissingFile, match="pt_inception-2015-12-05-6726825d.pth.*pytorch-fid"):
        load_inception(tmp_path / "none.pth")
    refused(load_inception, path, {"a": np.zeros(2)}, KeyMismatch, "not FID's Inception")
    aux = {**state, "AuxLogits.fc.bias": np.zeros(1000)}
    refused(load_inception, path, aux, WeightsError, "torchvision's Inception-v3 for 1000 classes")
    torchvisions = {**state, "fc.weight": np.zeros((1000, 128), np.float32)}
    refused(load_inception, path, torchvisions, WeightsError, "features are not FID's")
    refused(load_inception, path, {**state, "more": np.zeros(2)}, KeyMismatch, "more")
    left = {k: v for k, v in state.items() if k != "Mixed_7c.branch_pool.bn.running_var"}
    refused(load_inception, path, left, KeyMismatch, "Mixed_7c.branch_pool.bn.running_var")
    odd = {**state, "Conv2d_1a_3x3.conv.weight": np.zeros((3, 3, 3, 3), np.float32)}
    refused(load_inception, path, odd, BadConfig, "3 channels after Conv2d_1a.*odd")


def test_facenet_without_counters_and_with_its_classes(tmp_path):
    state = seeded(shapes_of("facenet 2"))
    path = tmp_path / "a.safetensors"
    save_file({**state, "logits.weight": np.zeros((9, 32), np.float32)}, path)
    recogniser = load_facenet(path)
    assert "VGGFace2" in recogniser.licence and is_facenet(path)
    assert parameter_leaves(recogniser.model)["last_bn", "running_var"].shape == (32,)
    left = {k: v for k, v in state.items() if k != "repeat_2.3.branch1.1.bn.bias"}
    refused(load_facenet, path, left, KeyMismatch, "repeat_2.3.branch1.1.bn.bias")
    refused(load_facenet, path, {"a": np.zeros(2)}, KeyMismatch, "not FaceNet")
    assert not is_facenet(path) and not is_facenet(tmp_path / "none.pt")
    with pytest.raises(MissingFile, match="20180402-114759-vggface2.pt"):
        load_facenet(tmp_path / "none.pt")


@pytest.mark.parametrize("net", ["alex 1", "vgg 16"])
def test_lpips_in_one_file_and_in_two_is_the_same(net, tmp_path):
    whole = seeded(shapes_of(f"lpips {net}"))
    save_file(whole, tmp_path / "whole.safetensors")
    folder = tmp_path / "halves"
    folder.mkdir()
    for name, part in lpips_halves(whole).items():
        save_file(part, folder / f"{name}.safetensors")
    (folder / "README.md").write_text("not weights")
    found = [parameter_leaves(load_lpips(p)) for p in (tmp_path / "whole.safetensors", folder)]
    assert found[0].keys() == found[1].keys()
    assert all(np.array_equal(found[0][key], found[1][key]) for key in found[0])


def test_what_is_not_lpips_is_refused(tmp_path):
    halves = lpips_halves(seeded(shapes_of("lpips vgg 16")))
    path = tmp_path / "a.safetensors"
    with pytest.raises(MissingFile, match=r"alexnet-owt-7be5be79\.pth.*lpips/weights/v0\.1"):
        load_lpips(tmp_path / "none")
    refused(load_lpips, path, halves["heads"], MissingFile, "no backbone of LPIPS")
    refused(load_lpips, path, halves["backbone"], MissingFile, "no heads of LPIPS")
    squeeze = {"features.3.squeeze.weight": np.zeros((4, 4, 1, 1), np.float32)}
    refused(load_lpips, path, squeeze, WeightsError, "on SqueezeNet")
    save_file(halves["backbone"], tmp_path / "b.safetensors")
    save_file(halves["backbone"], path)
    with pytest.raises(WeightsError, match=r"a\.safetensors and .*b\.safetensors both have"):
        load_lpips(tmp_path)
    deeper = {**halves["backbone"], "features.30.weight": np.zeros((4, 4, 3, 3), np.float32)}
    save_file(halves["heads"], tmp_path / "b.safetensors")
    save_file(deeper, path)
    with pytest.raises(KeyMismatch, match="features.30.weight"):  # VGG19's, for example
        load_lpips(tmp_path)
