"""Shared by all tests: the --runslow switch, kept compiled programs, files that are written once,
and what each folder of tests costs."""

import gc
import os
import time
from importlib.metadata import version
from pathlib import Path

import pytest

from tests.helpers import budgets, compiled
from tests.helpers.goldens import Golden
from tests.helpers.made_once import made_once

# Compiling takes most of the time; so programs are kept, small ones too, for processes of their own
# and for the next run.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(compiled.folder()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

# The compiler's least effort takes two thirds of the time, and its older emitter of fused loops
# half of that, where there still is one: XLA ends the process on a flag that it does not know. To
# test what users run: XLA_FLAGS=--xla_backend_optimization_level=3.
FLAGS = "--xla_backend_optimization_level=0"
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", FLAGS)

# PyTorch's threads spin while they wait for each other, which on tiny networks they mostly do.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Tracing allocates much and frees little of it in cycles: Python's usual thresholds cost a third of
# its time.
gc.set_threshold(100_000, 20, 100)

MEMORY = 3 << 30  # bytes of a process beyond which its compiled programs are dropped
START = pytest.StashKey[float]()


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run tests marked slow")
    parser.addoption("--only-slow", action="store_true", help="only what --runslow adds: slow.py")
    parser.addoption("--record-goldens", action="store_true", help="see tests/goldens/record.py")


def pytest_configure(config):
    config.option.runslow |= config.getoption("--only-slow")
    config.stash[START] = time.time()


def pytest_collection_modifyitems(config, items):
    if config.getoption("--record-goldens"):
        items[:] = [item for item in items if "golden" in item.fixturenames]
        return
    if config.getoption("--only-slow"):
        chosen = [i for i in items if "slow" in i.keywords or "golden" in i.fixturenames]
        config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
        items[:] = chosen
    if config.getoption("--runslow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with --runslow"))


def pytest_collection_finish():
    """What was imported stays, and need not be looked through for garbage again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def bounded_memory():
    """A few workers fit into a small machine; what is compiled is on the disk anyway."""
    yield
    statm = Path("/proc/self/statm")
    if statm.exists() and int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") > MEMORY:
        import jax

        jax.clear_caches()
        gc.collect()


def pytest_terminal_summary(terminalreporter, config):
    reports = [
        r for many in terminalreporter.stats.values() for r in many if hasattr(r, "duration")
    ]
    seconds = budgets.seconds_by_folder(reports)
    if len(seconds) > 1:
        terminalreporter.write_sep("=", "seconds per folder, of its budget")
        for line in budgets.table(seconds, budgets.BUDGETS, config.getoption("--runslow")):
            terminalreporter.write_line(line)


def pytest_unconfigure(config):
    if "PYTEST_XDIST_WORKER" not in os.environ and START in config.stash:
        compiled.tidy(compiled.folder(), config.stash[START])


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A tiny random SDXL directory, written by our own command."""
    from persongen_jax.weights.random_base import write_random_base

    return made_once(tmp_path_factory, "tiny-sdxl", write_random_base)


@pytest.fixture(scope="session")
def small_base(tmp_path_factory):
    """The same with a UNet of two levels, which compiles in a third of the time."""
    from tests.helpers.training_runs import small_base

    return small_base(tmp_path_factory)


@pytest.fixture(scope="session")
def sample_photos(tmp_path_factory):
    """The photographs that ship with scikit-image, as a manifest folder."""
    from data_pipeline.sample_photos import write_sample_photos

    return made_once(tmp_path_factory, "photos", lambda folder: write_sample_photos(folder, lfw=3))


@pytest.fixture
def golden(request):
    """golden(compute): what a public PyTorch class gives, live only where that is asked for."""
    live = "live" if request.config.getoption("--runslow") else "stored"
    return Golden(request.node, "record" if request.config.getoption("--record-goldens") else live)
