"""IP-Adapters as a trainer leaves them."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from persongen_jax.convert.identify import identify
from persongen_jax.pipeline.loading import find_weights
from persongen_jax.weights.errors import (
    KeyMismatch,
    WeightsError,
)
from persongen_jax.weights.formats.ip_adapter import (
    is_ip_adapter,
    load_ip_adapter_into,
    read_ip_adapter,
)
from tests.helpers.ip_adapters import training_state
from tests.weights.formats.ip_adapter.models import RANK


def state_file(path, unet, published, **options):
    save_file(training_state(unet, published, **options), path)
    return path


@pytest.mark.parametrize("kept", ["adapter_modules", "processors", "some of each"])
@pytest.mark.parametrize("kind", ["base", "faceid"])
def test_a_training_state_is_read_as_the_published_file(kind, kept, unet, files, tmp_path):
    path = state_file(tmp_path / "model.safetensors", unet, files[kind][1], kept=kept)
    assert is_ip_adapter(path)
    with pytest.warns(UserWarning, match="tensors of the UNet .* are not used"):
        with read_ip_adapter(path) as found:
            assert set(found.tensors.keys()) == set(files[kind][1])
            for key, value in files[kind][1].items():
                assert np.array_equal(found.tensors.read(key), value.numpy()), key
    assert found.kind == kind and found.rank == (RANK if kind == "faceid" else None)


def test_a_training_state_as_a_pickle_of_several_processes(unet, files, tmp_path):
    """No shared tensor was left out, and each key has the prefix module."""
    tensors = training_state(unet, files["base"][1], kept="both")
    torch.save({f"module.{key}": value for key, value in tensors.items()}, tmp_path / "s.bin")
    with pytest.warns(UserWarning, match="not used"):
        with read_ip_adapter(tmp_path / "s.bin") as found:
            assert set(found.tensors.keys()) == set(files["base"][1])


def test_a_training_state_whose_halves_differ_or_are_missing(unet, files, tmp_path):
    tensors = training_state(unet, files["base"][1], kept="both")
    key = next(key for key in tensors if "processor.to_k_ip" in key)
    save_file({**tensors, key: tensors[key] + 1}, tmp_path / "a.safetensors")
    with pytest.raises(WeightsError, match="one tensor in training, and differ"):
        read_ip_adapter(tmp_path / "a.safetensors")
    bare = {key: x for key, x in tensors.items() if "_ip." not in key}
    save_file(bare, tmp_path / "b.safetensors")
    with pytest.warns(UserWarning, match="not used"):
        with pytest.raises(KeyMismatch, match=r"ip_adapter\.\*\.to_k_ip"):
            read_ip_adapter(tmp_path / "b.safetensors")


def test_inspect_knows_a_training_state(unet, files, tmp_path):
    path = state_file(tmp_path / "model.safetensors", unet, files["base"][1])
    found = identify(path)
    assert found.kind == "ip-adapter" and found.facts["from"] == "a training state"
    assert found.facts["attention layers"] == len(unet.attn_processors) // 2


@pytest.mark.parametrize("around", ["unet.module.", "unet._orig_mod.", "module.unet._orig_mod."])
def test_a_state_of_wrapped_modules(around, unet, files, tmp_path):
    published = files["base"][1]
    state = training_state(unet, published, kept="processors")
    tensors = {
        around + key.removeprefix("unet.") if key.startswith("unet.") else key: value
        for key, value in state.items()
    }
    save_file(tensors, tmp_path / "s.safetensors")
    with pytest.warns(UserWarning, match="not used"):
        with read_ip_adapter(tmp_path / "s.safetensors") as found:
            for key, value in published.items():
                assert np.array_equal(found.tensors.read(key), value.numpy()), key


def test_a_pickle_that_is_nested_in_a_state_dict(files, tmp_path):
    torch.save({"state_dict": files["base"][1], "epoch": 3}, tmp_path / "s.bin")
    with read_ip_adapter(tmp_path / "s.bin") as found:
        assert set(found.tensors.keys()) == set(files["base"][1])


def test_the_folder_that_a_trainer_left_is_taken(unet, files, tmp_path):
    assert find_weights(tmp_path) == tmp_path
    path = state_file(tmp_path / "model.safetensors", unet, files["base"][1])
    assert find_weights(tmp_path) == path
    (tmp_path / "checkpoints").mkdir()  # a run of this project
    assert find_weights(tmp_path) == tmp_path


def test_values_that_are_not_finite(files, loaded, tmp_path):
    key = next(key for key in files["base"][1] if "to_k_ip" in key)
    bad = {**files["base"][1], key: files["base"][1][key] * float("nan")}
    save_file(bad, tmp_path / "nan.safetensors")
    with pytest.raises(WeightsError, match=f"'{key}' holds values that are not finite"):
        load_ip_adapter_into(loaded["base"], tmp_path / "nan.safetensors")
    load_ip_adapter_into(loaded["base"], files["base"][0])
