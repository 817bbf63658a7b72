"""Checks and times the layers in which SDXL spends its time, one by one.

    python -m benchmarks.kernels --json runs/kernels.json

Compares attention by the platform's best kernel with XLA's own on float32 inputs, results and
gradients, and times both; also times the other layers, forward and with gradients. For layers of
matrix products it gives the rate in TFLOP/s, for others in GB/s of the minimum that must be read
and written. ``--quick`` uses small shapes, for a CPU.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx

from persongen_jax.models import attention_kernels as attention_module
from persongen_jax.models.attention import FeedForward
from persongen_jax.models.attention_kernels import attention
from persongen_jax.models.layers import Conv, GroupNorm, LayerNorm, Linear
from persongen_jax.models.lora import new_lora
from persongen_jax.models.ops import activation
from persongen_jax.models.platform import compile_for
from persongen_jax.tables import markdown

# name: (batch, queries, keys, heads, masked); heads have 64 numbers.
ATTENTION = {
    "self, 1024 px, outer": (4, 4096, 4096, 10, False),
    "self, 1024 px, inner": (4, 1024, 1024, 20, False),
    "self, 512 px, outer": (16, 1024, 1024, 10, False),
    "self, 512 px, inner": (16, 256, 256, 20, False),
    "text, 1024 px, inner": (4, 1024, 77, 20, False),
    "identity, masked": (4, 1024, 4, 20, True),
    "text, masked": (4, 1024, 77, 20, True),
}
# Largest ||result - reference|| / ||reference|| for bfloat16 inputs and probabilities.
TOLERANCE = 2e-2


def seconds(function, *arguments, tries: int = 20) -> float:
    """Median seconds of a call, after two warm-up calls."""
    for _ in range(2):
        jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def with_gradients(function):
    """Results and the gradients of all arguments, for a fixed cotangent, as one program."""

    def both(cotangent, *arguments):
        out, pull_back = jax.vjp(function, *arguments)
        return out, *pull_back(cotangent.astype(out.dtype))

    return both


def distance(result, reference) -> float:
    result, reference = (x.astype(jnp.float32) for x in (result, reference))
    return float(jnp.linalg.norm(result - reference) / jnp.linalg.norm(reference))


def compare_attention(name, shape, dtype, quick) -> dict:
    b, n, m, heads, masked = shape
    if quick:
        b, n, m = 1, min(n, 64), min(m, 64)
    keys = jax.random.split(jax.random.key(0), 4)
    inputs = [
        jax.random.normal(key, (b, length, heads, 64), dtype)
        for key, length in zip(keys, (n, m, m, n), strict=True)
    ]
    *qkv, cotangent = inputs
    mask = (jnp.arange(m) % 2 == 0)[None, None, None] if masked else None

    def run(q, k, v):
        return attention(q, k, v, mask)

    kernel = attention_module.pick_kernel(qkv[0].shape, qkv[1].shape, dtype, masked, False)
    best = jax.jit(with_gradients(run))
    results = best(cotangent, *qkv)
    forward, both = seconds(jax.jit(run), *qkv), seconds(best, cotangent, *qkv)
    with compile_for("cpu"):  # XLA's own attention, as on a CPU
        plain = jax.jit(with_gradients(run))
        exact = plain(*(x.astype(jnp.float32) for x in (cotangent, *qkv)))
        plain_forward = seconds(jax.jit(lambda *x: run(*x)), *qkv)
        plain_both = seconds(jax.jit(with_gradients(lambda *x: run(*x))), cotangent, *qkv)
    errors = dict(zip(("out", "dq", "dk", "dv"), map(distance, results, exact), strict=True))
    flops = 4 * b * heads * n * m * 64
    return {
        "name": name,
        "kernel": kernel,
        "shape": [b, n, m, heads],
        "errors": errors,
        "good": all(error < TOLERANCE for error in errors.values()),
        "forward_s": forward,
        "both_s": both,
        "xla_forward_s": plain_forward,
        "xla_both_s": plain_both,
        "forward_tflops": flops / forward / 1e12,
        "both_tflops": 3 * flops / both / 1e12,
    }


def or_error(compare, name, *arguments) -> dict:
    """A kernel that refuses a shape becomes a row instead of ending the run."""
    try:
        return compare(name, *arguments)
    except Exception as error:
        return {"name": name, "error": str(error).split("\n")[0][:200], "good": False}


def layers(dtype, quick) -> list[tuple]:
    """(name, module, input, multiply-adds per call, or bytes that must move with "bytes")."""
    kw = {"dtype": dtype, "param_dtype": dtype, "rngs": nnx.Rngs(0)}
    b, side = (1, 8) if quick else (4, 32)
    width = 128 if quick else 1280
    images = [(b, side * 4, side * 4, width // 4), (b, side, side, width)]
    tokens = (b, side * side, width)
    lora = Linear(width, width, use_bias=False, **kw)
    lora.lora = new_lora(lora, 64, rngs=nnx.Rngs(1))

    class NormAct(nnx.Module):
        def __init__(self, channels):
            self.norm = GroupNorm(32, channels, **kw)

        def __call__(self, x):
            return activation("silu")(self.norm(x))

    found = []
    for shape in images:
        c = shape[-1]
        flops = 2 * b * shape[1] * shape[2] * 9 * c * c
        found.append((f"3 x 3 convolution {shape}", Conv(c, c, 3, padding=1, **kw), shape, flops))
        found.append((f"group norm, silu {shape}", NormAct(c), shape, 0))
    n = b * side * side
    linear = Linear(width, width, use_bias=False, **kw)
    found += [
        (f"layer norm {tokens}", LayerNorm(width, **kw), tokens, 0),
        (f"projection {tokens}", linear, tokens, 2 * n * width**2),
        (f"projection with LoRA of rank 64 {tokens}", lora, tokens, 2 * n * width**2),
        (f"feed-forward, GEGLU {tokens}", FeedForward(width, **kw), tokens, 24 * n * width**2),
    ]
    return found


def time_layer(name, module, shape, flops, dtype) -> dict:
    graphdef, state = nnx.split(module)
    x, cotangent = jax.random.normal(jax.random.key(0), (2, *shape), dtype)

    def run(x, state):
        return nnx.merge(graphdef, state)(x)

    def both(x, state, cotangent):
        out, pull_back = jax.vjp(lambda x: run(x, state), x)
        return out, pull_back(cotangent.astype(out.dtype))

    forward = seconds(jax.jit(run), x, state)
    backward = seconds(jax.jit(both), x, state, cotangent)
    moved = 2 * x.size * x.dtype.itemsize
    # Gradients of only the input: the weights are frozen.
    row = {"name": name, "forward_s": forward, "both_s": backward}
    if flops:
        return row | {
            "forward_tflops": flops / forward / 1e12,
            "both_tflops": 2 * flops / backward / 1e12,
        }
    return row | {"forward_gb_s": moved / forward / 1e9, "both_gb_s": 2.5 * moved / backward / 1e9}


def as_markdown(result: dict) -> str:
    attention, layers = [], []
    for row in result["attention"]:
        if "error" in row:
            attention.append([row["name"], row["error"]])
            continue
        errors = ", ".join(f"{error:.1e}" for error in row["errors"].values())
        times = (row[k] for k in ("forward_s", "xla_forward_s", "both_s", "xla_both_s"))
        cells = [row["name"], row["kernel"], errors + ("" if row["good"] else " WRONG")]
        cells += [f"{1e3 * t:.3f}" for t in times]
        cells.append(f"{row['forward_tflops']:.1f}, {row['both_tflops']:.1f}")
        attention.append(cells)
    for row in result["layers"]:
        unit = "TFLOP/s" if "forward_tflops" in row else "GB/s"
        key = "tflops" if "forward_tflops" in row else "gb_s"
        rate = f"{row[f'forward_{key}']:.1f}, {row[f'both_{key}']:.1f} {unit}"
        times = [f"{1e3 * row[key]:.3f}" for key in ("forward_s", "both_s")]
        layers.append([row["name"], *times, rate])
    head = ("attention", "kernel", "error out, dq, dk, dv", "forward ms", "XLA's")
    first = markdown((*head, "+ gradients ms", "XLA's", "TFLOP/s"), attention)
    second = markdown(("layer", "forward ms", "+ gradient ms", "rate"), layers)
    return f"# kernels: {result['device']}, {result['dtype']}\n\n{first}\n\n{second}\n"


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", type=Path, help="write the result here, and a .md next to it")
    parser.add_argument("--quick", action="store_true", help="small shapes")
    args = parser.parse_args(argv)
    dtype = jnp.bfloat16
    result = {
        "device": jax.devices()[0].device_kind,
        "dtype": jnp.dtype(dtype).name,
        "attention": [
            or_error(compare_attention, name, shape, dtype, args.quick)
            for name, shape in ATTENTION.items()
        ],
        "layers": [time_layer(*layer, dtype) for layer in layers(dtype, args.quick)],
    }
    print(as_markdown(result))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
        args.json.with_suffix(".md").write_text(as_markdown(result))
    if not all(row["good"] for row in result["attention"]):
        raise SystemExit("error: a kernel disagrees with the reference")


if __name__ == "__main__":
    main()
