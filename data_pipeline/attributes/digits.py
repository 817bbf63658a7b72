"""Handwritten digits that ship with scikit-learn: 1,797 images of 8x8, nothing to download."""

import numpy as np

from data_pipeline.attributes.labelled import AttributeData, LabelledImages
from data_pipeline.attributes.vocabulary import Vocabulary

VOCABULARY = Vocabulary.of_classes("digit", tuple(map(str, range(10))))
SHAPE = (8, 8, 1)
HELD_OUT = 6  # every sixth image is for testing


def open_digits() -> AttributeData:
    """Grey images [8, 8, 1] and the class ``digit``.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "config.data='digits' needs scikit-learn: pip install 'persongen_jax[first_light]'"
        ) from error
    digits = load_digits()
    # Pixels are counts of 0 to 16.
    images = (digits.images * (255 / 16)).round().astype(np.uint8)[..., None]
    values = VOCABULARY.values_of_classes(digits.target)
    test = np.arange(len(images)) % HELD_OUT == 0
    return AttributeData(
        VOCABULARY,
        LabelledImages(images[~test], values[~test], "scikit-learn-digits-train"),
        LabelledImages(images[test], values[test], "scikit-learn-digits-test"),
    )
