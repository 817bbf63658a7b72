"""A full-size UNet loads with little more memory than its weights; shards go where they belong.

pytest tests/weights/test_memory.py --runslow -s
"""

import json
import math
import os
import shutil
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from persongen_jax.weights.files.safetensors_file import write_safetensors
from persongen_jax.weights.loader import parameter_leaves, to_torch_shape, torch_key
from persongen_jax.weights.saver import write_json
from tests.helpers.configs import SDXL_UNET, TINY_UNETS

WEIGHTS = 2_567_463_684 * 2  # bytes of SDXL's UNet in half precision
SPARE = 10**9
CHECKED = (
    "conv_in.weight",
    "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj.weight",
    "up_blocks.0.resnets.0.conv1.weight",
    "conv_out.bias",
)


def values(key, shape):
    """Arbitrary float16 numbers in -2..2 that depend on the key: fast, and never all in memory."""
    bits = np.random.default_rng(zlib.crc32(key.encode())).bytes(2 * math.prod(shape))
    return (np.frombuffer(bits, np.uint16) & 0xBFFF).view(np.float16).reshape(shape)


def builder(config, param_dtype):
    from persongen_jax.models.sdxl.parts import build

    return build({"unet": config}, "unet", dtype="float32", param_dtype=param_dtype)


def write_unet(folder, config):
    from flax import nnx

    folder.mkdir()
    write_json(folder / "config.json", config)
    leaves = parameter_leaves(nnx.eval_shape(builder(config, "float16")))
    shapes = {torch_key(path): to_torch_shape(path, x.shape) for path, x in leaves.items()}
    write_safetensors(
        folder / "diffusion_pytorch_model.fp16.safetensors",
        [
            (key, shape, np.float16, lambda k=key, s=shape: values(k, s))
            for key, shape in shapes.items()
        ],
    )


def resident(name: str) -> int:
    """Bytes in memory: current ("VmRSS"), or peak ("VmHWM").

    Not ru_maxrss, which a new process inherits from its parent.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def report_loading(folder, param_dtype):
    """Run in a separate process: load, check a few tensors, print the figures."""
    import jax

    from persongen_jax.weights.files.directory import open_component, read_config
    from persongen_jax.weights.loader import load_module, to_torch_layout

    jax.device_put(np.zeros(1))  # start the backend
    before = resident("VmRSS")
    start = time.perf_counter()
    with open_component(folder, "fp16") as source:
        unet = load_module(builder(read_config(folder), param_dtype), source)
    jax.block_until_ready(leaves := parameter_leaves(unet))
    seconds = time.perf_counter() - start
    peak = resident("VmHWM")
    found = {
        torch_key(path): to_torch_layout(path, np.asarray(x))
        for path, x in leaves.items()
        if torch_key(path) in CHECKED
    }
    for key in CHECKED:
        wanted = values(key, found[key].shape).astype(param_dtype)
        assert found[key].dtype == wanted.dtype and np.array_equal(found[key], wanted), key
    size = sum(x.nbytes for x in leaves.values())
    print(json.dumps({"size": size, "peak": peak - before, "seconds": seconds}))


@pytest.fixture(scope="module")
def full_size_unet(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sdxl") / "unet"
    free = shutil.disk_usage(folder.parent).free
    if free < 8e9:
        pytest.skip(f"needs 8 GB on the disk of {folder.parent}; {free / 1e9:.1f} GB are free")
    write_unet(folder, SDXL_UNET)
    yield folder
    shutil.rmtree(folder)


def in_a_process(code, *arguments):
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import sys\nfrom tests.weights.test_memory import *\n{code}",
            *map(str, arguments),
        ],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


def shard_of(path, shape):
    """The widest axis over eight devices where it divides; norms and the like on all of them."""
    from jax.sharding import NamedSharding, PartitionSpec

    from persongen_jax.parallel.sharding import make_mesh

    axis = int(np.argmax(shape))
    split = len(shape) > 1 and shape[axis] % 8 == 0 and path[0] != "conv_in"
    spec = [None] * axis + ["data"] if split else []
    return NamedSharding(make_mesh(), PartitionSpec(*spec))


def check_shards(folder):
    """Run in a separate process with eight devices."""
    import jax

    from persongen_jax.weights.files.directory import open_component, read_config
    from persongen_jax.weights.loader import load_module, to_torch_layout

    assert jax.device_count() == 8
    with open_component(folder) as source:
        build = builder(read_config(folder), "bfloat16")
        leaves = parameter_leaves(load_module(build, source, shardings=shard_of))
    split = 0
    for path, x in leaves.items():
        assert x.sharding == shard_of(path, x.shape), path
        split += not x.is_fully_replicated
        assert len(x.addressable_shards) == 8
        share = 1 if x.is_fully_replicated else 8
        assert all(shard.data.size * share == x.size for shard in x.addressable_shards), path
        found = to_torch_layout(path, np.asarray(x))
        assert np.array_equal(found, values(torch_key(path), found.shape).astype("bfloat16")), path
    print(json.dumps({"split": split, "whole": len(leaves) - split}))


def test_tensors_land_on_the_shardings_asked_for(tmp_path, monkeypatch):
    write_unet(tmp_path / "unet", TINY_UNETS["sdxl"])
    flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    monkeypatch.setenv("XLA_FLAGS", flags)
    out = json.loads(in_a_process("check_shards(*sys.argv[1:])", tmp_path / "unet"))
    assert out["split"] > 100 and out["whole"] > 100


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("param_dtype", ["bfloat16", "float16"])
def test_peak_memory_is_the_weights_and_little_more(full_size_unet, param_dtype):
    out = json.loads(in_a_process("report_loading(*sys.argv[1:])", full_size_unet, param_dtype))
    print({**out, "above the weights": out["peak"] - out["size"], "param_dtype": param_dtype})
    assert out["size"] == WEIGHTS
    assert out["peak"] < WEIGHTS + SPARE
