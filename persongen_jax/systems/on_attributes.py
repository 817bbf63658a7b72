"""What systems on pictures with attributes share: the data set, by the config's keys."""

import functools

import jax

from data_pipeline.attributes.labelled import (
    AttributeData,
    Description,
    LabelledExamples,
    spec_of,
)
from data_pipeline.attributes.open import describe_attribute_data, open_attribute_data
from data_pipeline.attributes.vocabulary import Vocabulary
from persongen_jax.systems.base import System


class OnAttributes(System):
    """A system whose examples are pictures with attributes."""

    @classmethod
    def defaults(cls):
        config = super().defaults()
        # See data_pipeline/attributes/open.py.
        config.data = "digits"
        config.size = 32  # of the pictures, pixels
        config.attributes = ()  # names of those that are read; (): all
        config.csv = ""
        config.channels = 3  # of a folder's pictures
        config.data_dir = ""
        config.download = False
        config.mirror = True  # every other picture is mirrored, where that changes no attribute
        return config

    @functools.cached_property
    def described(self) -> Description:
        """All that the model depends on; the data need not be there for it, if they have a name."""
        return describe_attribute_data(self.config.data, **self._of_folder())

    @functools.cached_property
    def data(self) -> AttributeData:
        """The pictures."""
        config = self.config
        fetch = {"data_dir": config.data_dir, "download": config.download}
        return open_attribute_data(config.data, **self._of_folder(), **fetch)

    def _of_folder(self) -> dict:
        names = ("size", "attributes", "csv", "channels")
        return {name: self.config[name] for name in names}

    @property
    def vocabulary(self) -> Vocabulary:
        return self.described.vocabulary

    def abstract_batch(self, cached=False):
        b, spec = self.config.batch_size, spec_of(self.described.shape, len(self.vocabulary))
        return {name: jax.ShapeDtypeStruct((b, *s), d) for name, (s, d) in spec.items()}

    def source(self):
        mirror = self.config.mirror and self.data.mirror
        return LabelledExamples(self.data.train, seed=self.config.seed, mirror=mirror)
