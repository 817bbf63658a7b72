"""Masks of where the loss counts."""

import numpy as np
import pytest
from PIL import Image

from data_pipeline.examples.fields import Image as ImageField
from data_pipeline.examples.loss_mask import LossMask
from data_pipeline.examples.source import ExampleSource
from data_pipeline.records.schema import Record


@pytest.fixture
def records(tmp_path):
    """Two pictures of 8 x 16 pixels; the first has a mask of its left half."""
    for name in ("1", "2"):
        Image.fromarray(np.zeros((8, 16, 3), np.uint8)).save(tmp_path / f"{name}.png")
    mask = np.zeros((8, 16), np.uint8)
    mask[:, :8] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    with_mask = {"images": {"mask": str(tmp_path / "mask.png")}}
    return [
        Record(str(tmp_path / "1.png"), "ann", "a woman img", **with_mask),
        Record(str(tmp_path / "2.png"), "ann", "a woman img"),
    ]


def test_it_is_cropped_like_the_target_and_others_count_whole(records, caplog):
    fields = (ImageField(), LossMask("mask"))
    source = ExampleSource(records, fields, seed=0, size=8, random_crop=False)
    assert "1 images have no such mask and count whole" in caplog.text
    masks = [source.example(n)["loss_mask"] for n in range(2)]
    whole = next(mask for mask in masks if mask.all())
    half = next(mask for mask in masks if not mask.all())
    assert whole.shape == half.shape == (8, 8) and whole.dtype == np.float32
    # The middle 8 columns: 4 of the left half, 4 of the right.
    assert half[:, :4].min() == 1 and half[:, 4:].max() == 0


def test_a_mask_of_another_shape_is_refused(records, tmp_path):
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "mask.png")
    with pytest.raises(ValueError, match="another aspect ratio"):
        ExampleSource(records, (ImageField(), LossMask("mask")), seed=0, size=8)
