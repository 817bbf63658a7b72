"""The search for the largest batch, without a compiler."""

import math

import pytest

from persongen_jax.aot import chips as aot_chips
from persongen_jax.aot.__main__ import (
    compile_for_topology,
    search,
)
from persongen_jax.aot.chips import GIB
from persongen_jax.aot.search import largest


@pytest.mark.parametrize("start", [1, 4, 300])
@pytest.mark.parametrize(
    ("fixed", "each", "truth"), [(6.0, 0.5, 20), (6.0, 0.01, 1000), (15.6, 0.3, 1), (2, 13.9, 1)]
)
def test_search_finds_the_largest(fixed, each, truth, start):
    tried = []

    def needs(n):
        tried.append(n)
        return fixed + each * n

    found = largest(needs, 16.0, [start])
    assert needs(found) <= 16.0
    assert truth - max(1, truth // 16) <= found <= truth
    assert len(tried) == len(set(tried)) + 1  # each once, plus the one above
    assert len(tried) < 8


def test_search_knows_only_whether_it_fits():
    assert 45 <= largest(lambda n: n if n <= 47 else math.inf, 1000, [4]) <= 47


@pytest.mark.parametrize("above", [0.001, 0.5, 100.0])
@pytest.mark.parametrize("fits", [5_000, 54_850, 99_900])
def test_search_is_fast_if_memory_is_not_linear(above, fits):
    """Near the limit the compiler makes more and more fit: the need stays just below or above."""
    tried = []

    def needs(n):
        tried.append(n)
        assert len(tried) < 30
        return min(16e-5 * n, 15.9) if n <= fits else 16 + above * n / 1e6

    assert fits * 16 / 17 <= largest(needs, 16.0, [20]) <= fits


def test_search_starts_from_known_tries():
    tried = []

    def needs(n):
        tried.append(n)
        return float(n)

    # 90 adds nothing to what 30 has shown.
    assert largest(needs, 16.0, [3, 12, 30, 90, 16]) == 16
    assert tried == [3, 12, 30, 16, 17]


def test_search_finds_that_nothing_fits():
    assert largest(lambda n: 17.0, 16.0, [4]) == 0


def test_search_continues_from_a_failure_without_a_figure(monkeypatch):
    """The compiler refused 8 without a figure, but 12 compiled."""
    chip = aot_chips.CHIPS["v5e"]
    monkeypatch.setattr("persongen_jax.aot.__main__.open_topology", lambda name: (chip, []))
    tries = {"8": None, "12": 15 * GIB, "13": 17 * GIB}
    before = [{"per_chip_batch": 12, "bytes": {"total": 15 * GIB}, "tries": tries}]
    row = search(None, "v5e:2x2", 4, before=before, tell=lambda said: None)
    assert row["per_chip_batch"] == 12


@pytest.mark.parametrize("run", [search, compile_for_topology])
def test_an_empty_batch_is_refused(run):
    with pytest.raises(ValueError, match="--per_chip_batch -1: give at least 1"):
        run(None, "v5e:2x2", -1)
