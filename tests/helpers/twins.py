"""Tiny seeded twins: the public PyTorch class and ours with the same weights."""

import numpy as np
import torch

from persongen_jax.weights.files.source import DictSource
from persongen_jax.weights.loader import load_module


def state_dict_source(torch_module):
    """A PyTorch module's weights in the form that the loader reads."""
    return DictSource({key: value.numpy() for key, value in torch_module.state_dict().items()})


def load_twin(build, torch_module):
    """Our module, built by ``build``, with the PyTorch module's weights (strict)."""
    return load_module(build, state_dict_source(torch_module))


def randomise(torch_module, seed=0, scale=1.0):
    """Random values in every parameter, norms and biases too, so that nothing hides in a zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in torch_module.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                parameter.add_(0.1 * noise)
            else:
                parameter.copy_(scale * noise / parameter[0].numel() ** 0.5)
    return torch_module.eval()


def relative_error(ours, theirs):
    """||a - b|| / ||b|| in float64."""
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    assert a.shape == b.shape, (a.shape, b.shape)
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def nhwc(tensor):
    """[b, c, h, w] torch to [b, h, w, c] numpy."""
    return tensor.detach().float().permute(0, 2, 3, 1).numpy()
