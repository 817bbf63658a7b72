"""What every identity method provides. Nothing else in the project asks which method it is."""

import abc

import jax.numpy as jnp

from persongen_jax.conditioning import Conditioning


class Method(abc.ABC):
    """An identity method: what it adds to the model, how it conditions, what of it is trained.

    Attributes:
        streams: the prompts it reads, "text" and names of data_pipeline.schema.PLAIN_STREAMS.
        groups: rows (path pattern, learning-rate group) of what it trains; a config's
            ``trainable`` may say otherwise. See partition.py.
    """

    streams: tuple[str, ...] = ("text",)
    groups: tuple[tuple[str, str], ...] = ()

    @abc.abstractmethod
    def attach(self, model, config, rngs):
        """Add the method's parts to the model, in place.

        Args:
            model: StableDiffusionXL, loaded.
            config: the experiment's config (base, id_encoder, rank, lora_alpha, ...).
            rngs: nnx.Rngs for what starts at random.
        """

    @abc.abstractmethod
    def reference_size(self, model) -> int:
        """Side in pixels of the face crops that the method reads."""

    @abc.abstractmethod
    def condition(self, model, batch) -> Conditioning:
        """A batch (data_pipeline.schema) to what the UNet reads.

        Where ``id_mask`` and ``class_tokens_mask`` are False the identity has no influence. Runs
        inside a compiled step; the streams and shapes do not depend on the values.
        """


def without_identity(batch: dict) -> dict:
    """The batch with no reference and no class token marked."""
    return {
        **batch,
        "class_tokens_mask": jnp.zeros_like(batch["class_tokens_mask"]),
        "id_mask": jnp.zeros_like(batch["id_mask"]),
    }


def drop_condition(batch: dict, drop, empty_ids) -> dict:
    """Where ``drop`` [b] is True: empty prompts on every stream, and no identity.

    Args:
        empty_ids: [2, 77] int32, the empty prompt's token ids.
    """
    empty = without_identity(batch)
    ids = {
        name: jnp.where(drop[:, None, None], empty_ids[None], value)
        for name, value in batch["input_ids"].items()
    }
    masks = {
        name: jnp.where(drop[:, None], empty[name], batch[name])
        for name in ("class_tokens_mask", "id_mask")
    }
    return {**batch, **masks, "input_ids": ids}
