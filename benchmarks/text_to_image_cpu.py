"""Text-to-image on this CPU: ours compiled, compared with diffusers on torch, eager and compiled.

    python -m benchmarks.text_to_image_cpu --size mid --json benchmarks/results/cpu_mid.json

Every contender is a separate process with the same weights, prompts, latents and number of threads.
They take turns, one batch of images each, so that drift of the machine's speed affects all; the
ratios are of medians. Then the time to the first image is measured in fresh processes, ours without
and with the persistent compilation cache.
"""

import argparse
import datetime
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PROMPTS = ["a photo of a man in the desert", "a woman in a red hat, a castle behind her"]
CONTENDERS = ("ours", "torch_eager", "torch_eager_channels_last", "torch_compile")


# ---- one contender, in its own process ---------------------------------------------------------


def make_ours(args):
    from persongen_jax.pipeline import Pipeline

    pipe = Pipeline.from_pretrained(args.base)

    def run():
        return pipe(PROMPTS, latents=latents(args), **settings(args)).images

    return run


def make_torch(args, kind):
    import torch
    from diffusers import StableDiffusionXLPipeline

    torch.set_num_threads(args.threads)
    pipe = StableDiffusionXLPipeline.from_pretrained(args.base)
    pipe.set_progress_bar_config(disable=True)
    if kind != "torch_eager":
        pipe.unet.to(memory_format=torch.channels_last)
        pipe.vae.to(memory_format=torch.channels_last)
    if kind == "torch_compile":
        pipe.unet = torch.compile(pipe.unet)
        pipe.vae.decode = torch.compile(pipe.vae.decode)

    def run():
        noise = torch.from_numpy(latents(args)).permute(0, 3, 1, 2).contiguous()
        with torch.inference_mode():
            return pipe(PROMPTS, latents=noise, **settings(args)).images

    return run


def latents(args):
    import numpy as np

    side = args.latent_side
    shape = (len(PROMPTS), side, side, 4)
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def settings(args):
    return {
        "num_inference_steps": args.steps,
        "guidance_scale": 5.0,
        "output_type": "np",
        "height": args.latent_side * 8,
        "width": args.latent_side * 8,
    }


def worker(args):
    """Answer each line on standard input with the seconds of one more batch of images."""
    start = time.perf_counter()
    run = make_ours(args) if args.worker == "ours" else make_torch(args, args.worker)
    loaded = time.perf_counter() - start
    images = run()
    first = time.perf_counter() - start
    print(
        json.dumps({"load_s": loaded, "first_s": first, "mean": float(images.mean())}), flush=True
    )
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - start), flush=True)


# ---- all of them -------------------------------------------------------------------------------


