"""Train several methods over several seeds with the same budget, and compare them.

    python -m persongen_jax.study --config configs/study_mini.py
    python -m persongen_jax.study --config configs/study_mini.py --dry_run

Every run is a separate process, so that none shares memory with another: training, then evaluation.
SIGTERM and Ctrl-C are passed on to it, and it saves; the same command resumes from there and skips
finished runs. At the end, and whenever all runs are finished, the tables, plots and sheets are
written (persongen_jax/study/report.py).
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from ml_collections import ConfigDict

from data_pipeline.text_files import read_json
from persongen_jax.cli import command, parse_with_config
from persongen_jax.config import config_file, load_config
from persongen_jax.evaluation.of_run import OPTIONS as EVALUATION
from persongen_jax.evaluation.trajectories import read_rows
from persongen_jax.settings import config_differences
from persongen_jax.study.report import write_report
from persongen_jax.systems.open import complete_config, config_of_run, system_class
from persongen_jax.training.stopping import StopSignals
from persongen_jax.weights.saver import write_json

# Config keys that must be equal for a fair comparison.
BUDGET = ("steps", "batch_size", "size", "data", "base")
LOOK = 0.2  # seconds between polls of signals and the running process


class Interrupted(Exception):
    """A signal ended the study; the same command resumes it."""


@dataclass(frozen=True)
class Run:
    """One training: ``config`` is the training's, with all overrides; ``evaluation`` options."""

    name: str
    seed: int
    file: str
    overrides: dict
    config: ConfigDict
    evaluation: dict
    folder: Path

    @property
    def results(self) -> Path:
        """The folder of the evaluation."""
        return self.folder / "evaluation" / f"step_{self.config.steps:06d}"


# ---- Planning ------------------------------------------------------------------------


def plan_runs(study: ConfigDict) -> list[Run]:
    """Every run, seed by seed, so that a study stopped halfway has all methods.

    Raises:
        ValueError: nothing to do, unequal budgets, or invalid overrides.
    """
    if not study.methods or not study.seeds:
        raise ValueError("config.methods and config.seeds must name at least one each")
    unknown = sorted(set(study.only) - set(study.methods))
    if unknown:
        raise ValueError(f"config.only: {', '.join(unknown)} is not among config.methods")
    idle = sorted(set(study.evaluation) - set(EVALUATION))
    if idle:
        known = ", ".join(EVALUATION)
        raise ValueError(f"config.evaluation: {', '.join(idle)}: not an option; there are {known}")
    runs = []
    for seed in study.seeds:
        for name in study.methods:
            file = study.config_files.format(name)
            own = study.only.to_dict().get(name, {})
            overrides = {**study.overrides.to_dict(), **own, "seed": seed}
            if not Path(config_file(file)).is_file():
                raise ValueError(
                    f"{file}: no such config; methods and config_files name it together"
                )
            config = load_config(file, overrides)
            folder = Path(study.workdir) / name / f"seed_{seed}"
            evaluation = study.evaluation.to_dict()
            runs.append(Run(name, seed, file, overrides, config, evaluation, folder))
    for key in BUDGET:
        values = {run.name: run.config.get(key) for run in runs}
        if len(set(values.values())) > 1:
            listed = ", ".join(f"{name}: {value}" for name, value in values.items())
            raise ValueError(
                f"the methods' {key} differ ({listed}), and only equal budgets are compared; set "
                f"config.overrides.{key} for all of them"
            )
    return runs


def newest_step(run: Run) -> int | None:
    """The step of the run's newest checkpoint."""
    steps = [int(p.name) for p in (run.folder / "checkpoints").glob("*") if p.name.isdigit()]
    return max(steps, default=None)


def is_trained(run: Run) -> bool:
    """Whether the last step is saved, and validated if the config asks for it."""
    if newest_step(run) != run.config.steps:
        return False
    if not run.config.validation_every:
        return True
    wanted = set(system_class(run.config.system).validation_sets_of(run.config))
    rows = read_rows(run.folder / "validation" / "metrics.jsonl")
    return wanted <= {row["set"] for row in rows if row["step"] == run.config.steps}


def is_evaluated(run: Run) -> bool:
    """Whether it was evaluated with the current options."""
    options = run.results / "options.json"
    return options.is_file() and read_json(options) == run.evaluation


def check_settings(run: Run) -> None:
    """ValueError if the run's folder was trained with other settings."""
    path = run.folder / "config.json"
    if not path.is_file():
        return
    before = json.loads(complete_config(read_json(path), run.folder).to_json())
    now = json.loads(config_of_run(run.config, before).to_json())
    lines = config_differences(before, now)
    if lines:
        raise ValueError(
            f"{run.folder} was trained with another config (was -> now): {'; '.join(lines)}. Give "
            "another config.workdir, or remove that folder"
        )


def describe(run: Run) -> str:
    """The state of the run, for the list of --dry_run and the log."""
    step = newest_step(run)
    if is_trained(run):
        state = "finished" if is_evaluated(run) else "trained, not evaluated"
    else:
        state = "not begun" if step is None else f"step {step} of {run.config.steps}"
    return f"{run.name}, seed {run.seed}: {state}"


