"""The pipeline's LoRAs: load, weigh, save, unload, fuse."""

import abc
from pathlib import Path

from persongen_jax.methods.base import Model
from persongen_jax.pipeline import checks, loading
from persongen_jax.pipeline.words import LORA, AddedWords
from persongen_jax.weights.formats.lora.writing import write_lora
from persongen_jax.weights.formats.sdxl.loading import SDXLBase


class WithLoras(abc.ABC):
    """A pipeline's LoRAs; several add up.

    Attributes:
        adapters, words: the loaded LoRAs, see pipeline/loading.py, and the words they define.
    """

    base: SDXLBase
    adapters: loading.Adapters
    words: AddedWords
    _own_lora: dict

    @property
    @abc.abstractmethod
    def model(self) -> Model:
        """The base's networks, with what has been added to them."""

    @abc.abstractmethod
    def _place(self) -> None:
        """Place every array of the model on the devices."""

    def load_lora(self, path: str | Path, *, weight: float = 1.0, name: str | None = None) -> None:
        """Load a LoRA (or DoRA, LoHa, LoKr, IA3) of any tool; several add up.

        Words whose embeddings are bundled with it (``bundle_emb``) can then be used in prompts.

        Args:
            path: the ``*.safetensors`` file, or PEFT's or diffusers' folder.
            weight: factor of its effect; change it later with :meth:`set_lora_weights`.
            name: its name from then on; by default ``str(path)``. One of the same name is replaced,
                with a warning.

        Raises:
            WeightsError: the file does not exist, is of an unsupported kind (named in the error),
                or is not for this model; loaded adapters do not change.
        """
        checks.check_path("path", path)
        checks.check_kinds(str, "a name", name=name)
        adapter, words = loading.read_adapter(path, self.base, weight)
        name = str(path) if name is None else name
        if name.startswith(loading.METHOD_PREFIX):
            raise ValueError(f"name={name!r}: {loading.METHOD_PREFIX}… is reserved for methods")
        if name in self.adapters:
            checks.warn_of_call(
                f"LoRA {name}: replaces the one of that name; give name= to keep both"
            )
        self.words.add(name, words)
        self._put_adapters({**self.adapters, name: (adapter, weight)})

    def set_lora_weights(self, weights: dict[str, float]) -> None:
        """Change the factors of loaded LoRAs by name. Does not recompile."""
        checks.check_kinds(dict, "a dictionary, {name: weight}", weights=weights)
        self._put_adapters(loading.with_weights(self.adapters, weights))

    def save_lora(self, path: str | Path, name: str) -> None:
        """Write a loaded LoRA, or a method's own ("method:photomaker"), in diffusers' format.

        Raises:
            ValueError: none of that name is loaded, or it modifies branches.
        """
        adapter, _ = loading.find_adapter(self.adapters, name)
        if any(".branches." in layer for layer in adapter.get("unet", ())):
            raise ValueError(
                f"{name}: also modifies the method's attention branches, which a LoRA file has no "
                "place for; keep its training run"
            )
        self.words.warn_not_saved((LORA, name))
        write_lora(path, adapter)

    def unload_lora(self) -> None:
        """Remove every LoRA; a method keeps its own, which is a part of it."""
        self.words.drop(self.adapters)
        self._put_adapters(loading.method_adapters(self.adapters))

    def fuse_lora(self) -> None:
        """Merge the loaded LoRAs into the weights: no cost per step, but irreversible."""
        loading.merge_all(self.model)
        self.adapters = self._own_lora = {}

    def _put_adapters(self, adapters: loading.Adapters):
        self.adapters, self._own_lora = adapters, loading.method_scales(adapters)
        loading.put_adapters(self.model, adapters)
        self._place()