class Contender:
    def __init__(self, args, name, **environment):
        command = [sys.executable, "-m", "benchmarks.text_to_image_cpu", "--worker", name]
        for key in ("base", "steps", "latent_side", "threads"):
            command += [f"--{key.replace('_', '-')}", str(getattr(args, key))]
        # Torch reads the first, XLA the second.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "NPROC"), str(args.threads))
        environment = {**os.environ, **threads, **environment}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.first = json.loads(self.process.stdout.readline())

    def time_one(self) -> float:
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def floor(args) -> dict:
    """Floating-point operations of one batch, the CPU's rate for matrix products, and the bytes."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from flax import nnx

    from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
    from persongen_jax.pipeline import Pipeline
    from persongen_jax.training.flop_count import count

    pipe = Pipeline.from_pretrained(args.base)
    model, batch, side = pipe.model, len(PROMPTS), args.latent_side
    sample = jnp.zeros((2 * batch, side, side, 4))
    embeds, pooled = pipe.encode_prompt(PROMPTS)
    ids = jnp.zeros((2 * batch, 6))
    twice = [jnp.concatenate([x, x]) for x in (embeds, pooled)]
    conditioning = Conditioning({"text": TokenStream(twice[0])}, twice[1], ids)
    unet = jax.make_jaxpr(lambda x: model.unet(x, 1, conditioning))(sample)
    vae = jax.make_jaxpr(model.vae.decode)(sample[:batch])
    flops = args.steps * count(unet.jaxpr) + count(vae.jaxpr)

    x = jnp.ones((2048, 2048))
    product = jax.jit(lambda a: a @ a)
    product(x).block_until_ready()
    times = []
    for _ in range(10):
        start = time.perf_counter()
        product(x).block_until_ready()
        times.append(time.perf_counter() - start)
    peak = 2 * 2048**3 / min(times)

    def parameters(module):
        return sum(x.size for x in jax.tree.leaves(nnx.state(module, nnx.Param)))

    return {
        "unet_parameters": int(parameters(model.unet)),
        "gflop_per_batch": flops / 1e9,
        "gflops_of_a_2048_matrix_product": peak / 1e9,
        "floor_s": flops / peak,
        "weight_gbytes_read_per_batch": float(
            np.float64(args.steps * parameters(model.unet) + parameters(model.vae)) * 4 / 1e9
        ),
    }


def compare(args) -> dict:
    from persongen_jax.weights.random_base import SIZES, write_random_base

    result = {"size": args.size, "steps": args.steps, "batch": len(PROMPTS), **versions(args)}
    with tempfile.TemporaryDirectory() as folder:
        args.base = f"{folder}/base"
        write_random_base(args.base, size=args.size)
        args.latent_side = args.latent_side or SIZES[args.size]["sample_size"]
        cold = Contender(args, "ours", JAX_COMPILATION_CACHE_DIR=f"{folder}/cache", **NO_THRESHOLD)
        cold.close()
        warm = Contender(args, "ours", JAX_COMPILATION_CACHE_DIR=f"{folder}/cache", **NO_THRESHOLD)
        warm.close()

        contenders = {name: Contender(args, name) for name in CONTENDERS}
        seconds = {name: [] for name in CONTENDERS}
        for _ in range(args.rounds):
            for name, contender in contenders.items():
                seconds[name].append(contender.time_one())
        for contender in contenders.values():
            contender.close()
        result |= floor(args)
    result["first_picture_s"] = {name: c.first["first_s"] for name, c in contenders.items()}
    result["first_picture_s"]["ours_filling_the_cache"] = cold.first["first_s"]
    result["first_picture_s"]["ours_from_the_cache"] = warm.first["first_s"]
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    result["seconds"] = seconds
    result["images_per_second"] = {name: len(PROMPTS) / s for name, s in medians.items()}
    best = min(s for name, s in medians.items() if name != "ours")
    result["ours_over_best_torch"] = best / medians["ours"]
    result["gap_to_floor"] = medians["ours"] / result["floor_s"]
    return result


# Cache every program, however fast it compiled.
NO_THRESHOLD = {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def versions(args) -> dict:
    from importlib.metadata import version

    packages = ("jax", "flax", "torch", "diffusers")
    return {
        "date": datetime.date.today().isoformat(),
        "threads": args.threads,
        "versions": {name: version(name) for name in packages},
        "cpu": next(
            (
                line.split(":")[1].strip()
                for line in Path("/proc/cpuinfo").read_text().splitlines()
                if line.startswith("model name")
            ),
            "unknown",
        ),
    }


def report(result: dict) -> str:
    lines = [
        f"{result['size']}: {result['unet_parameters'] / 1e6:.1f} M parameters in the UNet, "
        f"{result['batch']} images, {result['steps']} steps, {result['threads']} threads",
        f"work {result['gflop_per_batch']:.1f} GFLOP; a 2048 matrix product runs at "
        f"{result['gflops_of_a_2048_matrix_product']:.0f} GFLOP/s: floor {result['floor_s']:.2f} s",
    ]
    for name, rate in result["images_per_second"].items():
        times = result["seconds"][name]
        lines.append(
            f"  {name:28s} {rate:7.3f} images/s   (batch: median {statistics.median(times):.2f} s, "
            f"{min(times):.2f} to {max(times):.2f})"
        )
    lines.append(
        f"ours is {result['ours_over_best_torch']:.2f} x the best torch, "
        f"{result['gap_to_floor']:.2f} x the floor's time"
    )
    lines.append("time to the first image, including loading and compilation:")
    lines += [f"  {name:28s} {s:6.1f} s" for name, s in result["first_picture_s"].items()]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", default="mid", choices=("tiny", "mid"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--latent-side", type=int, help="latents per side; default: the model's")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="write the result here as well")
    parser.add_argument("--base", help=argparse.SUPPRESS)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        worker(args)
        return
    result = compare(args)
    print(report(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
