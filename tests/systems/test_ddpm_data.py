"""A DDPM's data, judges and configs, and which of them are refused."""

import csv
import json
import shutil

import numpy as np
import pytest

from configs.attributes import celeba, classifier, digits, drawn_faces, mnist
from data_pipeline.attributes.drawn_faces import VOCABULARY, write_folder
from persongen_jax.evaluation.held_out import HeldOut
from persongen_jax.evaluation.validation import open_evaluation
from persongen_jax.metrics.attribute_judge import AttributeJudge
from persongen_jax.metrics.base import Known, Owner, People
from persongen_jax.pipeline.attributes import AttributePipeline
from persongen_jax.settings import check_resumable
from persongen_jax.systems import ddpm
from persongen_jax.systems.attribute_classifier import Classifier
from persongen_jax.systems.open import abstract_system, complete_config, open_system
from tests.systems.ddpm_config import get_config


@pytest.fixture
def faces(tmp_path):
    """A folder of drawn faces, and the config of a new run on it."""
    write_folder(tmp_path / "faces", 40, 16)
    return tmp_path / "faces", ddpm.Ddpm.resolve_config(config_of(tmp_path / "faces"))


def config_of(folder):
    config = drawn_faces.get_config()
    config.data, config.size, config.validation_every = str(folder), 16, 0
    config.block_out_channels, config.attention = (8, 16), (False, True)
    config.norm_num_groups, config.attention_head_dim = 4, 4
    return config


def rewritten(folder, change):
    """The folder's table with other columns: ``change`` maps {name: cells} to another."""
    path = folder / "attributes.csv"
    with open(path, newline="") as file:
        names, *cells = csv.reader(file)
    columns = change(dict(zip(names, zip(*cells, strict=True), strict=True)))
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([columns, *zip(*columns.values(), strict=True)])


def test_a_run_knows_its_attributes_when_its_folder_is_gone(faces):
    folder, config = faces
    shutil.rmtree(folder)
    saved = complete_config(json.loads(config.to_json()))
    system = open_system(saved)
    assert system.vocabulary == VOCABULARY and system.described.shape == (16, 16, 3)
    assert AttributePipeline(system)("hat=1", num_inference_steps=1).shape == (1, 16, 16, 3)


def test_columns_in_another_order_mean_the_same(faces, capsys):
    folder, config = faces
    before = open_system(config).data
    rewritten(folder, lambda columns: {**dict(reversed(columns.items())), "tall": ["0", "1"] * 20})
    after = open_system(config).data
    assert after.vocabulary == before.vocabulary
    assert np.array_equal(after.train.values, before.train.values)
    assert "tall: not read, the run was trained without" in capsys.readouterr().out


def test_a_folder_that_is_not_the_run_s_is_named(faces):
    folder, config = faces
    rewritten(folder, lambda columns: {n: c for n, c in columns.items() if n != "hat"})
    with pytest.raises(ValueError, match="was trained with hat, which these data do not have"):
        _ = open_system(config).data
    with pytest.raises(ValueError, match="trained with another config.*described"):
        check_resumable(
            folder, config.to_dict(), ddpm.Ddpm.resolve_config(config_of(folder)).to_dict()
        )


