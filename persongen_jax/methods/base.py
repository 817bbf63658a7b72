"""The interface of identity methods. Nothing else in the project asks which method it is."""

import abc
from collections.abc import Hashable, Iterable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from ml_collections import ConfigDict

from data_pipeline.examples.conditions import References, Text
from data_pipeline.examples.fields import Batch, Encoding, Field
from data_pipeline.examples.identity.masked_references import MaskedReferences
from data_pipeline.prompts import Tokenizers
from data_pipeline.records.sources import Opened
from persongen_jax.diffusion.conditioning import Conditioning, TokenStream
from persongen_jax.models.branches import remove_branches
from persongen_jax.models.lora import remove_adapters
from persongen_jax.models.sdxl.parts import COMPONENTS, StableDiffusionXL

Words = dict[str, dict[str, np.ndarray]]  # {word: {"clip_l", "clip_g": [n, width]}}
Model = Any  # StableDiffusionXL, or a view of it, with the parts that a method has added


@dataclass
class Parts:
    """What a method modifies and reads: the model, and the tokenizers of its prompts."""

    model: StableDiffusionXL
    tokenizers: Tokenizers


class Method(abc.ABC):
    """An identity method: what it adds to the model, how it conditions, and what it trains.

    Attributes:
        groups: rows (path pattern, learning-rate group) of what it trains; a config's ``trainable``
            overrides them. See training/partition.py.
        denoises_with: names of the model's parts that ``denoise`` runs in addition to the UNet.
        decodes: whether ``losses`` reads the decoded image (``step.image()``), so that the VAE's
            decoder stays on the device.
        at_trigger: whether captions and prompts mark, by the trigger word, where the identity
            enters.
        reads_references: whether an example has other images of the person.
        text_only: whether it conditions as the base does, on the prompt alone, so that the
            unconditional side is the base's too.
        prepares: "package.module:Function" of what makes missing data, called with the system
            before the first step; returns lines for the log. "": nothing.
        scales: (name, factor) of streams and maps in calls that do not name them; others have 1.
        start_merge_step: through this step the prompt alone acts in calls that do not say; -1: the
            references act from the first; None: a fifth of the steps.
        options: keys of its config that a call of load_method may change.
    """

    groups: tuple[tuple[str, str], ...] = ()
    denoises_with: tuple[str, ...] = ()
    decodes: bool = False
    at_trigger: bool = True
    reads_references: bool = True
    text_only: bool = False
    prepares: str = ""
    scales: tuple[tuple[str, float], ...] = ()
    start_merge_step: int | None = None
    options: tuple[str, ...] = ()

    def __eq__(self, other):
        # Two methods of one kind compute the same: programs compiled for one serve the other. One
        # that keeps arrays or the like equals only itself.
        plain = all(isinstance(value, Hashable) for value in vars(self).values())
        same = type(self) is type(other) and plain and vars(self) == vars(other)
        return self is other or same

    def __hash__(self):
        return hash(type(self))

    @abc.abstractmethod
    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Add the method's parts with their initial weights, in place.

        Args:
            parts: ``model`` is StableDiffusionXL, loaded; ``tokenizers`` its two.
            config: the experiment's config (base, id_encoder, start_from, rank, lora_alpha, ...).
            rngs: for random initialisation.
        """

    def detach(self, parts: Parts) -> None:
        """Remove all that ``attach`` has added; the model then computes what the base does.

        This removes attention branches, LoRA, and additional networks. A method that changes
        anything else (a token, a layer of the base) must restore that too.
        """
        remove_branches(parts.model.unet)
        for name in COMPONENTS:
            if name != "vae":
                remove_adapters(getattr(parts.model, name))
        for name, part in list(vars(parts.model).items()):
            if isinstance(part, nnx.Module) and name not in COMPONENTS:
                delattr(parts.model, name)

    def words_of(self, model: Model) -> Words:
        """The words that ``attach`` has added, with their rows; {} by default."""
        return {}

    def take_words(self, parts: Parts) -> Words:
        """Takes them off and returns them: a pipeline adds them as it does those of files."""
        return {}

    def fields(self, parts: Parts, config: ConfigDict) -> tuple[Field, ...]:
        """The inputs that it reads other than the target image and its crop, attached.

        By default: a caption that marks where the identity enters, and references.
        """
        return prompts(parts, config, at_trigger=self.at_trigger), references(
            self, parts.model, config
        )

    def records(self, opened: Opened) -> Opened:
        """What examples are made from, of what the data hold; by default the same.

        Called after :meth:`fields`.
        """
        return opened

    def check_data(self, config: ConfigDict) -> list[str]:
        """Lines on data that only this method reads, before anything is loaded.

        Raises:
            ValueError: faults of them.
        """
        return []

    @abc.abstractmethod
    def condition(self, model: Model, batch: Batch) -> Conditioning:
        """Maps a batch (of the method's fields) to what the UNet reads.

        Where ``id_mask`` is False the identity has no influence. Runs inside a compiled step; the
        streams, maps and shapes do not depend on the values. :func:`prompt_states` encodes prompts
        and :func:`reference_features` references, unless the batch holds cached ones.
        """

    def denoise(
        self,
        model: Model,
        x: jax.Array,
        t: ArrayLike,
        conditioning: Conditioning,
        step: ArrayLike | None = None,
    ) -> jax.Array:
        """The prediction [b, h, w, c] at noisy latents ``x`` and timesteps ``t``.

        It runs in training and in the sampler. ``model`` has ``unet`` and the parts that
        ``denoises_with`` lists. ``step``: the index in the sampler's plan; None in training. A
        method with maps multiplies the effect of each by its scale
        (``conditioning.maps[name].scale``, [b] or None for 1), which is set at run time.
        """
        return model.unet(x, t, conditioning)

    def losses(self, model: Model, batch: Batch, step: Any) -> dict[str, jax.Array]:
        """{"loss": [b]}, the objective, and additional terms [b] for the log.

        Args:
            model: the whole model, with all parts that ``attach`` has added.
            step: systems.diffusion.Step: ``mse`` [b], ``pred``, ``target``, ``timesteps``,
                ``mask``, ``x0()`` (the latents that the prediction implies) and ``image()`` (the
                same decoded, differentiable).
        """
        return {"loss": step.mse}

    def update_rules(
        self, model: Model, config: ConfigDict
    ) -> dict[str, optax.GradientTransformation]:
        """What follows the optimizer's update of a learning-rate group, by the group's name."""
        return {}

    # ---- references ----

    image_tower = "id_encoder/vision_model"  # path of the network that reads the references

    def reference_size(self, model: Model) -> int:
        """Side in pixels of the face crops that the image tower reads."""
        return model.id_encoder.vision_model.config["image_size"]

    def encode_references(self, model: Model, id_pixel_values: jax.Array) -> jax.Array:
        """Face crops [b, r, s, s, 3] to the image tower's features, [b, r, ...].

        It depends only on the weights of ``image_tower``: if these are frozen, the result is
        computed once and cached (persongen_jax/features/).
        """
        return model.id_encoder.pool(id_pixel_values)


def denoiser_module(model: Model, method: Method | None = None) -> Model:
    """The UNet and the other parts that ``denoise`` runs, by reference, in one module."""
    view = nnx.Module()
    for name in ("unet", *(method.denoises_with if method else ())):
        setattr(view, name, getattr(model, name))
    return view


# ---- The fields that identity methods share ----------------------------------------------------


def prompts(
    parts: Parts, config: ConfigDict, streams: tuple[str, ...] = ("text",), at_trigger: bool = True
) -> Text:
    """Captions, read by both text towers; see data_pipeline/examples/conditions.py."""
    return Text(
        parts.tokenizers,
        streams,
        trigger_word=config.trigger_word,
        at_trigger=at_trigger,
        encoding=text_encoding(),
    )


def text_encoding() -> Encoding:
    """Both text towers, for the feature cache."""
    return Encoding(
        kind="text",
        weights=("text_encoder/", "text_encoder_2/"),
        encode=encode_text,
        dtype=jnp.int32,
        view=StableDiffusionXL.conditioner,
    )


def encode_text(model: Model, input_ids: jax.Array) -> dict[str, jax.Array]:
    """Token ids [b, 2, n] to {"states": [b, n, d], "pooled": [b, p]}."""
    states, pooled = model.encode_prompt(input_ids)
    return {"states": states, "pooled": pooled}


def references(method: Method, model: Model, config: ConfigDict) -> References:
    """References, read by the method's image tower; they show what config.references says."""

    def encode(model, id_pixel_values):
        return {"features": method.encode_references(model, id_pixel_values[:, None])[:, 0]}

    # Methods that read the same network in the same way share the cache.
    how = type(method).encode_references.__qualname__
    reads = getattr(getattr(model, "image_proj", None), "reads", "")
    encoding = Encoding(
        kind="references",
        weights=(f"{method.image_tower}/",),
        encode=encode,
        signature=(how, reads),
        view=StableDiffusionXL.conditioner,
    )
    size, show = method.reference_size(model), config.get("references", "")  # a file says nothing
    if show == "masked":
        return MaskedReferences(size, encoding)
    field = References(size, encoding, whole=show == "whole")
    field.by_name = False
    return field


# ---- Reading a batch ---------------------------------------------------------------------------


def prompt_states(model: Model, batch: Batch, stream: str = "text") -> tuple[jax.Array, jax.Array]:
    """A stream's encoded prompt: [b, 77, d], and for "text" the pooled embedding [b, p].

    Taken from the batch ("text_states") if it holds them.
    """
    if "text_states" in batch:
        return batch["text_states"][stream], batch["text_states"]["pooled"]
    return model.encode_prompt(batch["input_ids"][stream])


def reference_features(model: Model, batch: Batch) -> jax.Array:
    """CLIP's pooled embeddings of the references, [b, r, d]: the batch's own, or encoded now."""
    if "id_features" in batch:
        return batch["id_features"]
    return model.id_encoder.pool(batch["id_pixel_values"])


def condition_on_text(model: Model, batch: Batch) -> Conditioning:
    """The prompt as written, with no place for an identity in it."""
    embeds, pooled = prompt_states(model, batch)
    return Conditioning({"text": TokenStream(embeds)}, pooled, batch["time_ids"])


def add_prompt_streams(
    conditioning: Conditioning, model: Model, batch: Batch, streams: Iterable[str]
) -> Conditioning:
    """Adds the prompts of ``streams`` other than "text": [b, 77, d] each, unmasked.

    As in "text", a prompt's padding is attended to. An image without such a caption gets the empty
    prompt, encoded like any other.
    """
    for name in streams:
        if name != "text":
            embeds, _ = prompt_states(model, batch, name)
            conditioning = conditioning.with_stream(name, embeds)
    return conditioning
