"""LoRA on one person's pictures (Hu et al., arXiv 2106.09685; DreamBooth, arXiv 2208.12242).

Low-rank adapters on the UNet and, if asked for, on both text towers; the base stays as it is. With
class images it is DreamBooth-LoRA.
"""

import re
from typing import Any

from flax import nnx
from ml_collections import ConfigDict

from persongen_jax.methods.base import Model, Parts
from persongen_jax.methods.personal.base import Personal
from persongen_jax.methods.start import find_origin, load_remaining
from persongen_jax.models.lora import add_lora

# Names for layers of the UNet; config.lora_targets joins them by "+".
ATTENTION = r".*/attn[12]/(to_q|to_k|to_v|to_out/0)"
TARGETS = {
    "attention": ATTENTION,
    "cross-attention": r".*/attn2/(to_q|to_k|to_v|to_out/0)",
    "feed-forward": r".*/ff/net/(0/proj|2)",
    "projections": r".*/attentions/\d+/(proj_in|proj_out)",
    "conv": r"(.*/)?(conv|conv1|conv2|conv_shortcut|conv_in|conv_out)",
    "time": r".*/time_emb_proj|(time|add)_embedding/linear_[12]",
}
# The same for both text towers, config.text_targets.
TEXT_TARGETS = {
    "attention": r"encoder/layers/\d+/self_attn/(q_proj|k_proj|v_proj|out_proj)",
    "feed-forward": r"encoder/layers/\d+/mlp/fc[12]",
}
TOWERS = ("text_encoder", "text_encoder_2")


class Lora(Personal):
    """LoRA on layers of the UNet, group "lora", and of both text towers, group "text_lora"."""

    def attach(self, parts: Parts, config: ConfigDict, rngs: nnx.Rngs) -> None:
        """Reads config.rank, lora_alpha, lora_targets, lora_ranks, lora_dora; text_rank,
        text_alpha, text_targets, text_ranks; and start_from: an earlier run of LoRA."""
        origin = find_origin(config)
        if origin.file:
            raise ValueError(
                f"config.start_from={origin.source}: a LoRA starts from a run of its own; give a "
                "run's --workdir, or leave it out"
            )
        self._add(parts.model, config, rngs)
        load_remaining(parts.model, origin)

    def _add(self, model: Model, config: ConfigDict, rngs: nnx.Rngs) -> None:
        own = {"dora": config.lora_dora, "rngs": rngs}
        alpha = config.lora_alpha
        ranks = rank_rows(config.lora_ranks, alpha / max(1, config.rank), "lora_ranks")
        targets = target_pattern(config.lora_targets, TARGETS, "lora_targets")
        add_lora(model.unet, targets, config.rank, alpha=alpha, ranks=ranks, **own)
        rows = [(r"unet/.*/lora/(down|up|magnitude)", "lora")]
        if config.text_rank:
            alpha = config.text_alpha or config.text_rank
            ranks = rank_rows(config.text_ranks, alpha / config.text_rank, "text_ranks")
            targets = target_pattern(config.text_targets, TEXT_TARGETS, "text_targets")
            for name in TOWERS:
                tower = getattr(model, name)
                add_lora(tower, targets, config.text_rank, alpha=alpha, ranks=ranks, **own)
            rows += [(r"text_encoder(_2)?/.*/lora/(down|up|magnitude)", "text_lora")]
        self.groups = tuple(rows)


def target_pattern(names: str, known: dict[str, str], key: str) -> re.Pattern:
    """The layers that a config's ``key`` means: names of ``known``, "a+b", or an expression.

    Raises:
        ValueError: neither.
    """
    parts = names.split("+")
    if all(part in known for part in parts):
        return re.compile("|".join(known[part] for part in parts))
    try:
        return re.compile(names)
    except re.error as error:
        raise ValueError(
            f"config.{key}={names!r}: {error}; give {', '.join(known)}, several joined by +, or a "
            "regular expression for whole paths such as down_blocks/1/attentions/0/proj_in"
        ) from error


def rank_rows(rows: Any, scale: float, key: str) -> list[tuple[re.Pattern, int, float]]:
    """A config's rows (expression, rank) or (expression, rank, alpha), checked.

    Args:
        scale: alpha over rank where a row has no alpha: that of the other layers.
        key: of the config, for messages.
    """
    found = []
    for row in rows:
        try:
            pattern, rank, *alpha = row
            compiled = re.compile(pattern)
        except (TypeError, ValueError, re.error) as error:
            raise ValueError(
                f"config.{key}: {row!r}: {error}; a row is (expression, rank) or "
                "(expression, rank, alpha)"
            ) from error
        if type(rank) is not int or rank < 0 or len(alpha) > 1:
            raise ValueError(f"config.{key}: {row!r}: a rank is a whole number, 0 for none")
        found.append((compiled, rank, float(alpha[0]) if alpha else rank * scale))
    return found
