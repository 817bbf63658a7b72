"""The check of attention kernels; on a CPU both of its sides are the same formula."""

import jax.numpy as jnp
import pytest

from benchmarks import kernels


@pytest.mark.parametrize("name", ["self, 512 px, inner", "text, masked"])
def test_attention_agrees_with_itself(name, monkeypatch):
    monkeypatch.setattr(kernels, "seconds", lambda *_: 1.0)
    row = kernels.compare_attention(name, kernels.ATTENTION[name], jnp.bfloat16, True)
    assert row["good"], row["errors"]
    assert set(row["errors"]) == {"out", "dq", "dk", "dv"}
    result = {"device": "d", "dtype": "bfloat16", "attention": [row], "layers": []}
    assert "WRONG" not in kernels.as_markdown(result)
