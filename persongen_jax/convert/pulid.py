"""PuLID's files in and out of the commands."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
from flax import nnx

from persongen_jax.models.branches import add_branch
from persongen_jax.models.id_attention import IDCrossAttention
from persongen_jax.models.layers import UnusedRngs
from persongen_jax.models.sdxl.parts import build
from persongen_jax.weights.files.directory import read_config
from persongen_jax.weights.formats.identity.pulid import (
    ENCODERS,
    check_pulid,
    read_pulid,
    write_pulid,
)


def import_pulid(path: str | Path, out: str | Path, base: str | Path | None) -> str:
    """Check ``path`` against a base, of which only the configs are read, and write ``out``."""
    with read_pulid(path) as file:
        kw = {"dtype": jnp.float32, "param_dtype": jnp.float32}
        configs = {"unet": read_config(Path(base or "") / "unet")}

        def make() -> Any:
            model: Any = nnx.Module()
            model.unet = build(configs, "unet", **kw)()
            model.id_adapter = ENCODERS[file.version](**file.sizes, **kw, rngs=UnusedRngs())
            add_branch(model.unet, "identity", IDCrossAttention)
            return model

        check_pulid(nnx.eval_shape(make), file)
        write_pulid(file, out)
        tokens = "32 tokens" if file.version == "v1.1" else "10 tokens of each reference"
        return f"PuLID {file.version}, {tokens}; generate reads it by --method-weights"
