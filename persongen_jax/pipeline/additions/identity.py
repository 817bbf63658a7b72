"""The pipeline's identity method: load, unload."""

import abc
import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flax import nnx
from jax.sharding import Mesh

from data_pipeline.examples.fields import Field, TimeIds
from persongen_jax.diffusion.scheduler_config import scheduler_of_run
from persongen_jax.methods import get_method
from persongen_jax.methods.base import Method, Model, Parts
from persongen_jax.pipeline import checks, loading
from persongen_jax.pipeline.method_options import with_options
from persongen_jax.pipeline.words import METHOD, AddedWords
from persongen_jax.training.partition import fill_trained, set_leaves
from persongen_jax.weights.formats.sdxl.loading import SDXLBase


class WithMethod(abc.ABC):
    """A pipeline's identity method, attached to the base's model.

    Attributes:
        adapters, words: its LoRA is one of the adapters, its words are as those of files.
    """

    base: SDXLBase
    mesh: Mesh
    adapters: loading.Adapters
    words: AddedWords
    _of_base: dict
    _own_schedule: dict

    @property
    @abc.abstractmethod
    def model(self) -> Model:
        """The base's networks, with what has been added to them."""

    @property
    @abc.abstractmethod
    def method(self) -> Method | None:
        """The loaded method."""

    @abc.abstractmethod
    def _set_method(
        self, method: Method | None, fields: tuple[Field, ...] = (), released: bool = False
    ) -> None:
        """Use this method, attached to the model; None: the base alone."""

    @abc.abstractmethod
    def _put_adapters(self, adapters: loading.Adapters) -> None:
        """Put these LoRAs on the model."""

    @abc.abstractmethod
    def _place(self) -> None:
        """Place every array of the model on the devices."""

    @abc.abstractmethod
    def _check_style(self) -> None:
        """ValueError if the style adapter cannot act next to the method that is attached."""

    @abc.abstractmethod
    def _style_taken_off(self) -> contextlib.AbstractContextManager[None]:
        """Inside, the UNet has no branch for style."""

    def load_method(
        self,
        name: str | None,
        weights: str | Path,
        *,
        encoder: str | Path = "",
        clip: str | Path = "",
        controlnet: str | Path = "",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """Load a trained identity method; then pass ``references`` when calling.

        Args:
            name: the method. None: the one that a run trained; for a file photomaker, ip_adapter,
                instantid or pulid.
            weights: the working directory of a training run; or a PhotoMaker file, ``.bin`` or
                ``.safetensors`` (weights/formats/photomaker.py), v1 or v2. Parts that a method has
                in addition to it, such as a branch for the background, then have their initial
                weights. Or an IP-Adapter file for SDXL (weights/formats/ip_adapter.py), InstantID's
                or PuLID's (weights/formats/identity/).
            encoder: the folder of the image encoder that the weights belong to. Default: the one
                that the run was trained with; for a file ``<base>/image_encoder``, if that is a
                PhotoMaker file's own. FaceID and PhotoMaker v2 have no default: they need the face
                recogniser's file. So do all methods that read faces by one.
            clip: the folder of the image encoder, for methods that have a face recogniser as well.
            controlnet: the folder of InstantID's IdentityNet.
            options: settings of the method by the keys of its config, which a file does not tell:
                of an IP-Adapter {"references": …}, what they show to base and plus: "face" (the
                square around it), "aligned" (for Plus-Face), "whole"; of FaceID Plus "shortcut"
                (False: version 1) and "s_scale"; of InstantID "instantid_references" and
                "face_point_radius"; of PuLID "pulid_release" and others. See
                docs/published_adapters.md.

        Raises:
            FileNotFoundError: there is no checkpoint.
            ValueError: weights of another method than ``name``, or that do not fit this base;
                FaceID without ``encoder``; an unknown setting. If they turn out not to fit, no
                method is loaded afterwards.
        """
        checks.check_kinds(str, "a method's name", name=name)
        checks.check_path("weights", weights)
        checks.check_kinds(Mapping, "a dictionary, {name: value}", options=options)
        networks = {"encoder": encoder, "clip": clip, "controlnet": controlnet}
        config, trained = loading.read_method(
            self.base, name, weights, networks, self.mesh, options
        )
        method, parts = get_method(config.method), Parts(self.model, self.base.tokenizers)
        config = with_options(config, method, options or {})
        self._remove_method()
        # A run may have trained the tables that the words are in.
        with self.words.taken_off(), self._style_taken_off():
            fields = self._attach(method, parts, config, trained, str(weights))
        self._set_method(method, fields, released=trained is None)
        if words := method.take_words(parts):  # and its words are as those of files
            self.words.add(config.method, words, METHOD)
        self._place()

    def _attach(self, method, parts, config, trained, where: str) -> tuple:
        """Attach the method with its weights; returns its fields. None is attached afterwards if
        they do not fit."""
        try:
            loading.remove_all(self.model)
            self._of_base = loading.base_arrays(self.model, trained)
            method.attach(parts, config, nnx.Rngs(0))
            self._check_style()
            if trained is not None:
                fill_trained(self.model, trained, config.trainable or method.groups, where)
            fields = (*method.fields(parts, config), TimeIds())
            # What a run trained to predict, and on which noise, is what has to be sampled.
            self.base.scheduler_config = scheduler_of_run(config, self._own_schedule)
            # From here on the method's LoRA is one of the adapters.
            own = loading.take_adapter(self.model)
            if own:
                self.adapters[loading.METHOD_PREFIX + config.method] = (own, 1.0)
            self._put_adapters(self.adapters)
        except BaseException:
            self._detach(method)
            self._put_adapters(loading.user_adapters(self.adapters))
            raise
        return fields

    def unload_method(self) -> None:
        """Remove the method; LoRAs loaded from files stay."""
        self._remove_method()
        self._put_adapters(self.adapters)

    def _remove_method(self):
        """Remove all that a method has added, and free its memory on the devices."""
        self.adapters = loading.user_adapters(self.adapters)
        self.words.drop(self.words.of(METHOD), METHOD)
        if self.method is not None:
            with self.words.taken_off(), self._style_taken_off():
                self._detach(self.method)
        self._set_method(None)

    def _detach(self, method):
        # A run may have trained layers of the base: restore their original arrays too.
        method.detach(Parts(self.model, self.base.tokenizers))
        self.base.scheduler_config = self._own_schedule
        set_leaves(self.model, self._of_base)
        self._of_base = {}
