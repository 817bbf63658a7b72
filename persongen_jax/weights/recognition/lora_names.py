"""The one table of how tools spell an adapter's keys, and the search for the module they mean.

A key is a prefix, a module's path and an ending. The prefix names the network (or nothing), the
path uses diffusers' or sgm's names, with dots or underscores, and the ending says which of the
adapter's tensors it is. Every prefix is combined with every path and every ending, since tools mix
them:

    diffusers        unet.down_blocks.1.….to_q.lora.down.weight, text_encoder.….lora_linear_layer.…
    its oldest       unet.….attn1.processor.to_q_lora.down.weight
    PEFT             unet.….to_q.lora_A.weight, .lora_A.NAME.weight; base_model.model.…; no prefix
    kohya, LyCORIS   lora_unet_down_blocks_1_…, lora_unet_input_blocks_4_1_…, lora_te1_, lycoris_…
    OneTrainer       unet.input_blocks.4.1.…, clip_l.…; lora_unet.down_blocks.1.…; kohya's
    ComfyUI          diffusion_model.input_blocks.4.1.…, text_encoders.clip_l.transformer.…
"""

import re
from collections.abc import Collection, Iterable, Mapping

from persongen_jax.weights.errors import UnsupportedAdapter, shorten
from persongen_jax.weights.recognition.sgm_names import rename_by_prefix, unet_modules

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")
METADATA_KEY = "lora_adapter_metadata"  # diffusers' name for PEFT's settings in JSON

# What follows a module's path -> the kind of tensor. (.NAME) is the adapter's name in PEFT.
_NAME = r"(?:\.[^.]+)?"
_ENDINGS = {
    r"(?:\.lora|\.lora_linear_layer|_lora)\.down\.weight": "down",
    r"(?:\.lora|\.lora_linear_layer|_lora)\.up\.weight": "up",
    rf"\.lora_(?:A|down){_NAME}\.weight": "down",
    rf"\.lora_(?:B|up){_NAME}\.weight": "up",
    rf"\.lora_(?:B|up){_NAME}\.bias": "bias",
    rf"\.lora_mid{_NAME}\.weight": "mid",
    r"(?:\.lora|\.lora_linear_layer|_lora)?\.alpha": "alpha",
    rf"\.(?:dora_scale|lora_magnitude_vector{_NAME}(?:\.weight)?)": "magnitude",
    rf"\.hada_(?P<loha>w[12]_[ab]|t[12]){_NAME}": "loha",
    rf"\.lokr_(?P<lokr>w[12](?:_[ab])?|t[12]){_NAME}": "lokr",
    r"\.diff": "diff",
    r"\.diff_b": "diff_b",
    rf"\.ia3_l{_NAME}": "ia3",
    r"\.on_input": "on_input",
    r"\.weight": "weight",
}
_KEY = [(re.compile(rf"(?P<stem>.+?){ending}"), role) for ending, role in _ENDINGS.items()]

_RELATIVES = {
    "magnitude": "DoRA",
    "loha": "LoHa",
    "lokr": "LoKr",
    "diff": "full differences",
    "diff_b": "changes of biases",
    "ia3": "IA3",
    "on_input": "IA3",
}

# Adapters of other tools that are not supported. Matched anywhere in a key.
_OTHER_KINDS = {
    r"\.(w_norm|b_norm)$": "trained norms",
    r"\.oft_|\.oft_diag|\.boft_": "OFT",
    r"\.(a1|a2|b1|b2)\.weight$": "GLoRA",
    r"\.lora_embedding_[AB]": "a LoRA of token embeddings",
    r"\.(vera_|adalora_|lora_E|hra_u|ln_tuning|randlora_)": "VeRA, AdaLoRA or a similar adapter",
    r"\.set_weight$": "replaced weights",
    r"\.reshape_weight$": "a LoRA of layers that were widened",
}

# The same for keys that a whole model may have as well: only for keys that match no module.
_OTHERS_UNFIT = {
    r"norm\w*\.diff(_b)?$": "trained norms",
    r"\.bias$": "trained biases",
    r"\.base_layer\.weight$": "a whole model with PEFT's layers in it",
    r"\.scalar$": "a LyCORIS adapter whose scalar was not folded in",
    r"^bundle_emb\.": "embeddings of words for SD 1.x or 2.x",
}

# Wrappers around a network whose adapter was saved; they carry no information.
_WRAPPERS = ("base_model.model.", "module.", "_orig_mod.")
_INSIDE = re.compile(r"\.(?:_orig_mod|processor)(?=\.)")

# Prefix -> component. Longer ones come first.
_PREFIXES = {
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "unet.": "unet",
    "lora_unet.": "unet",
    "lora_unet_": "unet",
    "lycoris_unet_": "unet",
    "text_encoders.clip_l.": "text_encoder",
    "conditioner.embedders.0.": "text_encoder",
    "text_encoder.": "text_encoder",
    "clip_l.": "text_encoder",
    "lora_te1.": "text_encoder",
    "lora_te1_": "text_encoder",
    "lycoris_te1_": "text_encoder",
    "text_encoders.clip_g.": "text_encoder_2",
    "text_encoder_2.": "text_encoder_2",
    "clip_g.": "text_encoder_2",
    "lora_te2.": "text_encoder_2",
    "lora_te2_": "text_encoder_2",
    "lycoris_te2_": "text_encoder_2",
    # From models with one text encoder; bases.py says when the user is told so.
    "lora_te.": "text_encoder",
    "lora_te_": "text_encoder",
    "lycoris_te_": "text_encoder",
}
ONE_ENCODER = ("lora_te.", "lora_te_", "lycoris_te_")

