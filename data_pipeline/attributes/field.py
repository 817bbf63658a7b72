"""The field of attributes: what an image shows, or should show."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from data_pipeline.attributes.vocabulary import Vocabulary
from data_pipeline.examples.fields import Batch, Field, Spec, array_spec


class Attributes(Field):
    """ "attributes" [K] float32 in 0..1; "attributes_known" [K] float32, 0 where unknown, else 1.

    If the condition is dropped, nothing is known.

    Args:
        vocabulary: of the data.
    """

    name = "attributes"

    def __init__(self, vocabulary: Vocabulary):
        self.vocabulary = vocabulary

    def spec(self, shape: tuple[int, int]) -> Spec:
        k = (len(self.vocabulary),)
        return array_spec(attributes=(k, np.float32), attributes_known=(k, np.float32))

    def dropped(self, batch: Batch, xp: Any) -> dict:
        names = ("attributes", "attributes_known")
        return {name: xp.zeros_like(batch[name]) for name in names}

    def of_requests(self, requests: Iterable[str]) -> dict[str, np.ndarray]:
        """The arrays [n, K] for n requests, see Vocabulary.parse.

        Raises:
            RequestError: an attribute that the data do not have, or a contradiction.
        """
        parsed = [self.vocabulary.parse(request) for request in requests]
        values, known = (np.stack(rows) for rows in zip(*parsed, strict=True))
        return {"attributes": values, "attributes_known": known}
