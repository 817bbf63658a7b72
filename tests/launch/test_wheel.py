"""A wheel installs and runs the miniature outside the checkout."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PACKAGES = ("persongen_jax", "data_pipeline", "configs")
PIP = (sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check")


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder that holds what the wheel installs, and nothing else."""
    folder = tmp_path_factory.mktemp("wheel")
    # A build in the checkout would also pack what an earlier build left in build/.
    source = folder / "source"
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "README.md", "LICENSE", "NOTICE"):
        shutil.copy(ROOT / name, source)
    build = ("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, source)
    subprocess.run([*PIP, *build], check=True, timeout=300)
    (wheel,) = folder.glob("*.whl")
    subprocess.run(
        [*PIP, "install", "--no-deps", "--target", folder / "site", wheel], check=True, timeout=300
    )
    shutil.rmtree(source)
    return folder / "site"


def run(installed, cwd, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-m", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=300
    )


def test_setup_names_every_file_of_the_packages():
    from distutils.core import run_setup

    import setuptools  # noqa: F401 - Python 3.12 has distutils from it

    dist = run_setup(str(ROOT / "setup.py"), stop_after="init")
    left = []
    for name in PACKAGES:
        for path in (ROOT / name).rglob("*"):
            if not path.is_file() or "__pycache__" in path.parts:
                continue
            package = ".".join(path.relative_to(ROOT).parent.parts)
            if path.suffix == ".py" and package in dist.packages:
                continue
            patterns = [(own, p) for own, ps in dist.package_data.items() for p in ps]
            if not any(path in (ROOT / o.replace(".", "/")).glob(p) for o, p in patterns):
                left.append(path.relative_to(ROOT))
    assert len(dist.packages) > 20 and not left


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_packages(installed):
    for name in PACKAGES:
        files = {
            path.relative_to(ROOT)
            for path in (ROOT / name).rglob("*")
            if path.is_file() and "__pycache__" not in path.parts
        }
        assert len(files) > 20 and not [path for path in files if not (installed / path).is_file()]


@pytest.mark.slow
def test_a_person_of_the_miniature_outside_the_checkout(installed, tmp_path):
    people = ("--split", "out_of_train", "--identities", 1, "--pictures", 2)
    done = run(installed, tmp_path, "data_pipeline.people", "--out", "people", *people)
    assert done.returncode == 0, done.stderr
    assets = installed / "persongen_jax" / "assets"
    done = run(
        *(installed, tmp_path, "persongen_jax.generate", "--base", assets / "sdxl"),
        *("--method-weights", assets / "photomaker-v1.safetensors"),
        *("--reference", sorted((tmp_path / "people" / "images").glob("*_000.png"))[0]),
        *("--prompt", "a photo of a person img in a room", "--steps", 2, "--out", "pictures"),
    )
    assert done.returncode == 0, done.stderr
    (picture,) = (tmp_path / "pictures").glob("*.png")
    assert np.asarray(Image.open(picture)).std() > 1


@pytest.mark.slow
def test_training_by_an_installed_config(installed, tmp_path):
    config = ("--config", "configs/mini/photomaker_bg.py", "--config.steps=7")
    done = run(installed, tmp_path, "persongen_jax.train", *config, "--dry_run")
    assert done.returncode == 0, done.stderr
    prompts = installed / "configs" / "mini" / "prompts.json"
    assert f"validation_prompts: {prompts}" in done.stdout and "steps: 7" in done.stdout


@pytest.mark.slow
def test_a_package_of_ones_own_named_configs(installed, tmp_path):
    (tmp_path / "configs").mkdir()
    config = ("--config", "configs/mini/photomaker_bg.py")
    (tmp_path / "configs" / "__init__.py").touch()
    done = run(installed, tmp_path, "persongen_jax.train", *config, "--dry_run")
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert "another package named configs" in done.stderr and str(tmp_path) in done.stderr

    (tmp_path / "configs" / "__init__.py").unlink()
    done = run(installed, tmp_path, "persongen_jax.train", *config, "--dry_run")
    assert done.returncode == 0, done.stderr