# diffusers' first attention processors used the same projection names in UNet and text encoders.
_FIRST_NAMES = {
    "unet": {"to_out": "to_out.0"},
    "text": {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"},
}

EMBEDDING = re.compile(r"bundle_emb\.(?P<token>.+)\.(?P<tower>clip_[lg](?:_out)?)")


def other_kind(key: str) -> str | None:
    """The kind of unsupported adapter that a key reveals; None for all others."""
    return next((kind for pattern, kind in _OTHER_KINDS.items() if re.search(pattern, key)), None)


def unsupported_unmatched(key: str) -> str | None:
    """The same for a key that matches no module."""
    return next((kind for pattern, kind in _OTHERS_UNFIT.items() if re.search(pattern, key)), None)


def relatives(keys: Iterable[str]) -> list[str]:
    """The supported kinds other than plain LoRA in a file."""
    roles = {split[1].split()[0] for key in keys if (split := split_key(key))}
    return [name for role, name in _RELATIVES.items() if role in roles]


def split_key(key: str) -> tuple[str, str] | None:
    """(the part before the ending, which tensor of the adapter it is); None for other keys."""
    for pattern, role in _KEY:
        if match := pattern.fullmatch(key):
            part = match[role] if role in ("loha", "lokr") else ""
            return match["stem"], f"{role} {part}".strip()
    return None


class Names:
    """Finds the module that a key belongs to.

    Args:
        modules: component -> module path -> shape of its weight in PyTorch.
        layers_per_block: the UNet's, which sgm's block numbers depend on.
        component: the one that keys without a prefix belong to; None: any with such a module.
    """

    def __init__(
        self,
        modules: Mapping[str, Mapping[str, tuple]],
        layers_per_block: int,
        component: str | None,
    ):
        self._modules, self._component = modules, component
        self._flat = {
            name: _flat_names(name, paths, layers_per_block) for name, paths in modules.items()
        }

    def locate(self, where: str, stem: str, inner: int | None) -> tuple[str, str] | None:
        """(component, module path), or None if nothing matches.

        Args:
            where: the file, for messages.
            stem: the key without its ending.
            inner: the tensor's number of inputs, if known; distinguishes the encoders.
        """
        name = _unwrap(stem)
        for prefix, component in _PREFIXES.items():
            if name.startswith(prefix):
                path = self._find(where, component, _unwrap(name.removeprefix(prefix)))
                return (component, path) if path else None
        name = name.removeprefix("lycoris_")
        components = [self._component] if self._component else list(self._modules)
        found = [(c, path) for c in components if (path := self._find(where, c, name))]
        if len(found) > 1:
            # The two text encoders have the same names, and (in SDXL) different widths.
            fitting = [(c, path) for c, path in found if self._modules[c][path][1] == inner]
            if len(fitting) != 1:
                raise UnsupportedAdapter(
                    f"{where}: {stem!r} may belong to {' or '.join(c for c, _ in found)}. Put "
                    "text_encoder. or text_encoder_2. before its keys, or give a PEFT folder "
                    "whose adapter_config.json names the class."
                )
            found = fitting
        return found[0] if found else None

    def _find(self, where, component, path) -> str | None:
        modules = self._modules.get(component, {})
        if component != "unet":
            path = path.removeprefix("transformer.").removeprefix("text_model.")
        for spelling in (path, _current_name(component, path)):
            if spelling in modules:
                return spelling
            paths = self._flat.get(component, {}).get(spelling.replace(".", "_"), set())
            if len(paths) > 1:
                raise UnsupportedAdapter(
                    f"{where}: {path!r} may mean {shorten(sorted(paths))}. Convert the file to "
                    "diffusers' names first."
                )
            if paths:
                return next(iter(paths))
        return None


def _unwrap(name: str) -> str:
    """Remove the wrappers' prefixes, in any order."""
    name = _INSIDE.sub("", name)
    while name.startswith(_WRAPPERS):
        name = next(name.removeprefix(each) for each in _WRAPPERS if name.startswith(each))
    # Some scripts name the UNet twice.
    return name.removeprefix("unet.") if name.startswith("unet.unet.") else name


def _current_name(component, path) -> str:
    parent, dot, last = path.rpartition(".")
    names = _FIRST_NAMES["unet" if component == "unet" else "text"]
    return parent + dot + names.get(last, last)


def _flat_names(component, paths, layers_per_block) -> dict[str, set[str]]:
    """Every spelling of the given modules with _ for . -> the paths it may mean."""
    flat: dict[str, set[str]] = {}
    to_sgm = sgm_names(paths, layers_per_block) if component == "unet" else {}
    for path in paths:
        spellings = {path, rename_by_prefix(to_sgm, path) or path}
        if component != "unet":
            spellings |= {"text_model." + path, "transformer.text_model." + path}
        for spelling in spellings:
            flat.setdefault(spelling.replace(".", "_"), set()).add(path)
    return flat


def sgm_names(paths: Collection[str], layers_per_block: int) -> dict[str, str]:
    """diffusers module path -> sgm's, for the blocks in ``paths``."""

    def attention(kind):
        blocks: dict[int, bool] = {}
        for path in paths:
            match = re.match(rf"{kind}\.(\d+)\.(attentions\.)?", path)
            if match:
                number = int(match[1])
                blocks[number] = blocks.get(number, False) or bool(match[2])
        return [blocks.get(i, False) for i in range(max(blocks, default=-1) + 1)]

    down, up = attention("down_blocks"), attention("up_blocks")
    layers = [layers_per_block] * max(len(down), len(up))
    return {ours: original for original, ours in unet_modules(down, up, layers).items()}


__all__ = [
    "COMPONENTS",
    "EMBEDDING",
    "ONE_ENCODER",
    "Names",
    "other_kind",
    "unsupported_unmatched",
    "relatives",
    "sgm_names",
    "split_key",
]
