"""KeypointNets with known answers, written as ordinary folders."""

import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.faces.keypoint_net import KeypointNet
from persongen_jax.weights.formats.keypoint_net import save_keypoint_net

# In sides of the frame.
BOX = (0.25, 0.25, 0.75, 0.875)
LANDMARKS = ((0.375, 0.5), (0.625, 0.5), (0.5, 0.625), (0.40625, 0.75), (0.59375, 0.75))


def write_keypoint_net(folder, *, present: float):
    """A tiny net that sees a face at BOX with LANDMARKS in every image.

    ``present`` is the logit for a face.
    """
    config = {"image_size": 16, "widths": (8, 8), "hidden_features": 8}
    net = KeypointNet(config, dtype=jnp.float32, rngs=nnx.Rngs(0))
    known = [present, *(v - 0.5 for v in BOX), *(v - 0.5 for xy in LANDMARKS for v in xy)]
    bias = jnp.zeros(net.fc2.bias.shape).at[: len(known)].set(jnp.array(known))
    net.fc2.kernel.set_value(jnp.zeros(net.fc2.kernel.shape))
    net.fc2.bias.set_value(bias)
    save_keypoint_net(net, folder)
