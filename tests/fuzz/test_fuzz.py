"""Files damaged at random are read, or refused by name; see tests/fuzz."""

import pytest

from tests.fuzz.run import try_all, try_one
from tests.fuzz.targets import write_targets

# Readers that take milliseconds.
LIGHT = ("inspect", "picture", "manifest", "table")
# Damage by (target, seed) that once ended in a traceback or did not name the file.
ONCE_WRONG = (
    ("base: tokenizer/tokenizer.json", 16),
    ("base: tokenizer/tokenizer_config.json", 17),
    ("base: tokenizer_2/special_tokens_map.json", 19),
    ("base: tokenizer_2/tokenizer.json", 20),
    ("base: tokenizer_2/tokenizer_config.json", 21),
    ("base: vae/config.json", 24),
    ("base: text_encoder/config.json", 46),
    ("base: tokenizer/special_tokens_map.json", 48),
    ("base: scheduler/scheduler_config.json", 78),
    ("base: text_encoder_2/config.json", 80),
    ("base: tokenizer_2/tokenizer_config.json", 87),
    ("base: scheduler/scheduler_config.json", 639),
    ("base: scheduler/scheduler_config.json", 1002),
)


@pytest.fixture(scope="module")
def targets(tiny_base, tmp_path_factory):
    return write_targets(tmp_path_factory.mktemp("sound"), tiny_base)


def of(faults) -> str:
    return "\n".join(f"{f.target}, seed {f.seed}: {f.what}\n{f.trace}" for f in faults)


def test_sound_files_are_read(targets, tmp_path):
    """Otherwise refusing all damaged files would mean nothing."""
    for name, target in targets.items():
        if any(word in name for word in LIGHT):
            target.read(target.file)


def test_three_hundred_damaged_files(targets, tmp_path):
    light = {name: t for name, t in targets.items() if any(word in name for word in LIGHT)}
    outcomes, faults = try_all(light, 300, tmp_path)
    assert not faults, of(faults)
    total = sum(outcomes.values(), start=type(next(iter(outcomes.values())))())
    assert total["refused"] > 100 and total["read"] > 10


@pytest.mark.slow
@pytest.mark.parametrize(("name", "seed"), ONCE_WRONG)
def test_earlier_faults(targets, tmp_path, name, seed):
    _, fault = try_one(targets[name], name, seed, tmp_path)
    assert fault is None, of([fault])
