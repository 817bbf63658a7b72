"""Sharding of arrays, and that training sharded over devices equals training on one."""

import json
import math
import os
import re
import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import PartitionSpec as P

from configs.base import get_config
from persongen_jax.parallel import sharding
from persongen_jax.systems.open import abstract_system
from persongen_jax.train import check_batch_size
from persongen_jax.training.trained import load_trained
from tests.helpers.training_runs import small_base
from tests.parallel.sharded_training import PLAIN, STEPS

MESHES = ("1x1", "8x1", "4x2", "1x8f", "4x2f")
TOLERANCE = 1e-5


def start(arguments, devices, **variables):
    environment = {**os.environ, **variables}
    environment["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "tests.parallel.sharded_training", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, **pipes)


def finish(*processes):
    words = [process.communicate(timeout=1800)[0] for process in processes]
    assert all(process.returncode == 0 for process in processes), "\n".join(words)[-6000:]


def two_processes(port, *arguments):
    variables = {"JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    finish(*(start(arguments, 4, JAX_PROCESS_ID=str(i), **variables) for i in range(2)))


def arrays(folder, name):
    with np.load(folder / f"{name}.npz") as file:
        return dict(file)


def assert_same(folder, name, reference="1x1"):
    """Losses, weights, moments and averages; Adam's second moments are squares of the gradients."""
    found, wanted = arrays(folder, name), arrays(folder, reference)
    assert found.keys() == wanted.keys() and f"loss/{STEPS - 1}" in found
    for key, value in wanted.items():
        gap = np.abs(found[key].astype(np.float64) - value).max()
        assert gap <= TOLERANCE * max(1.0, np.abs(value).max()), (name, key, gap)


# ---- Rules -------------------------------------------------------------------------------------


def test_the_largest_axis_that_divides_is_divided():
    spec = sharding.spec_of
    assert spec("a/kernel", (64, 128), 2) == P(None, "fsdp")
    assert spec("a/kernel", (128, 64), 2) == P("fsdp")
    assert spec("a/kernel", (128, 128), 2) == P(None, "fsdp")
    assert spec("a/kernel", (3, 3, 320, 4), 8) == P(None, None, "fsdp")
    assert spec("a/embedding", (257, 1024), 8) == P(None, "fsdp")
    assert spec("a/kernel", (257, 129), 8) == P()  # nothing divides
    assert spec("a/kernel", (64, 32), 8) == P()  # too small
    assert spec("a/lora/down", (128, 128), 8) == P()
    assert spec("a/bias", (10240,), 8) == P() and spec("norm/scale", (8192,), 8) == P()
    assert spec("a/kernel", (128, 64), 1) == P()
    assert spec("opt/count", (), 8) == P()
    with pytest.raises(ValueError, match=r"no sharding rule matches unet/a/gate \(800, 400\)"):
        spec("unet/a/gate", (800, 400), 8)


@pytest.mark.parametrize(
    "method",
    [
        "facecdm",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("photomaker_bg", "cascade", "ip_adapter", "bolid", "instantid", "pulid")
        ),
    ],
)
def test_rules_cover_every_array_at_full_size(method):
    config = get_config()
    config.method, config.image_proj = method, "plus"
    model = abstract_system(config).model
    rows, total, divided = Counter(), 0, 0
    for keys, leaf in nnx.to_flat_state(nnx.state(model)):
        path, shape = "/".join(map(str, keys)), leaf.get_value().shape
        total += math.prod(shape)
        divided += math.prod(shape) * (sharding.spec_of(path, shape, 8) != P())
        rows.update(pattern for pattern, _ in sharding.RULES if re.fullmatch(pattern, path))
    assert len(rows) == len(sharding.RULES) and min(rows.values()) > 500
    assert divided > 0.97 * total


def test_what_stays_whole_anyway_needs_no_rule():
    for path, shape, fsdp in (("stats/mean", (3,), 4), ("token", (512, 512), 1)):
        assert sharding.spec_of(path, shape, fsdp) == P()
    with pytest.raises(ValueError, match="no sharding rule matches token"):
        sharding.spec_of("token", (512, 512), 4)


def test_an_optimizers_state_goes_where_its_weights_go():
    mesh = SimpleNamespace(shape={"fsdp": 2})
    shapes = {"a/kernel": (64, 128), "b/lora/down": (128, 64), "b/bias": (5000,)}
    weights = {path: np.zeros(shape, np.float32) for path, shape in shapes.items()}
    groups = {path: path[0] for path in weights}
    state = optax.partition({g: optax.adam(lambda step: 1e-3) for g in "ab"}, groups).init(weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharding, "NamedSharding", lambda mesh, spec: spec)
        specs = sharding.shardings_by_path(mesh, state)
    specs = jax.tree_util.tree_flatten_with_path(specs, is_leaf=lambda x: isinstance(x, P))[0]
    found = {jax.tree_util.keystr(path): spec for path, spec in specs}
    for path, shape in shapes.items():
        moments = [spec for key, spec in found.items() if f"'{path}'" in key]
        assert moments == [sharding.spec_of(path, shape, 2)] * 2
    assert all(spec == P() for key, spec in found.items() if "count" in key)


def test_gathered_weights_are_whole_and_their_gradients_in_pieces():
    axes = (jax.sharding.AxisType.Auto,) * 2
    weights = {"a/kernel": jax.ShapeDtypeStruct((64, 128), np.float32)}

    def loss(weights):
        return sharding.gather_weights(weights)["a/kernel"].sum()

    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((4, 2), sharding.AXES, axes)):
        jaxpr = jax.make_jaxpr(jax.value_and_grad(loss))(weights)
    told = [
        e.params["sharding"].spec for e in jaxpr.eqns if e.primitive.name == "sharding_constraint"
    ]
    assert told == [P(None, "fsdp")]  # the gradient; not the weights, in their own call
    assert str(jaxpr).count("sharding_constraint") == 2


