"""Measure speed on the accelerator at hand, next to the same work in torch.

    python -m persongen_jax.bench train --config configs/base.py --out runs/bench \\
        --row size=512 batch=8,16,32 --row size=1024 batch=4,8 remat=false,true --versus torch
    python -m persongen_jax.bench sample --config configs/base.py --out runs/bench \\
        --row size=1024 batch=1,4,8 vae_dtype=bfloat16 --versus torch

Needs no data, no weights and no TensorFlow: networks of the config's sizes get random weights on
the device. Every row is a separate process; one that runs out of memory is a line in the table.
docs/bench.md says what is measured and how to read it.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO, Any, cast

from persongen_jax.bench.report import short_message, write_report
from persongen_jax.bench.settings import (
    ON_ACCELERATOR,
    ON_CPU,
    Row,
    check_versus,
    parse_rows,
    read_variant,
    torch_rows,
)
from persongen_jax.bench.worker import OUT_OF_MEMORY
from persongen_jax.cli import command

# Linux' C library returns freed memory and requests it again page by page; XLA's CPU programs,
# which allocate all their memory at once, spend up to a third of their time on that.
KEEP_MEMORY = (
    "glibc.malloc.hugetlb=1:glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0:"
    "glibc.malloc.trim_threshold=1099511627776"
)


class RowFailed(Exception):
    """A row ended without figures; the message says why."""


class Worker:
    """A process of bench/worker.py."""

    def __init__(self, task: dict, log: Path, deadline: float, **environment: Any):
        self.log, self.deadline = log, deadline
        with open(log, "w") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "persongen_jax.bench.worker", json.dumps(task)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, **environment},
            )
        self.stdin = cast(IO[str], self.process.stdin)
        self.stdout = cast(IO[str], self.process.stdout)

    def answer(self) -> dict:
        """The next answer; RowFailed if there is none, and then the process has ended."""
        timer = threading.Timer(max(0, self.deadline - time.monotonic()), self.process.kill)
        timer.start()
        line = self.stdout.readline()
        timer.cancel()
        answer = json.loads(line) if line else {"error": self.exit_reason()}
        if "error" in answer:
            self.close()
            raise RowFailed(answer["error"])
        return answer

    def ask(self, steps: int) -> dict:
        try:
            self.stdin.write(f"{steps}\n")
            self.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended; reading its answer says how
        return self.answer()

    def finish(self) -> dict:
        self.stdin.close()
        answer = self.answer()
        self.close()
        return answer

    def close(self) -> None:
        if not self.stdin.closed:
            try:
                self.stdin.close()
            except BrokenPipeError:
                pass
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.stdout.close()

    def exit_reason(self) -> str:
        code = self.process.wait()
        if time.monotonic() >= self.deadline:
            return "out of time"
        text = self.log.read_text(errors="replace")
        if any(sign in text for sign in OUT_OF_MEMORY):
            return "out of memory"
        if code == -signal.SIGKILL:
            return "killed; out of the host's memory?"
        lines = text.strip().splitlines() or [""]
        return f"ended with code {code}: {lines[-1][:200]}"


class Bench:
    """One invocation: the rows, their workers, and the report, rewritten at every change."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.what, self.file = args, args.what, str(args.config)
        self.deadline = time.monotonic() + (args.limit or 365 * 86400)
        self.settings = parse_rows(args.what, args.config, args.row)
        if args.versus:
            check_versus(args.what, args.config, self.settings)
        self.rows = [Row("ours", setting) for setting in self.settings]
        self.counting, self.counts = [], []
        self.together = False  # whether workers stay alive and take turns

    def run(self) -> str:
        """Run all rows; return the report as Markdown."""
        self.args.out.mkdir(parents=True, exist_ok=True)
        self.look()
        self.start_counting()
        waiting = self.measure(self.rows)
        if self.args.versus == "torch":
            others = torch_rows(self.settings, self.variants())
            self.rows += others
            waiting += self.measure(others)
        for _ in range(self.args.rounds):
            for row, worker in waiting:
                self.time_one(row, worker)
        for row, worker in waiting:
            self.finish(row, worker)
        self.read_counts()
        return self.report()

    def look(self) -> None:
        """Query the devices from a separate process, as this one must not hold any.

        Raises:
            ValueError: there is none, or more than torch would use.
        """
        log = self.args.out / f"{self.what}_devices.log"
        worker = Worker({"by": "look"}, log, self.deadline)
        try:
            found = worker.answer()
        except RowFailed as failure:
            raise ValueError(f"JAX finds no device ({failure}); see {log}") from failure
        worker.close()
        self.together = found["platform"] == "cpu"
        if self.args.versus and not self.together and found["devices"] > 1:
            raise ValueError(
                f"--versus torch: ours would use all {found['devices']} devices and torch one; set "
                "CUDA_VISIBLE_DEVICES=0, so that both have the same"
            )

    def variants(self) -> list[str]:
        return list(self.args.variants or (ON_CPU if self.together else ON_ACCELERATOR))

    def measure(self, rows: list[Row]) -> list[tuple[Row, Worker]]:
        """Prepare the rows' workers; return those that are still to take turns.

        An accelerator's memory fits only one: there each is measured and ended at once.
        """
        waiting = []
        for row in rows:
            worker = self.start(row)
            if worker is None:
                continue
            if self.together:
                waiting.append((row, worker))
                continue
            for _ in range(self.args.rounds):
                self.time_one(row, worker)
            self.finish(row, worker)
        return waiting

    def start(self, row: Row) -> Worker | None:
        """The row's worker after its first run; None if it failed."""
        if time.monotonic() >= self.deadline:
            row.error = "not begun: out of time"
            self.report()
            return None
        print(f"{row} ...", flush=True)
        # Torch reads the first, XLA on a CPU the second.
        environment = dict.fromkeys(("OMP_NUM_THREADS", "NPROC"), str(self.args.threads))
        environment["GLIBC_TUNABLES"] = os.environ.get("GLIBC_TUNABLES", KEEP_MEMORY)
        if row.by == "torch":
            environment["JAX_PLATFORMS"] = (
                "cpu"  # reads configs only, must leave device memory alone
            )
        else:
            flags = f"{os.environ.get('XLA_FLAGS', '')} {row.setting.xla_flags()}".strip()
            share = os.environ.get("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")
            environment |= {"XLA_FLAGS": flags, "XLA_PYTHON_CLIENT_MEM_FRACTION": share}
        task = row.task(self.what, self.file, self.args.threads)
        log = self.args.out / f"{self.what}_{self.rows.index(row):02d}.log"
        worker = Worker(task, log, self.deadline, **environment)
        try:
            row.found = worker.answer()
        except RowFailed as failure:
            self.fail(row, failure)
            return None
        self.read_counts()  # nothing else may run while times are taken
        return worker

    def time_one(self, row: Row, worker: Worker) -> None:
        if row.error:
            return
        short = self.together or self.what == "sample"
        row.steps = self.args.steps or (1 if short else 10)
        try:
            answer = worker.ask(row.steps)
        except RowFailed as failure:
            self.fail(row, failure)
            return
        row.seconds.append(answer.pop("seconds"))
        row.found |= answer

    def finish(self, row: Row, worker: Worker) -> None:
        if row.error:
            return
        try:
            row.found |= worker.finish()
        except RowFailed as failure:
            self.fail(row, failure)
        print(f"  {short_message(row)}", flush=True)
        self.report()

    def fail(self, row: Row, failure: RowFailed) -> None:
        row.error = str(failure)
        print(f"  {row.error}", flush=True)
        self.report()

    # ---- amount of work ----

    def start_counting(self) -> None:
        """Start a process per kind of image; it computes with shapes only, on the CPU."""
        for setting in self.settings:
            of = setting.image_work
            if any(of == other for other, _ in self.counting):
                continue
            task = {
                "what": self.what,
                "by": "count",
                "config": self.file,
                "overrides": setting.picture,
                "options": {k: v for k, v in of.items() if k in ("cached", "steps", "guidance")},
                "torch": self.args.versus == "torch",
            }
            log = self.args.out / f"{self.what}_count_{len(self.counting)}.log"
            environment = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": ""}
            self.counting.append((of, Worker(task, log, self.deadline, **environment)))

    def read_counts(self) -> None:
        for of, worker in self.counting[len(self.counts) :]:
            try:
                answer = worker.answer()
                worker.close()
            except RowFailed as failure:
                answer = {"error": str(failure)}
            self.counts.append({"of": of, **answer})

    def report(self) -> str:
        settings = {
            "what": self.what,
            "config": self.file,
            "rounds": self.args.rounds,
            "threads": self.args.threads,
            "in_turns": self.together,
        }
        return write_report(self.args.out / self.what, settings, self.rows, self.counts)


def read_variants(text: str) -> list[str]:
    """torch's settings, separated by commas."""
    try:
        return [variant for variant in text.split(",") if read_variant(variant)]
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=("train", "sample"))
    parser.add_argument("--config", type=Path, required=True, help="a training's config")
    parser.add_argument(
        "--row",
        nargs="+",
        action="append",
        metavar="KEY=VALUE[,VALUE...]",
        help="settings, a row per combination of the values; may be repeated",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder for JSON and tables")
    parser.add_argument("--versus", choices=("torch",), help="measure diffusers on torch as well")
    parser.add_argument(
        "--variants",
        type=read_variants,
        help=f"torch's settings; default {','.join(ON_ACCELERATOR)}; on a CPU {','.join(ON_CPU)}",
    )
    parser.add_argument("--rounds", type=int, default=5, help="how often each row is measured")
    parser.add_argument(
        "--steps",
        type=int,
        default=0,
        help="steps (or batches of images) each time; default 10 for steps on an accelerator, "
        "else 1",
    )
    parser.add_argument("--limit", type=float, help="seconds after which no more rows are measured")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    print(Bench(parser.parse_args(argv)).run())


if __name__ == "__main__":
    main()
