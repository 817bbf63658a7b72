"""Compiles a program for a topology and reports its cost there."""

import importlib.metadata
import re
import resource
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from data_pipeline.files import write_text
from persongen_jax.aot.chips import GIB, Chip
from persongen_jax.aot.cost import Cost, corrected_optimal, read_cost
from persongen_jax.aot.programs import Program
from persongen_jax.parallel.sharding import replicated

TO_FIT = (
    "--config.remat=True, a larger --config.fsdp and --config.offload_encoders=True make a "
    "training step smaller"
)


class DoesNotFit(ValueError):
    """The compiler found no way to fit the program into the chip's memory.

    ``needed`` is the memory in bytes that it reports as needed; None if it does not say.
    """

    def __init__(self, message: str, needed: int | None):
        super().__init__(message)
        self.needed = needed


def compile_program(program: Program, options: dict) -> tuple[jax.stages.Traced, Any, float, float]:
    """(traced, compiled, seconds of tracing, seconds of compiling).

    Args:
        program: programs.Program.
        options: of the TPU's compiler, by name.

    Raises:
        DoesNotFit: there is not enough memory.
    """
    start = time.perf_counter()
    traced = program.trace()
    lowered = program.lower(traced)
    traced_at = time.perf_counter()
    try:
        compiled = lowered.compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        said = str(error).splitlines()[0]
        remedy = f"try a smaller --per_chip_batch; {TO_FIT}"
        raise DoesNotFit(f"{said} Remedy: {remedy}", _needed(str(error))) from error
    return traced, compiled, traced_at - start, time.perf_counter() - traced_at


def check_options(mesh: Mesh, options: dict) -> None:
    """ValueError for options that the compiler rejects, using a program that compiles in no time.

    In :func:`compile_program` the error would come only after minutes of tracing.
    """
    if not options:
        return
    number = jax.ShapeDtypeStruct((), jnp.float32, sharding=replicated(mesh))
    try:
        jax.jit(jnp.sin).lower(number).compile(compiler_options=options)
    except jax.errors.JaxRuntimeError as error:
        given = " ".join(f"--option {name}={value}" for name, value in options.items())
        said = str(error).splitlines()[0]
        raise ValueError(f"{given}: the TPU's compiler rejects it ({said})") from error


_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


def _needed(message: str) -> int | None:
    found = re.search(r"Used ([\d.]+)([KMG]?) of [\d.]+[KMG]? hbm", message) or re.search(
        r"HLO temporaries \(([\d.]+)([KMG]?)\)", message
    )
    return round(float(found.group(1)) * _UNITS[found.group(2)]) if found else None


def measure(
    program: Program, chip: Chip, options: dict, text: Path | None = None
) -> tuple[dict, Cost]:
    """Compile: (all figures, for JSON; what was parsed from the text). Raises DoesNotFit.

    ``text``: a file to write the compiled program to.
    """
    if text:  # fails before many minutes of work, not after
        text.parent.mkdir(parents=True, exist_ok=True)
    traced, compiled, tracing, compiling = compile_program(program, options)
    memory, analysis = compiled.memory_analysis(), compiled.cost_analysis()
    written = compiled.as_text()
    if text:
        write_text(text, written)
    cost = read_cost(written, unknown_trips=program.steps)
    chips = program.mesh.size

    # All but our walk through the text count a loop of unknown length once.
    flops = program.flops() * program.steps / chips
    floor = flops / chip.peak
    kernels = sum(cost.kernels.values())
    optimal = corrected_optimal(analysis["optimal_seconds"], floor / program.steps, kernels)
    seconds = {"optimal": optimal * program.steps, "cycles": cost.cycles / chip.clock}
    images = program.images / chips
    total = (
        memory.argument_size_in_bytes
        + memory.output_size_in_bytes
        - memory.alias_size_in_bytes
        + memory.temp_size_in_bytes
        + memory.generated_code_size_in_bytes
    )
    unread = program.unread_bytes(traced)
    total += unread
    if unread and total > chip.memory:
        raise DoesNotFit(
            f"{total / GIB:.2f} of {chip.memory / GIB:.0f} GiB needed, {unread / GIB:.2f} of "
            "it for frozen weights that the step does not read; --config.offload_encoders=True "
            "keeps these in host memory",
            total,
        )
    row = {
        "chip": chip.name,
        "chips": chips,
        "per_chip_batch": program.images // chips,
        "steps": program.steps,
        "bytes": {
            **program.bytes_per_chip(),
            "temporaries": memory.temp_size_in_bytes,
            "unread": unread,
            "total": total,
            "memory": chip.memory,
        },
        "flops": {"of the model": flops, "by the compiler": analysis["flops"] * program.steps},
        "seconds": {**seconds, "floor": floor},
        "images_per_second": {name: images / time for name, time in seconds.items()},
        "mfu": {name: floor / time for name, time in seconds.items()},
        "collectives": {
            kind: {"count": count, "bytes": size}
            for kind, (count, size) in sorted(cost.collectives.items())
        },
        "missed": {
            "kernels without an estimate": dict(cost.kernels),
            "loops of unknown length": cost.unknown_loops,
            "clock is a guess": not chip.clock_known,
        },
        "compile": {
            "tracing_s": tracing,
            "compiling_s": compiling,
            "peak_rss": peak_rss(),
            "options": options,
        },
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }
    return row, cost


def peak_rss() -> int:
    """Peak memory of this process in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def report(row: dict) -> str:
    """A measured program in a few lines."""
    sizes, seconds = row["bytes"], row["seconds"]
    parts = {k: v for k, v in sizes.items() if k not in ("unread", "total", "memory")}
    lines = [
        f"{row['chips']} x {row['chip']}, {row['per_chip_batch']} images per chip",
        f"  memory  {sizes['total'] / GIB:.2f} of {sizes['memory'] / GIB:.0f} GiB: "
        + ", ".join(f"{name} {size / GIB:.2f}" for name, size in parts.items())
        + f"; {sizes['unread'] / GIB:.2f} of it is not read",
        f"  work    {row['flops']['of the model'] / 1e12:.2f} TFLOP per chip "
        f"({row['flops']['by the compiler'] / 1e12:.2f} by the compiler's count), "
        f"{seconds['floor'] * 1e3:.1f} ms at the chip's peak",
    ]
    for name in ("optimal", "cycles"):
        lines.append(
            f"  {name:7} {seconds[name] * 1e3:.1f} ms, MFU {row['mfu'][name]:.1%}, "
            f"{row['images_per_second'][name]:.2f} images/s per chip"
        )
    for kind, each in row["collectives"].items():
        lines.append(f"  {kind}: {each['count']}, {each['bytes'] / 2**20:.1f} MiB per chip")
    missed = {name: what for name, what in row["missed"].items() if what}
    if missed:
        lines.append(f"  missed by the estimates: {missed}")
    work = row["compile"]
    lines.append(
        f"  compiled in {work['tracing_s']:.0f} + {work['compiling_s']:.0f} s, "
        f"{work['peak_rss'] / GIB:.1f} GiB"
    )
    return "\n".join(lines)