def test_groups_and_batches_that_do_not_divide_are_refused():
    with pytest.raises(
        ValueError, match="config.fsdp=3 does not divide the 8 available devices.*1, 2, 4, 8"
    ):
        sharding.check_fsdp(3, 8)
    with pytest.raises(ValueError, match="config.fsdp=0"):
        sharding.make_mesh(fsdp=0)
    config = get_config()
    config.batch_size = 12
    with pytest.raises(ValueError, match="on 8 devices; make it a multiple of 8"):
        check_batch_size(config, 8)


# ---- Sharded = unsharded -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def small_runs(tmp_path_factory):
    """A small model trained on every mesh by eight devices, and by two processes of four."""
    folder = tmp_path_factory.mktemp("small")
    finish(start([folder, "", "", *MESHES], 8))
    (folder / "two").mkdir()
    two_processes(29411, folder / "two", "", "", "4x2f")
    os.rename(folder / "two" / "4x2f.npz", folder / "two.npz")
    return folder


@pytest.mark.parametrize("name", [*MESHES[1:], "two"])
def test_devices_change_nothing(small_runs, name):
    """Restoring on half of the devices and on one is checked in the training process."""
    assert_same(small_runs, name)
    trained = arrays(small_runs, name)
    moved = {key for key in trained if re.match(r"\.(trainable|ema)", key)}
    assert len(moved) == 10 and all(np.abs(trained[key]).max() > 0 for key in moved)


def test_each_device_holds_its_share(small_runs):
    seen = {name: json.loads((small_runs / f"{name}.json").read_text()) for name in MESHES}
    assert all(one["as asked"] for one in seen.values())
    for name, share in (("8x1", 1), ("4x2", 2), ("1x8f", 8)):
        here, whole = seen[name]["state"]
        # The rest is the norm and the LoRA, which are replicated everywhere.
        assert whole / share <= here < whole / share + 0.15 * whole
    here, whole = seen["4x2"]["frozen"]
    assert here == whole
    here, whole = seen["1x8f"]["frozen"]
    assert whole / 8 < here < 1.15 * whole / 8
    # Weights are gathered; the work of a layer is not repeated by every device of a group.
    for name in MESHES[1:]:
        assert seen[name]["flops"] < 1.3 * seen["1x1"]["flops"] / 8


def test_two_processes_save_and_one_restores(small_runs):
    found, _ = load_trained(small_runs / "two" / "4x2f", sharding.replicated(sharding.make_mesh()))
    trained = arrays(small_runs, "two")
    for path, value in found.items():
        assert np.array_equal(value, trained[f".ema['{path}']"])


@pytest.mark.slow
def test_devices_change_nothing_of_a_whole_training_step(tmp_path_factory, sample_photos):
    """The same on the tiny SDXL with PhotoMaker."""
    folder = tmp_path_factory.mktemp("sdxl")
    base = small_base(tmp_path_factory)
    finish(start([folder, base, sample_photos, *MESHES], 8))
    (folder / "two").mkdir()
    two_processes(29412, folder / "two", base, sample_photos, "4x2f")
    os.rename(folder / "two" / "4x2f.npz", folder / "two.npz")
    for name in [*MESHES[1:], "two"]:
        assert_same(folder, name)
    seen = {name: json.loads((folder / f"{name}.json").read_text()) for name in MESHES}
    for name in MESHES[1:]:
        assert seen[name]["as asked"]
        assert seen[name]["flops"] < 1.3 * seen["1x1"]["flops"] / 8


@pytest.mark.slow
def test_devices_change_nothing_of_two_networks(tmp_path_factory):
    """The same on FaceCDM's last stage, whose ControlNet is trained whole."""
    folder, data = tmp_path_factory.mktemp("facecdm"), "people:in_train?identities=8&pictures=3"
    base = small_base(tmp_path_factory)
    finish(start([folder, f"facecdm@{base}", data, "1x1", "4x2f"], 8))
    assert_same(folder, "4x2f")
    moved = [key for key in arrays(folder, "4x2f") if "controlnet/" in key]
    assert len(moved) > 100
    seen = json.loads((folder / "4x2f.json").read_text())
    assert seen["as asked"]


@pytest.mark.slow
def test_devices_change_nothing_of_losses_on_decoded_images(tmp_path_factory):
    """The same with losses on joints and faces, of a method without a UNet."""
    folder = tmp_path_factory.mktemp("losses")
    data = "people:in_train?identities=8&pictures=3&framing=figures"
    base = small_base(tmp_path_factory)
    finish(start([folder, f"{PLAIN}@{base}", data, "1x1", "4x2f"], 8))
    assert_same(folder, "4x2f")
    found = arrays(folder, "4x2f")
    for name in ("reconstruction", "keypoints", "identity"):
        assert max(found[f"loss_{name}/0"], found[f"loss_{name}/1"]) > 0
