"""What 8 bits cost in accuracy, and what they save: the miniature's base, and SDXL's sizes.

    python -m benchmarks.quantization --out benchmarks/results/quantization.md

The UNet's prediction for noise at several timesteps, and whole images, are compared with those of
the same weights in float32; bytes are counted from the arrays that the model holds, for SDXL from
its shapes. Nothing is timed.
"""

import argparse
import datetime
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tabulate import tabulate

from benchmarks.machine import processor
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.miniature.__main__ import ASSETS
from persongen_jax.models.quantised import KINDS
from persongen_jax.models.sdxl.parts import build
from persongen_jax.models.sdxl.sizes import CONFIGS
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.quantising import QUANTISED, quantise_kernels

STORED = ("float32", "bfloat16", *KINDS)
PIXELS = 64.0  # the side of the miniature's images
TIMESTEPS = (1, 250, 500, 750, 999)
SETTINGS = {"num_inference_steps": 20, "guidance_scale": 5.0, "num_images_per_prompt": 4, "seed": 0}
PROMPTS = [
    "a man in a red shirt on a green background",
    "a woman with long hair",
    "a man with a hat",
    "a woman in a blue shirt, night",
]


def open_base(stored: str) -> Pipeline:
    """The miniature, computing in float32, with its kernels stored like this."""
    if stored in KINDS:
        return Pipeline.from_pretrained(ASSETS / "sdxl", quantize=stored)
    return Pipeline.from_pretrained(ASSETS / "sdxl", param_dtype=jnp.dtype(stored))


def predictions(pipe: Pipeline) -> np.ndarray:
    """[timesteps, prompts, h, w, c] of the UNet, for the same noise and prompts each time."""
    config, rows = pipe.model.unet.config, len(PROMPTS)
    side, channels = config["sample_size"], config["in_channels"]
    x = np.random.default_rng(0).standard_normal((rows, side, side, channels)).astype(np.float32)
    ids = np.stack([pipe.base.tokenizers.encode(prompt) for prompt in PROMPTS])
    tokens, pooled = pipe.model.encode_prompt(jnp.asarray(ids))
    time_ids = jnp.tile(jnp.array([PIXELS, PIXELS, 0, 0, PIXELS, PIXELS]), (rows, 1))
    conditioning = Conditioning({"text": TokenStream(tokens)}, pooled, time_ids)
    predict = nnx.jit(lambda unet, t: unet(jnp.asarray(x), t, conditioning))
    return np.stack([predict(pipe.model.unet, jnp.float32(t)) for t in TIMESTEPS])


def pictures(pipe: Pipeline) -> np.ndarray:
    """[images, h, w, 3] in 0..1."""
    return pipe(PROMPTS, output_type="np", **SETTINGS).images


def relative_error(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def psnr(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """In dB, for each image."""
    error = np.square(found - wanted).mean((1, 2, 3))
    return 10 * np.log10(1 / error)


def held_bytes(model: nnx.Module) -> int:
    """Of all arrays of the UNet and the text towers."""
    leaves = jax.tree.leaves([nnx.state(getattr(model, name)) for name in QUANTISED])
    return sum(x.size * x.dtype.itemsize for x in leaves)


def full_size(stored: str) -> dict[str, int]:
    """Component to bytes at SDXL's size, from shapes."""

    def make(name):
        dtype = jnp.dtype("bfloat16" if stored in KINDS else stored)
        module = build(CONFIGS, name, dtype=dtype, param_dtype=dtype)()
        if stored in KINDS:
            quantise_kernels(module, stored)
        return module

    shapes = {name: jax.tree.leaves(nnx.eval_shape(lambda n=name: make(n))) for name in QUANTISED}
    return {n: sum(x.size * x.dtype.itemsize for x in leaves) for n, leaves in shapes.items()}


def measured() -> str:
    """Both tables in Markdown."""
    rows, wanted = [], None
    for stored in STORED:
        pipe = open_base(stored)
        found = predictions(pipe), pictures(pipe)
        wanted = wanted or found
        row = [stored, f"{held_bytes(pipe.model):,}"]
        if stored != "float32":
            decibels = psnr(found[1], wanted[1])
            errors = [relative_error(a, b) for a, b in zip(found[0], wanted[0], strict=True)]
            row += [f"{relative_error(found[0], wanted[0]):.2%}", f"{max(errors):.2%}"]
            row += [f"{np.median(decibels):.1f}", f"{decibels.min():.1f}"]
        rows.append(row)
    heads = ["kernels", "bytes", "prediction's error", "worst timestep", "PSNR, median", "lowest"]
    first = tabulate(rows, heads, tablefmt="github", disable_numparse=True)
    sizes = [
        [stored, *(f"{n / 1e9:.3f}" for n in (*parts.values(), sum(parts.values())))]
        for stored, parts in ((stored, full_size(stored)) for stored in STORED)
    ]
    second = tabulate(sizes, ["kernels", *QUANTISED, "together"], tablefmt="github")
    return f"{first}\n\n## SDXL's size, GB (10^9 bytes), from shapes\n\n{second}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    text = f"""# What kernels in 8 bits cost in accuracy, and what they save

`python -m benchmarks.quantization`, {datetime.date.today()}, {processor()}, \
shared with other work; nothing is timed.

## The miniature's base, computing in float32

Relative error of the UNet's prediction (norm of the difference over the norm) for {len(PROMPTS)} \
prompts at timesteps {", ".join(map(str, TIMESTEPS))}, and PSNR in dB of \
{len(PROMPTS) * SETTINGS["num_images_per_prompt"]} images \
({SETTINGS["num_inference_steps"]} steps, guidance {SETTINGS["guidance_scale"]}, same noise), \
against the weights in float32. Bytes of the UNet and the text towers, counted from the arrays.

{measured()}"""
    args.out.write_text(text)
    print(text)


if __name__ == "__main__":
    main()
