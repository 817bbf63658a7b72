"""Frozen weights in host memory: nothing that a step reads, and the same run."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from persongen_jax import train
from persongen_jax.aot.programs import training, tree_bytes, with_batch
from persongen_jax.methods import METHODS
from persongen_jax.parallel.sharding import make_mesh
from persongen_jax.systems.open import open_system
from persongen_jax.training.offload import offloaded, put_not_offloaded
from persongen_jax.training.partition import leaf_paths
from tests.helpers.training_runs import metrics, small_base, small_config


@pytest.fixture
def config(tmp_path_factory, sample_photos):
    config = small_config(small_base(tmp_path_factory), sample_photos)
    config.size, config.random_crop = 32, False
    return config


# Each traces a whole step twice. This one reads most kinds of inputs.
DEFAULT = (("facecdm", True),)
EVERY = itertools.product(METHODS, (False, True))


@pytest.mark.parametrize(
    ("method", "cached"),
    [each if each in DEFAULT else pytest.param(*each, marks=pytest.mark.slow) for each in EVERY],
)
def test_no_step_reads_what_is_offloaded(method, cached, config):
    config.method = method
    mesh = make_mesh(jax.devices()[:1], fsdp=1)
    left = {}
    for config.offload_encoders in (False, True):
        program = training(with_batch(config, 4, 1), mesh, cached=cached)
        left[config.offload_encoders] = program.unread_bytes(program.trace())
        arguments = jax.tree.leaves(program.arguments)
        everything = sum(leaf.size * leaf.dtype.itemsize for leaf in arguments)
        without_place = everything - tree_bytes(arguments)
        assert (without_place > 0) == config.offload_encoders
    # Everything that is no longer on the chip was unread there.
    assert left[False] - left[True] == without_place
    # The remainder are layers that a method does not use, such as PhotoMaker's fuse module.
    assert left[True] < 0.25 * left[False], left


def test_encoders_leave_the_device(config, tmp_path):
    config.cache = str(tmp_path)
    system = open_system(config)
    model = system.model
    before = {path: leaf.get_value() for path, leaf in leaf_paths(model).items()}
    offloaded(model, system.unread(cached=True))
    on_host = set()
    for path, leaf in leaf_paths(model).items():
        if isinstance(leaf.get_value(), np.ndarray):
            on_host.add(path.split("/")[0])
            assert np.array_equal(leaf.get_value(), before[path])
            assert leaf.get_value().dtype == before[path].dtype
    assert on_host == {"vae", "text_encoder", "text_encoder_2", "id_encoder"}
    assert not any(isinstance(x, np.ndarray) for x in jax.tree.leaves(nnx.state(model.unet)))


def test_only_what_is_on_the_host_stays_there():
    device = jax.sharding.SingleDeviceSharding(jax.devices()[-1])
    tree = {"encoder": np.ones(3), "unet": jnp.ones(3)}
    put = put_not_offloaded(tree, {"encoder": device, "unet": device})
    assert put["encoder"] is tree["encoder"]
    assert put["unet"].sharding == device


@pytest.mark.slow
def test_offloaded_or_not_the_run_is_the_same(config, sample_photos, tmp_path):
    config.steps, config.checkpoint_every = 6, 6
    config.validate_in_train, config.validation_every = str(sample_photos), 3
    config.validation_people = config.validation_images = 1
    config.validation_steps, config.validation_merge_step = 2, 0
    files = {}
    for config.offload_encoders in (False, True):
        # Rows that the cache lacks are computed during the run.
        config.cache = str(tmp_path / f"cache-{config.offload_encoders}")
        workdir = tmp_path / f"run-{config.offload_encoders}"
        train.train(config, workdir)
        validation = (workdir / "validation/metrics.jsonl").read_text()
        files[config.offload_encoders] = metrics(workdir), validation
    assert files[True] == files[False]
    assert files[True][1].count('"step": 6') == 1
