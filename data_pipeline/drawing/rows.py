"""Batches as dataclasses of arrays that share their first axis."""

from dataclasses import fields, replace


class Rows:
    """Base class of dataclasses whose fields are all arrays [n, ...]."""

    def __len__(self):
        return len(getattr(self, fields(self)[0].name))

    def take(self, rows):
        """The same with the rows of an index array, mask or slice."""
        return replace(self, **{f.name: getattr(self, f.name)[rows] for f in fields(self)})
