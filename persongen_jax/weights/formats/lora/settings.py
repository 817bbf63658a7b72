"""Alphas from PEFT's settings: in a file's metadata, or in an adapter_config.json next to it."""

import json
import math
import re

from persongen_jax.weights.errors import UnsupportedAdapter
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.recognition.lora_names import METADATA_KEY

# Settings that change the tensors' meaning, and their values that do not.
_OTHER_FORMULAS = {
    "fan_in_fan_out": (False, None),
    "alora_invocation_tokens": (None,),
    "layer_replication": (None,),
    "modules_to_save": (None, []),
    "use_qalora": (False, None),
    "use_bdlora": (None, False),
    "block_share": (False, None),
}
# These change the base as well, unless they were converted on saving.
_OTHER_BASES = ("pissa", "olora", "corda", "loftq", "lora_ga")
# Regular expressions of a settings file that may run: no repeated groups, which may take for ever.
_PLAIN_EXPRESSION = re.compile(r"[\w.*\\|()^$?:-]{1,200}")
_REPEATED_GROUP = re.compile(r"\)[*+{]|(?:\*.*){5}")


class PeftSettings:
    """What PEFT's settings say about each module.

    Args:
        where: the file, for messages.
        values: name -> value; names such as "unet.lora_alpha", or in a folder's config
            "lora_alpha".
    """

    def __init__(self, where: str, values: dict):
        self._where, self._values = where, values
        for key, value in values.items():
            name = key.rpartition(".")[2]
            usual = _OTHER_FORMULAS.get(name)
            if usual is not None and value not in usual:
                raise UnsupportedAdapter(
                    f"{where}: its settings have {key}={value!r}, which is not supported. Merge it "
                    "into the base weights with PEFT."
                )
            if name == "init_lora_weights" and str(value).lower().startswith(_OTHER_BASES):
                raise UnsupportedAdapter(
                    f"{where}: its settings have {key}={value!r}: it goes with base weights that "
                    "training has changed. Save it with PEFT's "
                    "path_initial_model_for_weight_conversion."
                )

    @classmethod
    def of_file(cls, source: TensorSource) -> "PeftSettings":
        """The settings in the metadata, where diffusers keeps them; empty if there are none."""
        text = source.metadata.get(METADATA_KEY) or "{}"
        return cls(source.describe(), parse_object(source.describe(), METADATA_KEY, text))

    def __bool__(self):
        return bool(self._values)

    def alpha(self, component: str, path: str, rank: int) -> float | None:
        """alpha, where the scale is alpha / rank; None if nothing is said about the component."""
        prefix = self._prefix(component)
        if prefix is None:
            return None
        # LoHa and LoKr call it alpha; PEFT's default is 8 for all of them.
        usual = self._values.get(f"{prefix}lora_alpha", self._values.get(f"{prefix}alpha", 8))
        alpha = self._of_module(f"{prefix}alpha_pattern", component, path, usual)
        if self._values.get(f"{prefix}use_rslora"):
            # Then the scale is alpha / sqrt(rank).
            return alpha * math.sqrt(rank)
        return alpha

    def rank(self, component: str, path: str) -> int | None:
        """The rank of a LoKr whose factors are whole, which its shapes do not show."""
        prefix = self._prefix(component)
        if prefix is None or f"{prefix}r" not in self._values:
            return None
        usual = self._values[f"{prefix}r"]
        return int(self._of_module(f"{prefix}rank_pattern", component, path, usual)) or None

    def scales_input(self, path: str) -> bool:
        """Whether IA3 scales the input of this layer instead of its output."""
        names = self._values.get("feedforward_modules") or []
        if isinstance(names, str):  # a regular expression for the whole path
            self._check_expression("feedforward_modules", names)
            return re.fullmatch(names, path) is not None
        return any(path == name or path.endswith("." + name) for name in names)

    def uses_dora(self, component: str) -> bool:
        """Whether a layer without a magnitude is only half of what was trained."""
        prefix = self._prefix(component)
        return prefix is not None and self._values.get(f"{prefix}use_dora") is True

    @property
    def base(self) -> str:
        """The name of the base model in the settings; "" if they have none."""
        name = self._values.get("base_model_name_or_path")
        return name if isinstance(name, str) else ""

    def _check_expression(self, name: str, pattern: str):
        """UnsupportedAdapter for an expression that is invalid, or may take for ever."""
        if not _PLAIN_EXPRESSION.fullmatch(pattern) or _REPEATED_GROUP.search(pattern):
            raise UnsupportedAdapter(
                f"{self._where}: {name} {pattern!r} is an expression that is not run here. Write "
                "plain module paths into the adapter_config.json."
            )
        try:
            re.compile(pattern)
        except re.error as error:
            raise UnsupportedAdapter(f"{self._where}: {name} {pattern!r}: {error}.") from error

    def _prefix(self, component) -> str | None:
        if any(key.startswith(component + ".") for key in self._values):
            return component + "."
        return "" if "peft_type" in self._values else None

    def _of_module(self, name, component, path, usual) -> float:
        patterns = self._values.get(name) or {}
        if not isinstance(patterns, dict):
            raise UnsupportedAdapter(f"{self._where}: {name} is not a JSON object.")
        found = (v for pattern, v in patterns.items() if self._matches(pattern, component, path))
        value = next(found, usual)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not math.isfinite(value):
            what = name.rpartition(".")[2].removesuffix("_pattern")
            raise UnsupportedAdapter(f"{self._where}: {what} {value!r} of {path} is not a number.")
        return float(value)

    def _matches(self, pattern, component, path) -> bool:
        # PEFT applies these as regular expressions to the path or its last parts. Most files hold
        # plain paths, with ^ for "the whole path".
        name = pattern.removeprefix("^")
        if not re.fullmatch(r"[\w.]+", name):
            self._check_expression("alpha_pattern", pattern)
            return re.fullmatch(rf"(.*\.)?({pattern})", path) is not None
        if component != "unet":
            name = name.removeprefix("text_model.")
        return path == name or (not pattern.startswith("^") and path.endswith("." + name))


def parse_object(where: str, name: str, text: str) -> dict:
    """A JSON object; UnsupportedAdapter for anything else."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UnsupportedAdapter(
            f"{where}: its {name} is not valid JSON ({error}). Fetch it again."
        ) from error
    if not isinstance(values, dict):
        raise UnsupportedAdapter(f"{where}: its {name} is not a JSON object.")
    return values


__all__ = ["PeftSettings", "parse_object"]
