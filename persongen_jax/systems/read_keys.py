"""Finds out which keys of a config are read by recording the accesses."""

from collections.abc import Iterable
from typing import Any

from ml_collections import ConfigDict


class ReadKeys:
    """A read-only config that records the keys that are read; ``keys``: their names."""

    def __init__(self, config: ConfigDict):
        self._config, self.keys = config, set()

    def __getattr__(self, key):
        self.keys.add(key)
        return getattr(self._config, key)

    def __getitem__(self, key):
        self.keys.add(key)
        return self._config[key]

    def __contains__(self, key):
        return key in self._config

    def get(self, key: str, default: Any = None) -> Any:
        self.keys.add(key)
        return self._config.get(key, default)

    def unread(self, keys: Iterable[str]) -> tuple[str, ...]:
        """The ``keys`` that were not read; none if the config was read as a whole (``to_dict``)."""
        whole = any(callable(getattr(type(self._config), key, None)) for key in self.keys)
        return () if whole else tuple(key for key in keys if key not in self.keys)


__all__ = ["ReadKeys"]