# ---- Execution ----------------------------------------------------------------------------------


class Processes:
    """Runs one command after another, and passes a stop on to the running one.

    ``lock``: an open file that every process inherits: it stays locked while any of them lives,
    even if this one was killed.
    """

    def __init__(self, stop: StopSignals, lock: IO):
        self.stop, self.lock = stop, lock
        self.environment = dict(os.environ)
        # Runs that differ only by their seed compile the same sampling programs.
        cache = Path.home() / ".cache" / "persongen_jax" / "xla"
        self.environment.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache))

    def __call__(self, module: str, *arguments: Any) -> None:
        """``python -m module arguments``.

        Raises:
            Interrupted: a signal came, before or meanwhile; the process has ended.
            ChildProcessError: it ended with an error, which is printed above.
        """
        if self.stop:
            raise Interrupted
        words = [sys.executable, "-m", module, *map(str, arguments)]
        # A session of its own: the terminal's Ctrl-C would reach it twice otherwise.
        process = subprocess.Popen(
            words, env=self.environment, start_new_session=True, pass_fds=[self.lock.fileno()]
        )
        told = False
        try:
            while process.poll() is None:
                if self.stop and not told:
                    process.send_signal(signal.SIGTERM)
                    told = True
                try:
                    process.wait(LOOK)
                except subprocess.TimeoutExpired:
                    pass
        except BaseException:
            process.kill()
            process.wait()
            raise
        if self.stop:
            raise Interrupted
        if process.returncode:
            raise ChildProcessError(
                f"{' '.join(words[2:])} ended with code {process.returncode}; its words are "
                "above. The same command tries again"
            )


def execute_run(run: Run, processes: Processes) -> None:
    """Train and evaluate, as far as not done yet."""
    if not is_trained(run):
        settings = [f"--config.{key}={value}" for key, value in run.overrides.items()]
        files = ["--config", run.file, "--workdir", run.folder]
        processes("persongen_jax.train", *files, *settings)
        if not is_trained(run):
            raise ChildProcessError(f"{run.folder}: the training ended before its last step")
    if not is_evaluated(run):
        options = ["--run", run.folder, "--out", run.results, "--pictures"]
        for name, value in run.evaluation.items():
            options += [f"--{name.replace('_', '-')}", value]
        processes("persongen_jax.evaluate", *options, "--step", run.config.steps)
        write_json(run.results / "options.json", run.evaluation)


def measure_costs(study: ConfigDict, runs: list[Run], processes: Processes) -> dict | None:
    """Contents of cost.json, measured unless they exist for these settings; None: not requested."""
    if not study.cost_rounds:
        return None
    plan = {
        "methods": {run.name: [run.file, run.overrides] for run in reversed(runs)},
        "order": list(study.methods),
        "rounds": study.cost_rounds,
        "steps": study.cost_steps,
        "data": study.cost_data,
        "full_size_files": study.full_size_files.to_dict(),
    }
    path = Path(study.workdir) / "cost.json"
    if not path.is_file() or read_json(path)["plan"] != json.loads(json.dumps(plan)):
        write_json(Path(study.workdir) / "cost_plan.json", plan)
        print("measuring the cost of a step", flush=True)
        processes("persongen_jax.study.cost", Path(study.workdir) / "cost_plan.json", path)
    return read_json(path)


def run_study(study: ConfigDict, dry_run: bool = False) -> None:
    """Run everything: trainings, costs, report.

    Raises:
        ValueError: settings that cannot work.
        ChildProcessError: a run failed.
        BlockingIOError: another study is at work in the same folder.
    """
    runs = plan_runs(study)
    for run in runs:
        check_settings(run)
    if dry_run:
        print(study)
        print("\n".join(describe(run) for run in runs))
        return
    workdir = Path(study.workdir)
    workdir.mkdir(parents=True, exist_ok=True)
    with open(workdir / "lock", "w") as lock, StopSignals() as stop:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                f"{workdir}: another study, or a run that it left behind, is still using it"
            ) from error
        processes = Processes(stop, lock)
        try:
            for i, run in enumerate(runs):
                print(f"[{i + 1}/{len(runs)}] {describe(run)}", flush=True)
                execute_run(run, processes)
            costs = measure_costs(study, runs, processes)
        except Interrupted:
            print(f"stopped; the same command resumes ({workdir})")
            return
        print(write_report(study, runs, costs))
    print(f"written: {workdir}")


# ---- The command -------------------------------------------------------------------------------


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m persongen_jax.study",
        description=__doc__.split("\n")[0],
        allow_abbrev=False,
    )
    parser.add_argument("--dry_run", action="store_true", help="list the runs and where they stand")
    args, study = parse_with_config(parser, argv, "configs/study_mini.py")
    run_study(study, args.dry_run)


if __name__ == "__main__":
    main()
