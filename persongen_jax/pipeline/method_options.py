"""What a call of load_method says of a method that its weights do not tell."""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from persongen_jax.methods.base import Method


def _flag(name: str, value: Any) -> bool:
    named = {"true": True, "false": False}.get(str(value).lower())
    if named is None:
        raise ValueError(f"{name}={value!r}: give True or False")
    return named


def _number(name: str, value: Any) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{name}={value!r}: give a finite number")
    return number


def _shown(name: str, value: Any) -> str:
    if value not in ("face", "whole", "aligned"):
        raise ValueError(f"{name}={value!r}: give face, whole or aligned")
    return value


# How values of options that are no free words are read: what references show; of FaceID Plus its
# version (shortcut: 2), and how much the picture of the face adds.
READ = {"references": _shown, "shortcut": _flag, "s_scale": _number}


def with_options(config: ConfigDict, method: Method, options: Mapping[str, Any]) -> ConfigDict:
    """``config`` with a call's ``options``, of the method's keys.

    Raises:
        ValueError: one that the method, or this file, does not have; a value of another kind.
    """
    known = [key for key in method.options if key in config]
    chosen = {}
    for key, value in options.items():
        if key not in known:
            has = ", ".join(known) or "none"
            raise ValueError(f"options: {key}={value!r} is none of {config.method}; it has {has}")
        chosen[key] = READ[key](key, value) if key in READ else value
    return ConfigDict({**config, **chosen})
