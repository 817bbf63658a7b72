"""The loss on joints through a graph of MoveNet's form: its values, and where gradients flow."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax.losses.base import Decoded
from persongen_jax.losses.keypoints import Keypoints
from persongen_jax.systems.sdxl_config import sdxl_defaults
from tests.helpers.pose_graph import CELLS, SIZE, kernels, write_pose_graph

RNG = np.random.default_rng(3)


@pytest.fixture(scope="module")
def slope(tmp_path_factory):
    """Images [b, s, s, 3] to the loss [b], its gradient; and the target's joints in pixels."""
    config = sdxl_defaults()
    path = write_pose_graph(tmp_path_factory.mktemp("pose") / "movenet.json")
    config.loss_pose_net = f"movenet:{path}"
    loss = Keypoints(config)
    graphdef, state = nnx.split(loss.network())
    wanted, seen = SIZE * RNG.random((2, 12, 2)), RNG.random((2, 12)) < 0.6
    batch = {"keypoints": jnp.float32(wanted), "keypoints_mask": jnp.asarray(seen)}

    @jax.jit
    def run(images):
        def total(images):
            given = Decoded(images, (SIZE, SIZE), lambda: None, batch)
            values = loss(nnx.merge(graphdef, state), given)[0]
            return values.sum(), values

        (_, values), gradient = jax.value_and_grad(total, has_aux=True)(images)
        return values, gradient

    return run, wanted, seen


def plain(images, wanted, seen):
    """The loss in float64, joint by joint."""
    pixels, maps = 2 * images - 1, {}
    cells = pixels.reshape(len(pixels), CELLS, 4, CELLS, 4, 3)
    for name, kernel in kernels().items():
        maps[name] = np.einsum("bipjqc,pqck->bijk", cells, kernel)
    out = []
    for row in range(len(pixels)):
        total = 0.0
        for joint in range(5, 17):
            heat = maps["heat"][row, :, :, joint]
            i, j = np.unravel_index(heat.argmax(), heat.shape)
            y, x = (c + maps[n][row, i, j, joint] for c, n in ((i, "y"), (j, "x")))
            step = np.array([x, y]) / CELLS - wanted[row, joint - 5] / SIZE
            total += seen[row, joint - 5] * (step**2).sum()
        out.append(total)
    return np.array(out)


def test_its_values_and_slopes_are_those_of_the_graph(slope):
    """Central differences, which are exact as long as no joint takes another cell."""
    run, wanted, seen = slope
    images = RNG.random((2, SIZE, SIZE, 3))
    values, gradient = (np.asarray(array) for array in run(jnp.float32(images)))
    np.testing.assert_allclose(values, plain(images, wanted, seen), rtol=1e-4)
    assert np.isfinite(gradient).all() and (np.abs(gradient).max((1, 2, 3)) > 1e-3).all()
    for _ in range(3):
        direction = RNG.standard_normal(images.shape)
        ends = (plain(images + s * 1e-5 * direction, wanted, seen).sum() for s in (1, -1))
        difference = (next(ends) - next(ends)) / 2e-5
        assert abs((gradient * direction).sum() - difference) < 1e-3 * abs(difference)
