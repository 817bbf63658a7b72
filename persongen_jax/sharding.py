"""Devices: one mesh, and where arrays lie on it.

Work is split along the batch; weights stand whole on every device.
"""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def make_mesh(devices=None) -> Mesh:
    """A mesh with the one axis "data" over ``devices``, all that are present by default."""
    devices = np.array(jax.devices() if devices is None else devices)
    return Mesh(devices, ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """Whole on every device."""
    return NamedSharding(mesh, PartitionSpec())


def along_batch(mesh: Mesh) -> NamedSharding:
    """The first axis is dealt out over "data"."""
    return NamedSharding(mesh, PartitionSpec("data"))


def put_batch(mesh: Mesh, batch):
    """Host arrays [b_local, ...] to device arrays [b, ...], b being the sum over all processes.

    Raises:
        ValueError: b does not divide evenly among the devices.
    """
    sharding = along_batch(mesh)

    def put(array):
        array = np.asarray(array)
        rows = array.shape[0] * jax.process_count()
        if rows % mesh.shape["data"]:
            raise ValueError(
                f"a batch of {rows} does not divide evenly among {mesh.shape['data']} devices: "
                f"choose a batch size that is a multiple of {mesh.shape['data']}"
            )
        return jax.make_array_from_process_local_data(sharding, array)

    return jax.tree.map(put, batch)
