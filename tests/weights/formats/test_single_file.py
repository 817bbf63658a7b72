"""A single-file checkpoint with the original names generates the images of its directory."""

import json
import shutil

import numpy as np
import pytest

from persongen_jax.models.sdxl.parts import COMPONENTS
from persongen_jax.pipeline import Pipeline
from persongen_jax.weights.errors import KeyMismatch, MissingFile
from persongen_jax.weights.files.directory import open_component, read_config
from persongen_jax.weights.formats.sdxl.opening import NORMALISE
from tests.helpers.lora_files import save
from tests.weights.formats.sgm import checkpoint


@pytest.fixture(scope="module")
def state(tiny_base):
    out = {}
    for name in COMPONENTS:
        with open_component(tiny_base / name) as file:
            source = NORMALISE[name](file)
            out[name] = {key: source.read(key) for key in source.keys()}
    return out


@pytest.fixture(scope="module")
def single_file(tiny_base, state, tmp_path_factory):
    path = tmp_path_factory.mktemp("single") / "sdxl.safetensors"
    return save(path, checkpoint(state, read_config(tiny_base / "unet")))


@pytest.fixture(scope="module")
def config_folder(tiny_base, tmp_path_factory):
    """The directory without any weights."""
    folder = tmp_path_factory.mktemp("configs") / "base"
    shutil.copytree(tiny_base, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def paint(pipe):
    settings = {"num_inference_steps": 3, "output_type": "np", "seed": 4}
    return pipe("a man in a hat", "blurry", **settings).images


def test_paints_what_the_directory_paints(tiny_base, single_file, config_folder):
    wanted = paint(Pipeline.from_pretrained(tiny_base))
    found = paint(Pipeline.from_pretrained(single_file, config=config_folder))
    assert np.array_equal(found, wanted)
    assert wanted.std() > 0.05


def test_saved_again_it_is_the_directory(tiny_base, single_file, config_folder, state, tmp_path):
    Pipeline.from_pretrained(single_file, config=config_folder).save_pretrained(tmp_path)
    for name in COMPONENTS:
        with open_component(tmp_path / name) as file:
            source = NORMALISE[name](file)
            assert set(source.keys()) == set(state[name])
            for key, value in state[name].items():
                assert np.array_equal(source.read(key), value), key


def test_what_is_missing_is_named(single_file, config_folder, state, tmp_path):
    with pytest.raises(MissingFile, match="config=DIR"):
        Pipeline.from_pretrained(single_file)
    with pytest.raises(MissingFile, match="nothing"):
        Pipeline.from_pretrained(single_file, config=tmp_path / "nothing")
    with pytest.raises(MissingFile, match="gone.safetensors"):
        Pipeline.from_pretrained(tmp_path / "gone.safetensors", config=config_folder)
    tensors = checkpoint(state, read_config(config_folder / "unet"))
    del tensors["model.diffusion_model.input_blocks.0.0.weight"]
    path = save(tmp_path / "part.safetensors", tensors)
    with pytest.raises(KeyMismatch, match="part.safetensors") as caught:
        Pipeline.from_pretrained(path, config=config_folder)
    assert list(caught.value.missing) == ["conv_in.weight"]


@pytest.mark.slow
def test_a_marker_paints_what_a_config_paints(state, tiny_base, config_folder, tmp_path):
    """v-prediction with zero terminal SNR, marked by two empty tensors."""
    tensors = checkpoint(state, read_config(tiny_base / "unet"))
    tensors |= {name: np.zeros(0, np.float32) for name in ("v_pred", "ztsnr")}
    path = save(tmp_path / "v.safetensors", tensors)
    folder = tmp_path / "told"
    folder.mkdir()
    for part in tiny_base.iterdir():
        (folder / part.name).symlink_to(part)
    (folder / "scheduler").unlink()
    (folder / "scheduler").mkdir()
    name = "scheduler/scheduler_config.json"
    told = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    (folder / name).write_text(json.dumps(json.loads((tiny_base / name).read_text()) | told))
    with pytest.warns(UserWarning, match="v_prediction is taken"):
        found = Pipeline.from_pretrained(path, config=config_folder)
    wanted = paint(Pipeline.from_pretrained(folder))
    assert np.array_equal(paint(found), wanted)
    found.save_pretrained(tmp_path / "saved")
    assert json.loads((tmp_path / "saved" / name).read_text()) | told == found.base.scheduler_config
