"""References with grey around the person."""

import numpy as np
import pytest
from PIL import Image as Picture

from data_pipeline.examples.fields import Image
from data_pipeline.examples.identity.masked_references import GREY, MaskedReferences, grey_around
from data_pipeline.examples.source import ExampleSource
from data_pipeline.records.schema import Record


def test_grey_where_the_mask_is_black_of_any_size():
    image = np.full((8, 8, 3), 200, np.uint8)
    mask = np.zeros((4, 4, 3), np.uint8)
    mask[:, 2:] = 255
    found = grey_around(image, mask)
    assert (found[:, :2] == GREY).all() and (found[:, 6:] == 200).all()
    # Half of a pixel is half of both.
    half = grey_around(image, np.full((8, 8, 3), 255 / 2).astype(np.uint8))
    assert np.abs(half.astype(int) - (200 + GREY) / 2).max() <= 1


@pytest.fixture
def records(tmp_path):
    out = []
    for i in range(3):
        picture, mask = np.full((16, 16, 3), 50 * i, np.uint8), np.zeros((16, 16), np.uint8)
        mask[4:12, 4:12] = 255
        for name, array in ((f"{i}.png", picture), (f"{i}_mask.png", mask)):
            Picture.fromarray(array).save(tmp_path / name)
        images = {"mask": str(tmp_path / f"{i}_mask.png")}
        image = str(tmp_path / f"{i}.png")
        out.append(Record(image, "ann", "a woman img", face_box=(2, 2, 14, 14), images=images))
    return out


def test_references_are_masked_and_the_target_is_not(records, caplog):
    field = MaskedReferences(8)
    source = ExampleSource(records, (Image(), field), seed=0, size=16, random_crop=False)
    assert "does not read" not in caplog.text
    crop = field.crop(source, records[2])
    assert (crop[0] == GREY).all() and (crop[4, 4] == 100).all()
    example = source.example(0)
    assert np.unique(example["pixel_values"]).size == 1


def test_a_record_without_a_mask_is_refused_before_training(records):
    records[1] = Record(records[1].image, "ann", "a woman img")
    with pytest.raises(ValueError, match=r'1\.png: config\.references="masked" needs a mask'):
        ExampleSource(records, (Image(), MaskedReferences(8)), seed=0, size=16)
