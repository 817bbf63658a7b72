"""Reads adapter files into ``LoraWeights`` and ``Change`` by component and module path.

recognition/lora_names.py has the spellings, kinds.py the effect of each kind on a layer, bases.py
detects files for other bases. Nothing is applied in part: a key that is not understood raises.
"""

import os
import warnings
from collections.abc import Mapping

from persongen_jax.weights.errors import KeyMismatch, UnsupportedAdapter
from persongen_jax.weights.files.source import TensorSource
from persongen_jax.weights.formats.lora.bases import refuse_other_base
from persongen_jax.weights.formats.lora.kinds import Change, LoraWeights
from persongen_jax.weights.formats.lora.opening import Opened, open_adapter
from persongen_jax.weights.formats.lora.parts import Layer, read_layer
from persongen_jax.weights.formats.lora.settings import PeftSettings
from persongen_jax.weights.recognition.kinds import NAMES, classify
from persongen_jax.weights.recognition.lora_names import (
    EMBEDDING,
    ONE_ENCODER,
    Names,
    other_kind,
    split_key,
    unsupported_unmatched,
)

COUNTERS = ("step", "global_step", "epoch", "iteration")  # training state, not part of the adapter

Adapters = dict[str, dict[str, LoraWeights | Change]]


def read_lora(
    source: TensorSource | str | os.PathLike,
    modules: Mapping[str, Mapping[str, tuple]],
    *,
    layers_per_block: int = 2,
) -> Adapters:
    """Read an adapter in any spelling that recognition/lora_names.py lists.

    Args:
        source: the file, a folder (opening.py), or an open source (which stays open).
        modules: component -> module path -> shape of the weight in PyTorch, for the modules that
            may have an adapter, such as
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q" and, for text encoders,
            "encoder.layers.0.self_attn.q_proj", without ``text_model.``. Names with underscores can
            only be resolved by comparison with these.
        layers_per_block: the UNet's, which sgm's block numbers depend on.

    Returns:
        component -> module path -> ``LoraWeights``, or ``Change`` for everything else; components
        without adapters are left out.

    Raises:
        KeyMismatch: keys that belong to none of ``modules``.
        UnsupportedAdapter: a file for another base, or of an unsupported kind, which is named; half
            a pair; ranks that differ between the two halves; a file without adapters.
    """
    if isinstance(source, TensorSource):
        opened = [Opened(source, None, PeftSettings.of_file(source))]
        return _read(opened, modules, layers_per_block)
    with open_adapter(source) as opened:
        return _read(opened, modules, layers_per_block)


def read_bundled_embeddings(source: TensorSource | str | os.PathLike) -> dict[str, dict]:
    """token -> {"clip_l": [n, width], "clip_g": …}: embeddings that are bundled with an adapter."""
    if not isinstance(source, TensorSource):
        with open_adapter(source) as opened:
            return {
                k: v for each in opened for k, v in read_bundled_embeddings(each.source).items()
            }
    found = {}
    for key in source.keys():
        if match := EMBEDDING.fullmatch(key):
            found.setdefault(match["token"], {})[match["tower"]] = source.read(key)
    return found


def _read(opened, modules, layers_per_block) -> Adapters:
    adapters: Adapters = {}
    for each in opened:
        for component, layers in _read_one(each, modules, layers_per_block).items():
            adapters.setdefault(component, {}).update(layers)
    return adapters


def _read_one(opened: Opened, modules, layers_per_block) -> Adapters:
    source = opened.source
    _refuse_other_kinds(source)
    _refuse_nothing(source)
    _warn_of_missing_settings(opened)
    layers, unmatched = _group(opened, modules, layers_per_block)
    if unmatched:
        _refuse_what_is_no_lora(source)
        _refuse_other_kinds(source, unmatched, unsupported_unmatched)
        raise KeyMismatch(
            source.describe(),
            unexpected={key: source.info(key)[1] for key in unmatched},
            remedy="No module of this model has such a name: check that the LoRA is for SDXL, and "
            "that all the components it trains are asked for.",
        )
    adapters: Adapters = {}
    for layer in layers.values():
        read = read_layer(source, layer, opened.settings)
        adapters.setdefault(layer.component, {})[layer.path] = read
    return adapters


