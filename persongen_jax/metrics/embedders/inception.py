"""FID's features and Inception Score's logits of images, by one of the tools' ways to resize."""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from data_pipeline.pictures.reading import load_image
from persongen_jax.metrics.clip_score import in_batches
from persongen_jax.metrics.embedders.inception_resize import open_variant
from persongen_jax.weights.formats.judges.inception import load_inception


class InceptionEmbedder:
    """The network of pytorch-fid's file, see ``load_inception``.

    Args:
        path: the file.
        variant: whose resize, a name of inception_resize.VARIANTS.

    Attributes:
        dim: d, the number of features, 2048 in the published network.
        networks: its weights, one nnx.State.

    Raises:
        WeightsError: no such file, or not FID's Inception.
        ValueError: no such variant.
    """

    def __init__(self, path: str | Path, variant: str = "clean"):
        self.variant = variant
        self._resize = open_variant(variant)
        net = load_inception(path)
        self.dim = net.fc.kernel.shape[0]
        self._net = nnx.split(net)
        self.networks = (self._net[1],)

    def outputs(self, images: Sequence[Any] | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Images, in any form of load_image, to features [n, d] and logits [n, classes] float32."""

        def embed(images):
            pixels = np.stack([self._resize(load_image(image)) for image in images])
            return _run(*self._net, pixels.astype(np.float32))

        rows = in_batches(embed, images)
        return rows[:, : self.dim], rows[:, self.dim :]


@functools.partial(jax.jit, static_argnums=0)
def _run(graphdef, state, pixels):
    # Accelerators would round the products' inputs to 16 bits or so, and no tool does.
    with jax.default_matmul_precision("highest"):
        out = nnx.merge(graphdef, state)(pixels)
    return jax.numpy.concatenate(out, axis=-1)
