"""Training on a folder without a manifest: found, checked and said before the base is opened."""

import json

import numpy as np
import pytest
from PIL import Image

from data_pipeline.records.sources import SourceError
from persongen_jax import train
from persongen_jax.settings import pin_references
from persongen_jax.systems.sdxl import Sdxl
from persongen_jax.training.trained import saved_config
from tests.helpers.training_runs import small_base, small_config

skimage_data = pytest.importorskip("skimage.data")


@pytest.fixture
def photos(tmp_path):
    her = skimage_data.astronaut()
    for i, image in enumerate([her, her[:, ::-1], her[:300, 50:400], skimage_data.coffee()]):
        path = tmp_path / "photos" / "eileen" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def config(tmp_path_factory, photos):
    config = small_config(small_base(tmp_path_factory), photos)
    config.steps, config.checkpoint_every = 2, 2
    return config


@pytest.mark.parametrize("dry_run", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_folder_is_enough(config, photos, tmp_path, capsys, dry_run):
    assert train.train(config, tmp_path / "run", dry_run)
    said = capsys.readouterr().out
    assert "has no manifest.jsonl; making it" in said
    assert "left out, no face found: eileen/3.png" in said
    assert "3 images of 1 people" in said
    lines = (photos / "manifest.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[0])["caption"] == "a photo of a person img"
    saved = Sdxl.resolve_config(config).to_dict() if dry_run else saved_config(tmp_path / "run")
    assert saved["references"] == "face"
    # Without boxes references are whole; a run keeps what it derived when it began.
    entries = [json.loads(line) for line in lines]
    without = [{k: v for k, v in e.items() if k != "face_box"} for e in entries]
    (photos / "manifest.jsonl").write_text("".join(json.dumps(e) + "\n" for e in without))
    now = Sdxl.resolve_config(config)
    assert now.references == "whole"
    assert pin_references(now, saved).references == "face"
    assert pin_references(now, None).references == "whole"


@pytest.mark.parametrize("dry_run", [False, True])
def test_faults_are_told_before_the_base_is_opened(config, photos, tmp_path, dry_run):
    config.base = str(tmp_path / "no such base")
    entry = {"identity": "a", "caption": "a man img"}
    (photos / "eileen/broken.png").write_bytes(b"broken")
    rows = [{**entry, "image": "eileen/0.png"}, {**entry, "image": "eileen/broken.png"}]
    (photos / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="1 images cannot be read.*\n  line 2: .*broken.png"):
        train.train(config, tmp_path / "run", dry_run)
    rows[1] |= {"image": "eileen/1.png", "caption": "no trigger"}
    (photos / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match='1 lines cannot be used\n  line 2.*"img" appears 0 times'):
        train.train(config, tmp_path / "run", dry_run)
    config.method = "id_branch"  # reads prompts without the trigger word
    with pytest.raises(Exception, match="no such base"):
        train.train(config, tmp_path / "run", dry_run)


def test_without_the_detector_the_remedy_is_named(config, tmp_path, monkeypatch):
    from data_pipeline.faces import shipped

    monkeypatch.setattr(shipped, "PACKAGE", "a_package_that_is_not_installed")
    with pytest.raises(SourceError, match=r"no manifest.jsonl, and no detector.*\[faces\]"):
        train.train(config, tmp_path / "run")
