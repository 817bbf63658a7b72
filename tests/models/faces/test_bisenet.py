"""The parsing net against a twin in PyTorch, from its file; what is no such file."""

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.models.faces.bisenet import BiSeNet
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from persongen_jax.weights.formats.bisenet import load_bisenet
from persongen_jax.weights.loader import parameter_leaves
from tests.helpers.twins import relative_error

KW = {"dtype": jnp.float32, "param_dtype": jnp.float32, "rngs": UnusedRngs()}


def test_as_a_twin_in_pytorch(tmp_path):
    import torch

    from tests.helpers.bisenet_twin import TorchBiSeNet

    torch.manual_seed(0)
    twin = TorchBiSeNet(width=8).eval()
    for module in twin.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
            torch.nn.init.normal_(module.weight, 1, 0.1)
            torch.nn.init.normal_(module.bias, 0, 0.1)
    torch.save(twin.state_dict(), tmp_path / "parsing_bisenet.pth")
    net = load_bisenet(tmp_path / "parsing_bisenet.pth")
    images = np.random.default_rng(0).normal(size=(2, 64, 96, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = twin(torch.from_numpy(images).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    found = nnx.jit(lambda net, x: net(x))(net, images)
    assert relative_error(found, wanted) < 1e-5
    with pytest.raises(ValueError, match="multiples of 32, these are 40 x 64"):
        net(jnp.zeros((1, 40, 64, 3)))


def test_the_published_size_and_other_files(tmp_path):
    leaves = parameter_leaves(nnx.eval_shape(lambda: BiSeNet(**KW)))
    assert leaves[("conv_out", "conv_out", "kernel")].shape == (1, 1, 256, 19)
    assert leaves[("cp", "resnet", "layer4", 1, "conv2", "kernel")].shape == (3, 3, 512, 512)
    with pytest.raises(MissingFile, match="facexlib/releases.*pulid_face_parser=''"):
        load_bisenet(tmp_path / "none.pth")
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(KeyMismatch, match=r"(?s)not parsing_bisenet.pth.*cp.resnet.conv1.weight"):
        load_bisenet(tmp_path / "a.safetensors")
