"""Training DDPM's UNet compared with diffusers' on torch: images per second, on the same cores.

    python -m benchmarks.unet2d --out benchmarks/results/unet2d.md

One step is the forward pass, the ε-MSE, the backward pass and Adam, in float32. All take turns in
one process per network, with the allocator's settings of ``bench``; a ratio compares neighbours in
time, and its median over the rounds is reported.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from persongen_jax.bench.__main__ import KEEP_MEMORY
from persongen_jax.models.ddpm.unet2d import UNet2DModel
from persongen_jax.parallel.sharding import batch_sharding, make_mesh, replicated
from persongen_jax.tables import markdown

# Config, batch, and how many devices the CPU counts as (config.cpu_devices).
CONFIGS = {
    # The seed's network at CelebA's size, with five additional channels for the attributes.
    "seed, 64x64": (
        {
            "sample_size": 64,
            "in_channels": 8,
            "out_channels": 3,
            "layers_per_block": 2,
            "block_out_channels": (32, 32, 32, 64),
            "down_block_types": ("DownBlock2D", *["AttnDownBlock2D"] * 3),
            "up_block_types": (*["AttnUpBlock2D"] * 3, "UpBlock2D"),
        },
        16,
        2,
    ),
    # The network of configs/attributes/drawn_faces.py.
    "drawn faces, 32x32": (
        {
            "sample_size": 32,
            "in_channels": 3,
            "out_channels": 3,
            "layers_per_block": 1,
            "block_out_channels": (32, 64, 96),
            "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
            "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
        },
        64,
        2,
    ),
}
RATE = 1e-3


def data_of(config, batch):
    """Noisy images [b, s, s, in], timesteps [b], noise [b, s, s, out]."""
    rng, side = np.random.default_rng(0), config["sample_size"]
    shape = (batch, side, side)
    sample = rng.standard_normal((*shape, config["in_channels"]), np.float32)
    noise = rng.standard_normal((*shape, config["out_channels"]), np.float32)
    return sample, rng.integers(0, 1000, batch).astype(np.int32), noise


def ours(config, batch):
    """A function that runs one step and waits for it."""
    mesh = make_mesh()
    graphdef, state = nnx.split(UNet2DModel(config, rngs=nnx.Rngs(0)))
    tx, data = optax.adam(RATE), jax.device_put(data_of(config, batch), batch_sharding(mesh))
    state, opt_state = jax.device_put((state, tx.init(state)), replicated(mesh))

    def loss_of(state, sample, timesteps, noise):
        return jnp.square(nnx.merge(graphdef, state)(sample, timesteps) - noise).mean()

    def step(state, opt_state, *data):
        loss, gradients = jax.value_and_grad(loss_of)(state, *data)
        updates, opt_state = tx.update(gradients, opt_state)
        return optax.apply_updates(state, updates), opt_state, loss

    step = jax.jit(step, donate_argnums=(0, 1))
    held = [state, opt_state]

    def run():
        with jax.set_mesh(mesh):
            *held[:], loss = step(*held, *data)
        return float(loss)

    return run


def theirs(config, batch, compiled: bool):
    """The same on torch; ``compiled`` with torch.compile."""
    import torch
    from diffusers import UNet2DModel as TorchUNet

    torch.manual_seed(0)
    unet = TorchUNet(**config).train()
    optimizer = torch.optim.Adam(unet.parameters(), lr=RATE)
    sample, timesteps, noise = map(torch.from_numpy, data_of(config, batch))
    sample, noise = (a.permute(0, 3, 1, 2).contiguous() for a in (sample, noise))
    forward = torch.compile(unet) if compiled else unet

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = (forward(sample, timesteps.long()).sample - noise).square().mean()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    return run


def measure(config, batch, *, rounds: int, seconds: float) -> dict[str, list[float]]:
    """Images per second by program, one entry per round."""
    programs = {
        "ours": ours(config, batch),
        "torch": theirs(config, batch, compiled=False),
        "torch, compiled": theirs(config, batch, compiled=True),
    }
    for name, run in list(programs.items()):
        try:
            run(), run()
        except Exception as error:  # torch.compile needs a C++ compiler
            if name != "torch, compiled":
                raise
            print(f"{name}: {str(error).splitlines()[0]}", file=sys.stderr)
            del programs[name]
    found = {name: [] for name in programs}
    for _ in range(rounds):
        for name, run in programs.items():
            run()  # warms up this one's threads and caches
            steps, start = 0, time.perf_counter()
            while time.perf_counter() - start < seconds:
                run()
                steps += 1
            found[name].append(steps * batch / (time.perf_counter() - start))
    return found


def in_a_process(network: str, args) -> dict[str, list[float]]:
    """The result of ``measure`` for one network."""
    words = [sys.executable, "-m", "benchmarks.unet2d", f"--network={network}"]
    words += [f"--rounds={args.rounds}", f"--seconds={args.seconds}"]
    environment = {**os.environ, "GLIBC_TUNABLES": KEEP_MEMORY}
    done = subprocess.run(words, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def table(results: dict) -> str:
    rows = []
    for name, (batch, found) in results.items():
        for program, values in found.items():
            ratios = [a / b for a, b in zip(found["ours"], values, strict=True)]
            ratio = "" if program == "ours" else f"{_of(ratios, '.2f')}"
            rows.append([name, batch, program, _of(values, ".1f"), ratio])
    head = ("network", "batch", "program", "images/s, median (range)", "ours / it, median (range)")
    return markdown(head, rows)


def _of(values, form):
    middle, low, high = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({low:{form}} to {high:{form}})"


def conditions() -> str:
    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].partition(":")[2].strip() if names else cpu
    packages = ("jax", "jaxlib", "flax", "torch", "diffusers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{datetime.date.today()}, {cpu}, {os.cpu_count()} cores, float32; {versions}."


def main(argv=None):
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.unet2d", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="minimum length of a turn")
    parser.add_argument("--out", type=Path, help="a Markdown file to write")
    parser.add_argument("--network", choices=CONFIGS, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.network:
        config, batch, devices = CONFIGS[args.network]
        jax.config.update("jax_num_cpu_devices", devices)
        print(json.dumps(measure(config, batch, rounds=args.rounds, seconds=args.seconds)))
        return
    results = {name: (CONFIGS[name][1], in_a_process(name, args)) for name in CONFIGS}
    text = (
        f"{conditions()} {args.rounds} rounds of turns of {args.seconds:g} s.\n\n{table(results)}"
    )
    print(text)
    if args.out:
        about = __doc__.split("\n\n")[-1].strip().replace("\n", " ")
        title = "# Training DDPM's UNet, against diffusers' on torch"
        args.out.write_text(f"{title}\n\n`python -m benchmarks.unet2d`. {about}\n\n{text}\n")


if __name__ == "__main__":
    main()
