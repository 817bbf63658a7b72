"""The eighth method of docs/methods.md works as printed."""

import re
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from persongen_jax import methods
from persongen_jax.systems.open import open_system
from persongen_jax.training.optimizer import make_optimizer
from persongen_jax.training.partition import assign_groups, leaf_paths
from tests.helpers.training_runs import small_base
from tests.methods.test_all_methods import make_batch

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"


@pytest.fixture
def example(monkeypatch):
    """The config, after running the three blocks in order."""
    blocks = re.findall(r"```python\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3 and sum(len(block.splitlines()) for block in blocks) < 60
    monkeypatch.setattr(methods, "METHODS", dict(methods.METHODS))
    scope = {"METHODS": methods.METHODS}
    for block in blocks:
        exec(compile(block, str(DOCS), "exec"), scope)
    return scope["get_config"]()


def test_the_eighth_method(example, tmp_path_factory):
    example.base, example.id_encoder = str(small_base(tmp_path_factory)), ""
    system = open_system(example)
    groups = assign_groups(leaf_paths(system.model), system.table)
    make_optimizer(example, groups)
    batch, model = make_batch(system, references=3), system.model
    found = system.condition(model, batch).streams["identity"]
    each = methods.get_method("id_branch").condition(model, batch).streams["identity"]
    assert np.allclose(found.tokens[:, 0], each.tokens[:, :3].mean(axis=1), atol=1e-5)
    assert found.mask.shape == (2, 1) and found.mask.all()
    nobody = {**batch, "id_mask": jnp.zeros_like(batch["id_mask"])}
    assert not system.condition(model, nobody).streams["identity"].mask.any()
