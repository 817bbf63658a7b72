"""Shared by all tests: the --runslow switch, and a tiny base that is written once."""

import os
import tempfile

import pytest

# Many tests compile the same programs, some of them in separate processes.
_cache = tempfile.TemporaryDirectory(prefix="persongen-jax-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", _cache.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

# Compilation takes most of the time; the lowest optimisation level takes two thirds as long. To
# test what users run: XLA_FLAGS=--xla_backend_optimization_level=3.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")


def pytest_addoption(parser):
    parser.addoption("--runslow", action="store_true", help="also run tests marked slow")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--runslow"):
        return
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="slow; run with --runslow"))


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A tiny random SDXL directory, written by our own command."""
    from persongen_jax.weights.random_base import write_random_base

    folder = tmp_path_factory.mktemp("tiny-sdxl")
    write_random_base(folder)
    return folder


@pytest.fixture(scope="session")
def sample_photos(tmp_path_factory):
    """The photographs that ship with scikit-image, as a manifest folder."""
    from data_pipeline.sample_photos import write_sample_photos

    folder = tmp_path_factory.mktemp("photos")
    write_sample_photos(folder, lfw=3)
    return folder
