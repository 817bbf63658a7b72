"""Writing, editing and comparing bases."""

import json
import shutil

import numpy as np

from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.weights.files.safetensors_file import TensorFile, write_safetensors

UNET, VAE = "model.diffusion_model.", "first_stage_model."

MARKERS = {name: np.zeros(0, np.float32) for name in ("v_pred", "ztsnr")}


def save(path, tensors, metadata=None):
    entries = [(k, v.shape, v.dtype, lambda v=v: v) for k, v in tensors.items()]
    write_safetensors(path, entries, metadata)
    return path


def only(tensors, *prefixes):
    return {key: value for key, value in tensors.items() if key.startswith(prefixes)}


def edited(bare, tmp_path, **changes):
    """The bare directory with other values in its configs; by component."""
    folder = tmp_path / "edited"
    shutil.copytree(bare, folder)
    for name, change in changes.items():
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        path = folder / name / file
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    return folder


def unread(monkeypatch):
    """From here on, reading a tensor fails."""

    def read(self, key):
        raise AssertionError(f"{key} was read")

    monkeypatch.setattr(TensorFile, "read", read)


def check_same(files, state, parts=COMPONENTS):
    for name in parts:
        assert set(files.sources[name].keys()) == set(state[name]), name
        for key in list(state[name])[::20]:
            assert np.array_equal(files.sources[name].read(key), state[name][key]), key
