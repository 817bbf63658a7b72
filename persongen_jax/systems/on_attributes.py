"""What systems on images with attributes share: the data set, chosen by the config's keys."""

import functools

import jax
from ml_collections import ConfigDict

from data_pipeline.attributes.labelled import (
    AttributeData,
    Description,
    LabelledExamples,
    select_attributes,
    spec_of,
)
from data_pipeline.attributes.open import describe_attribute_data, open_attribute_data
from data_pipeline.attributes.vocabulary import Vocabulary
from data_pipeline.examples.fields import Batch
from persongen_jax.systems.base import System


class AttributeSystem(System):
    """A system whose examples are images with attributes."""

    @classmethod
    def defaults(cls) -> ConfigDict:
        config = super().defaults()
        # See data_pipeline/attributes/open.py.
        config.data = "digits"
        config.size = 32  # of the images, in pixels
        config.attributes = ()  # names of the attributes to read; (): all
        config.csv = ""
        config.channels = 3  # of a folder's images
        config.data_dir = ""
        config.download = False
        config.mirror = True  # mirror every other image, if that changes no attribute
        # The data's description when training began: a run fills it in by itself.
        config.described = ConfigDict()
        return config

    @classmethod
    def resolve_config(cls, config: ConfigDict) -> ConfigDict:
        config = config.copy_and_resolve_references()
        config.described = ConfigDict(_describe(config).to_dict())
        return config

    @functools.cached_property
    def described(self) -> Description:
        """All that the model depends on; for a run, as it was when training began."""
        said = self.config.described
        return Description.from_dict(said) if said else _describe(self.config)

    @functools.cached_property
    def data(self) -> AttributeData:
        """The images, with the attributes of ``described`` in its order."""
        config = self.config
        fetch = {"data_dir": config.data_dir, "download": config.download}
        found = open_attribute_data(config.data, **_of_folder(config), **fetch)
        return select_attributes(found, self.described, config.data)

    @property
    def vocabulary(self) -> Vocabulary:
        return self.described.vocabulary

    def abstract_batch(self, cached: bool = False) -> Batch:
        b, spec = self.config.batch_size, spec_of(self.described.shape, len(self.vocabulary))
        return {name: jax.ShapeDtypeStruct((b, *s), d) for name, (s, d) in spec.items()}

    def source(self) -> LabelledExamples:
        mirror = self.config.mirror and self.data.mirror
        return LabelledExamples(self.data.train, seed=self.config.seed, mirror=mirror)


def _describe(config) -> Description:
    return describe_attribute_data(config.data, **_of_folder(config))


def _of_folder(config) -> dict:
    return {name: config[name] for name in ("size", "attributes", "csv", "channels")}