def test_a_judge_that_cannot_judge_is_named(judge):
    judge, picture = AttributeJudge(str(judge)), np.zeros((16, 16, 3), np.uint8)
    owner = Owner("hat=1", list, lambda limit=None: [picture])
    known = Known("seen", People(lambda: [owner]), People(list))
    with pytest.raises(ValueError, match="reads images of 8x8 pixels, the run's have 16x16"):
        judge.check(known)
    with pytest.raises(ValueError, match="cannot judge 'hat=1': .* --config.data"):
        judge.parse("hat=1")


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"size": 30, "data": "drawn_faces"}, "30 pixels cannot be halved 2 times"),
        ({"attention": (True,)}, "config.attention has 1 entries for 3"),
        ({"data": "no/such/folder"}, "neither a folder nor one of digits"),
        ({"conditioning": "somehow"}, "config.conditioning='somehow' is not supported"),
        ({"attributes": ("glases",)}, "no 'glases'.*did you mean glasses"),
        ({"size": 8}, "at least 16"),
        ({"validation_images": 0}, "validation_images=0: at least 1"),
        ({"dtype": "half"}, "config.dtype='half' is not supported"),
        ({"hide_prob": 1.5}, "config.hide_prob=1.5: a probability is 0 to 1"),
        ({"csv": "labels.csv"}, "config.csv='labels.csv' has no effect on drawn_faces"),
        ({"channels": 1}, "config.channels=1: drawn_faces is in colour"),
        ({"data": "digits"}, "config.size=32: the digits are images of 8x8"),
        ({"drop_prob": 0.0}, "validation_guidance=3 needs .*drop_prob above 0"),
    ],
)
def test_a_config_that_cannot_be(changes, said):
    config = drawn_faces.get_config()
    config.update(changes)
    with pytest.raises(ValueError, match=said):
        open_system(config)


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"x0_weighting": "p2"}, "config.x0_weighting='p2' is unknown; give constant, snr"),
        ({"x0_weighting": "snr", "min_snr_gamma": 5.0}, "min_snr_gamma=5 both weight"),
    ],
)
def test_an_objective_is_checked_when_a_config_is_opened(changes, said):
    config = get_config()
    config.update(changes)
    with pytest.raises(ValueError, match=said):
        abstract_system(config)


@pytest.mark.parametrize("changes", [{"download": True}, {"data_dir": "somewhere"}])
def test_what_only_fetched_data_read_is_named(changes):
    config = drawn_faces.get_config()
    config.update(changes)
    with pytest.raises(ValueError, match=f"config.{next(iter(changes))}=.* has no effect on drawn"):
        _ = ddpm.Ddpm.abstract(config).data


def test_few_attributes_leave_no_combination_unseen():
    config = drawn_faces.get_config()
    config.attributes = ("glasses",)
    with pytest.raises(ValueError, match="none is left to validate as unseen"):
        ddpm.Ddpm.abstract(config).cases("unseen")


def test_a_judge_of_few_pictures_has_a_sheet():
    config = classifier.get_config("digits")
    held = HeldOut(open_system(config))
    few = np.zeros((3, 8, 8, 3), np.uint8)
    assert held.sheet("held_out", few).ndim == 3 and len(held.rows("held_out", few)) == 1
    config.widths = ()
    with pytest.raises(ValueError, match="give one or more multiples of 8"):
        open_system(config)


def test_a_judge_that_is_none(run, tmp_path):
    def opened(path):
        config = get_config()
        config.classifier = str(path)
        open_evaluation(open_system(config))

    with pytest.raises(ValueError, match="there is no trained classifier; train it first"):
        opened(tmp_path / "nothing")
    with pytest.raises(ValueError, match="is a run of ddpm"):
        opened(run)


@pytest.mark.parametrize(
    "module, shape, k",
    [
        (digits, (8, 8, 1), 10),
        (mnist, (28, 28, 1), 10),
        (celeba, (64, 64, 3), 40),
        (drawn_faces, (32, 32, 3), 7),
    ],
)
def test_every_config_opens_in_the_abstract(module, shape, k):
    """Its data need not exist: aot compiles for machines that have them."""
    system = ddpm.Ddpm.abstract(module.get_config())
    batch = system.abstract_batch()
    assert batch["pixel_values"].shape[1:] == shape and batch["attributes"].shape[1:] == (k,)
    assert "data" not in vars(system)


def test_a_judge_for_every_data_set():
    for data in classifier.SETS:
        Classifier.abstract(classifier.get_config(data))
    with pytest.raises(ValueError, match="classifier.py:faces: there are digits"):
        classifier.get_config("faces")
