"""The UNet alone, compiled for one kind of TPU chip: a figure to compare with other projects'.

    python -m benchmarks.aot_yardstick --topology v5p:2x2x1 --json benchmarks/results/aot.json

The work: SDXL's UNet at full size, frozen bfloat16 weights, the gradient of a squared error with
respect to only the text conditioning, 4 images of 512x512 per chip, nothing recomputed unless
--remat. It is the core of any adapter's training step.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.aot.__main__ import parse_options, read_json, write_json
from persongen_jax.aot.chips import open_topology
from persongen_jax.aot.compiling import check_options, measure, report
from persongen_jax.aot.cost import profile
from persongen_jax.aot.programs import Program
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.sizes import CONFIGS
from persongen_jax.models.sdxl.unet import UNet2DConditionModel
from persongen_jax.parallel.sharding import batch_sharding, make_mesh, replicated


def unet_gradient(mesh, per_chip: int, size: int, remat: bool) -> Program:
    """Loss and gradient with respect to the text tokens; ``size`` is the image's side in pixels."""
    kw = {"dtype": jnp.bfloat16, "param_dtype": jnp.bfloat16, "rngs": UnusedRngs()}
    unet = nnx.eval_shape(lambda: UNet2DConditionModel(CONFIGS["unet"], **kw))
    unet.set_remat(remat)
    graphdef, weights = nnx.split(unet)
    weights = jax.tree.map(
        lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=replicated(mesh)), weights
    )
    b, side = per_chip * mesh.size, size // 8

    def rows(*shape, dtype=jnp.float32):
        return jax.ShapeDtypeStruct((b, *shape), dtype, sharding=batch_sharding(mesh))

    batch = {
        "tokens": rows(77, 2048, dtype=jnp.bfloat16),
        "pooled": rows(1280, dtype=jnp.bfloat16),
        "time_ids": rows(6),
        "noisy": rows(side, side, 4),
        "timesteps": rows(dtype=jnp.int32),
        "noise": rows(side, side, 4),
    }

    @jax.jit
    def gradient(weights, batch):
        def loss(tokens):
            streams = {"text": TokenStream(tokens)}
            conditioning = Conditioning(streams, batch["pooled"], batch["time_ids"])
            unet = nnx.merge(graphdef, weights)
            predicted = unet(batch["noisy"], batch["timesteps"], conditioning)
            return jnp.square(predicted - batch["noise"]).mean()

        return jax.value_and_grad(loss)(batch["tokens"])

    parts = {"frozen weights": weights, "batch": batch}
    return Program(gradient, (weights, batch), parts, b, mesh)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--topology", default="v5p:2x2x1", help="e.g. v5p:2x2x1, v5e:2x2")
    parser.add_argument("--per_chip_batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--remat", action="store_true")
    parser.add_argument("--option", action="append", default=[], help="NAME=VALUE of the compiler")
    parser.add_argument("--profile", type=int, default=0, help="show the N most expensive parts")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--text", type=Path, help="write the compiled program here")
    args = parser.parse_args()

    chip, devices = open_topology(args.topology)
    mesh, options = make_mesh(devices), parse_options(args.option)
    check_options(mesh, options)
    program = unet_gradient(mesh, args.per_chip_batch, args.size, args.remat)
    row, cost = measure(program, chip, options, text=args.text)
    row = {"what": "yardstick", "topology": args.topology, "size": args.size, **row}
    row["remat"] = args.remat
    print(report(row), flush=True)
    for name, count, cycles in profile(cost, lambda i: i.op_name, args.profile):
        print(f"  {cycles / chip.clock * 1e3:8.3f} ms {count:5} x {name}")
    if args.json:
        write_json(args.json, [*read_json(args.json), row])


if __name__ == "__main__":
    main()
