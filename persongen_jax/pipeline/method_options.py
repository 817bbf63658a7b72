"""What a call of load_method says of a method that its weights do not tell."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from persongen_jax.config_ranges import check_ranges
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


def _whole(name: str, value: Any) -> int:
    number = _number(name, value)
    if not number.is_integer():
        raise ValueError(f"{name}={value!r}: give a whole number")
    return int(number)


def _text(name: str, value: Any) -> str:
    if not isinstance(value, (str, Path)):
        raise ValueError(f"{name}={value!r}: give a name or a path")
    return str(value)


# How a value is read, by the kind of the config's own.
READ = {bool: _flag, int: _whole, float: _number, str: _text}


def with_options(config: ConfigDict, method: Method, options: Mapping[str, Any]) -> ConfigDict:
    """``config`` with a call's ``options``, of the method's keys.

    Raises:
        ValueError: one that the method, or this file, does not have; a value of another kind or
            out of range.
    """
    known = [key for key in method.options if key in config]
    chosen = {}
    for key, value in options.items():
        if key not in known:
            has = ", ".join(known) or "none"
            raise ValueError(
                f"options: {key}={value!r}: {config.method} with these weights has no such option; "
                f"it has {has}"
            )
        read = _shown if key == "references" else READ[type(config[key])]
        chosen[key] = read(key, value)
    check_ranges(ConfigDict(chosen))
    return ConfigDict({**config, **chosen})