def _group(opened: Opened, modules, layers_per_block) -> tuple[dict, list[str]]:
    """({(component, path): Layer}, keys that belong nowhere)."""
    source, where = opened.source, opened.source.describe()
    names = Names(modules, layers_per_block, opened.component)
    stems, unmatched = {}, []
    for key in source.keys():
        if EMBEDDING.fullmatch(key) or key in COUNTERS:
            continue
        split = split_key(key)
        if split is None:
            unmatched.append(key)
        else:
            stem, role = split
            _put(where, stems.setdefault(stem, {}), role, key, stem)
    layers, found = {}, []
    for stem, roles in stems.items():
        if "weight" in roles and "on_input" not in roles:  # not IA3: a layer's own weight
            unmatched.append(roles.pop("weight"))
        inner = _inner(source, roles)
        place = names.locate(where, stem, inner) if roles else None
        if place is None:
            unmatched += roles.values()
            continue
        found.append((stem, stem.startswith(ONE_ENCODER), *place, inner))
        layer = layers.setdefault(place, Layer(*place, modules[place[0]][place[1]], {}))
        for role, key in roles.items():
            _put(where, layer.roles, role, key, f"{place[0]}.{place[1]}")
    refuse_other_base(source, found, modules, unmatched, opened.settings.base)
    return layers, unmatched


def _put(where, roles, role, key, layer):
    if role in roles:
        raise UnsupportedAdapter(
            f"{where}: {roles[role]!r} and {key!r} are both {role} of {layer}. Remove one of them "
            "from the file; several adapters belong in several files."
        )
    roles[role] = key


def _inner(source, roles) -> int | None:
    """The layer's number of inputs, if one of the tensors shows it."""
    for role in ("down", "diff", "loha w1_b"):
        shape: tuple[int, ...] = source.info(roles[role])[1] if role in roles else ()
        if len(shape) > 1:
            return int(shape[1])
    return None


def _refuse_other_kinds(source, keys=None, find=other_kind):
    for key in source.keys() if keys is None else keys:
        if kind := find(key):
            raise UnsupportedAdapter(
                f"{source.describe()}: {key!r} belongs to {kind}, which is not supported; LoRA, "
                "DoRA, LoHa, LoKr, IA3 and full differences are. Merge it into the base weights "
                "with the tool that made it."
            )


def _refuse_what_is_no_lora(source):
    kind, _ = classify(source)
    if kind != "unknown" and not kind.startswith("lora-"):
        raise UnsupportedAdapter(
            f"{source.describe()}: this is {NAMES[kind]}, and no LoRA. What reads it says "
            "docs/convert.md."
        )


def _refuse_nothing(source):
    keys = source.keys()
    if all(EMBEDDING.fullmatch(key) for key in keys):
        there = "no LoRA, only embeddings of words" if keys else "no tensors"
        raise UnsupportedAdapter(
            f"{source.describe()}: holds {there}, so that there is nothing to apply. Its training "
            "may have saved nothing else; fetch or save it again."
        )


def _warn_of_missing_settings(opened: Opened):
    """PEFT stores alpha outside its weight files: alone they do not say how strong they are."""
    keys = opened.source.keys()
    if opened.settings or not any(key.startswith("base_model.model.") for key in keys):
        return
    if not any(key.endswith(".alpha") for key in keys):
        warnings.warn(
            f"{opened.source.describe()}: is PEFT's file without the adapter_config.json that says "
            "how strong it is; alpha is taken to be the rank. Give the whole folder.",
            stacklevel=2,
        )


def no_effect(adapters: Adapters) -> bool:
    """Whether every layer's adapter is zero, as at the start of training."""
    return not any(_has_effect(each) for layers in adapters.values() for each in layers.values())


def _has_effect(each) -> bool:
    if isinstance(each, LoraWeights):
        return each.scale != 0 and bool(each.up.any()) and bool(each.down.any())
    if each.reads_layer or each.bias is not None:
        return True
    return any(product.product().any() for product in each.products)


__all__ = ["Adapters", "no_effect", "read_bundled_embeddings", "read_lora"]
