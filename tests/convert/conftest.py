"""A run, the base as a pipeline and as diffusers' UNet, and what is exported from the run."""

import pytest
from diffusers import UNet2DConditionModel

from persongen_jax.convert.exporting import export_run
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.open import open_run
from tests.convert.runs import write_run


@pytest.fixture(scope="session")
def workdir(tiny_base, tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("run"), tiny_base, "photomaker_bg")


@pytest.fixture(scope="session")
def run(workdir):
    return open_run(workdir)


@pytest.fixture(scope="session")
def pipe(tiny_base):
    return Pipeline.from_pretrained(tiny_base)


@pytest.fixture(scope="session")
def unet(tiny_base):
    return UNet2DConditionModel.from_pretrained(tiny_base / "unet")


@pytest.fixture(scope="session")
def exported(run, tmp_path_factory):
    """Path of a LoRA file by style."""
    folder = tmp_path_factory.mktemp("exported")
    names = ("diffusers", "kohya", "sgm", "comfy")
    paths = {name: folder / f"{name}.safetensors" for name in names}
    paths["peft"] = folder / "peft"
    export_run(run, paths["diffusers"], "diffusers-lora")
    export_run(run, paths["kohya"], "kohya-lora")
    export_run(run, paths["sgm"], "kohya-lora", sgm_names=True)
    export_run(run, paths["comfy"], "comfy")
    export_run(run, paths["peft"], "peft")
    return paths
