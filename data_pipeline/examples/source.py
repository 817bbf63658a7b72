"""Examples by index: which record an example is made from, and what its fields make of it.

Example number n = 0, 1, 2, … is a function of only (records, fields, seed, n). So a run resumes by
its step number alone, every process can make just its own rows, and examples can be made in any
order on any number of threads.
"""

import functools
import hashlib
import json
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from data_pipeline.examples.buckets import Turns, nearest
from data_pipeline.examples.fields import Example, Field, Input
from data_pipeline.pictures.kept import SHOWN_PROBLEMS, ImageCache
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.pictures.transforms import TargetCrop, plan_crop
from data_pipeline.records.schema import MAX_REFERENCES, Record, to_entry

log = logging.getLogger(__name__)

# Purposes of random keys: their draws must be independent.
ORDER, CONTENT = 0, 1
NAMED_PICTURES = 10_000  # of more, a checkpoint keeps one mark for all of them


class ExampleSource:
    """Makes examples, flat dicts of arrays, by index; safe to call from several threads.

    Args:
        records: data_pipeline.records.schema.Record.
        fields: the contents of an example (data_pipeline/examples/fields.py).
        size: the side of the target crop in pixels.
        buckets: shapes (height, width); targets get the nearest of these instead. Then example n
            belongs to step n // ``batch_size``, and all examples of a step to one bucket
            (data_pipeline/examples/buckets.py).
        random_crop: draw the crop's position; False: the centre, or the face.
        read_image: maps a record's ``image`` to uint8 RGB [h, w, 3], or raises an ImageError
            (data_pipeline/records/sources.py).
        cache_bytes: images and reference crops are kept in memory up to this size.
        features: persongen_jax/features/; cached outputs of frozen networks replace fields.
        mark: maps a record's ``image`` to a short text of fixed length that depends on its content.

    Attributes:
        skipped: maps each file that could not be decoded to the reason; an example that needs it
            uses the next image instead, the same one in every run.

    Raises:
        ValueError: unusable records; a PromptError if captions are at fault.
        ImageError: with buckets, no image can be read.
    """

    def __init__(
        self,
        records: list[Record],
        fields: tuple[Field, ...],
        *,
        seed: int,
        size: int,
        random_crop: bool = True,
        read_image: Callable[[str], np.ndarray] = load_image,
        cache_bytes: int = 1 << 30,
        buckets: tuple[tuple[int, int], ...] = (),
        batch_size: int = 1,
        features: Any = None,
        mark: Callable[[str], str] | None = None,
    ):
        self.records, self.seed = list(records), seed
        self.fields: tuple[Any, ...] = tuple(fields)
        self.size, self.random_crop, self.features = size, random_crop, features
        self._mark: Any = mark
        self.batch_size, self.buckets = batch_size, tuple(buckets)
        self.pictures = ImageCache(read_image, cache_bytes)
        self.skipped = self.pictures.skipped
        self._of_identity: dict[str, dict[str, Record]] = defaultdict(dict)
        for record in self.records:
            self._of_identity[record.identity][record.image] = record
        self._keys = {key for field in self.fields for key in field.keys}
        self._references = [field for field in self.fields if field.others]
        self._order = functools.lru_cache(maxsize=2 * max(1, len(self.buckets)))(self._shuffle)
        self._check()
        self._members = [np.arange(len(self.records))]
        if self.buckets:
            self._members = self._into_buckets()
        used = [k for k, members in enumerate(self._members) if len(members)]
        if not used:
            raise ImageError(f"no image can be read; first cause: {self._first_problem()}")
        self._used = used
        self._turns = Turns(len(self._members[k]) for k in used)

    # ---- the structure of an example ----

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(height, width) of the targets, one per bucket in use."""
        shapes = self.buckets or [(self.size, self.size)]
        return [shapes[k] for k in self._used]

    @property
    def specs(self) -> list[dict]:
        """Per shape in ``shapes``, shape and dtype of every array of an example, by flat name."""
        return [self.spec_of(shape) for shape in self.shapes]

    def spec_of(self, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The spec of examples whose target is (height, width)."""
        spec = {}
        for field in self.fields:
            own = field.spec(shape)
            if self.caches(field):
                input_shape = field.input_shape(shape)
                own = field.row_spec(shape, self.features.row_spec(field.encoding, input_shape))
            spec |= own
        return spec

    def caches(self, field: Field) -> bool:
        """Whether examples hold the feature cache's rows of this field."""
        return self.features is not None and self.features.caches(field)

    @functools.cached_property
    def fingerprint(self) -> str:
        """A digest of the records' contents, in order; their images may have moved."""
        digest = hashlib.sha256()
        for record in self.records:
            entry = to_entry(record)
            del entry["image"]
            # Groups, and keys that no field reads, do not make it another run.
            entry.pop("group", None)
            extra = entry.pop("extra", {})
            entry |= {key: value for key, value in extra.items() if key in self._keys}
            images = [name for name in entry.pop("images", ()) if f"images.{name}" in self._keys]
            if images:
                entry["images"] = sorted(images)
            digest.update(json.dumps(entry, sort_keys=True).encode())
        return digest.hexdigest()[:16]

    @functools.cached_property
    def image_digests(self) -> str:
        """A mark of each image's content, in the records' order; for very many, one for all."""
        if self._mark is None:
            return ""
        marks = "".join(map(self._mark_of, self.records))
        if len(self.records) <= NAMED_PICTURES:
            return marks
        return hashlib.sha256(marks.encode()).hexdigest()[:16]

    def _mark_of(self, record: Record) -> str:
        own = self._mark(record.image)
        further = sorted((record.images or {}).items())
        others = [self._mark(file) for name, file in further if f"images.{name}" in self._keys]
        return hashlib.sha256("".join([own, *others]).encode()).hexdigest()[: len(own)]

    def pictures_changed(self, marks: str) -> list[str]:
        """The images that have changed since these marks were made; all, if unknown."""
        if marks == self.image_digests or not marks or not self._mark:
            return []
        names, length = [record.image for record in self.records], len(marks) // len(self.records)
        if length * len(names) != len(self.image_digests) or len(names) > NAMED_PICTURES:
            return names
        return [
            name
            for i, name in enumerate(names)
            if marks[i * length : (i + 1) * length]
            != self.image_digests[i * length : (i + 1) * length]
        ]

    # ---- one example ----

    def example(self, n: int) -> dict[str, np.ndarray]:
        """Example number n. ImageError if no usable target can be decoded."""
        bucket, n_in_bucket = self._place(n)
        shape, cause = (self.buckets or [(self.size, self.size)])[bucket], "none was found"
        for attempt, row in enumerate(self._candidates(bucket, n_in_bucket)):
            rng = np.random.default_rng((self.seed, CONTENT, n, attempt))
            try:
                made = self._make(self.records[row], shape, rng)
            except ImageError as error:  # recorded by ``pictures``, or logged by ``features``
                cause = str(error)
                continue
            if made is not None:
                return made
        first = next(iter(self.skipped.values()), cause)
        lacking = " has a reference" if self._references else " can be decoded"
        raise ImageError(f"no target of {len(self.records)}{lacking}; first cause: {first}")

    def pictures_of(self, numbers: Iterable[int]) -> list[str]:
        """The targets of the examples with these indices, except skipped ones."""
        found = []
        for n in numbers:
            rows = self._candidates(*self._place(n))
            names = (self.records[row].image for row in rows)
            found += [next((name for name in names if name not in self.skipped), "")]
        return list(filter(None, found))

    def _make(self, record: Record, shape, rng) -> dict | None:
        example = Example(self, record, self.plan(record, shape, rng), rng)
        arrays = {}
        for field in self.fields:
            own = field.make_cached(example) if self.caches(field) else field.make(example)
            if own is None:
                return None
            arrays |= own
        return arrays

    def plan(
        self, record: Record, shape: tuple[int, int], rng: np.random.Generator | None = None
    ) -> TargetCrop:
        """How the record's image becomes a target of ``shape``; ImageError if it is unreadable.

        ``rng``: draws the crop's position if ``random_crop``.
        """
        return plan_crop(
            self.size_of(record.image),
            record.face_box,
            shape,
            rng if self.random_crop else None,
            original_size=record.original_size,
            original_crop=record.crop,
        )

    def size_of(self, name: str) -> tuple[int, int]:
        """(height, width) of an image; a cache that knows it avoids decoding."""
        if self.features is not None and self.features.caches_pixels:
            return self.features.picture_of(self, name).size
        return self.pictures.image(name).shape[:2]

    def draw_references(self, example: Example) -> tuple[list[Record], dict[str, list]]:
        """1 to 4 other images of the identity, fewer if they do not decode, and what each field of
        references keeps of them."""
        records, kept = [], {field.name: [] for field in self._references}
        everything = self._of_identity[example.record.identity].values()
        others = [record for record in everything if record.image != example.record.image]
        if not self._references or not others:
            return records, kept
        wanted = example.rng.integers(1, min(len(others), MAX_REFERENCES) + 1)
        for i in example.rng.permutation(len(others)):
            try:
                own = [field.draw_one(self, others[i]) for field in self._references]
            except ImageError:
                continue
            records.append(others[i])
            for field, value in zip(self._references, own, strict=True):
                kept[field.name].append(value)
            if len(records) == wanted:
                break
        return records, kept

    def most_references(self, record: Record) -> int:
        """The most references that an example of this record can have; 1 if no field reads any."""
        if not self._references:
            return 1
        return min(len(self._of_identity[record.identity]) - 1, MAX_REFERENCES)

    # ---- the record of example n ----

    def _place(self, n: int) -> tuple[int, int]:
        """The bucket of example n, and its index among that bucket's examples."""
        if not self.buckets:
            return 0, n
        step, row = divmod(n, self.batch_size)
        turn, before = self._turns[step]
        return self._used[turn], before * self.batch_size + row

    def _candidates(self, bucket: int, n: int) -> Iterator[int]:
        """The bucket's images from its n-th on, to be tried until one decodes."""
        members = self._members[bucket]
        for i in range(n, n + len(members)):
            epoch, place = divmod(i, len(members))
            yield members[self._order(epoch, bucket)[place]]
        if len(members) < len(self.records):  # the others, cropped to this bucket's shape
            yield from range(len(self.records))

    def _shuffle(self, epoch: int, bucket: int = 0) -> np.ndarray:
        which = self.buckets[bucket] if self.buckets else ()
        rng = np.random.default_rng((self.seed, ORDER, epoch, *which))
        return rng.permutation(len(self._members[bucket]))

    def _into_buckets(self) -> list[np.ndarray]:
        """The rows of each bucket's records; unreadable ones are in none."""
        members = [[] for _ in self.buckets]
        for row, record in enumerate(self.records):
            try:
                size = self.pictures.size(record.image) if not self.features else None
                size = size or self.features.picture_of(self, record.image).size
            except ImageError:
                continue
            members[nearest(size, self.buckets)].append(row)
        return [np.array(rows, np.int64) for rows in members]

    def _first_problem(self) -> str:
        return next(iter(self.skipped.values()), "none was found")

    # ---- before the first step ----

    def _check(self) -> None:
        """Find problems that would otherwise stop a run later."""
        if not self.records:
            raise ValueError("no records to train on")
        others = {identity: len(images) - 1 for identity, images in self._of_identity.items()}
        needed = max((field.others for field in self.fields), default=0)
        lonely = sum(count < needed for count in others.values())
        if lonely:
            raise ValueError(f"{lonely} identities have no second image to serve as a reference")
        problems, kinds = [], set()
        for record in self.records:
            for field in self.fields:
                try:
                    field.check(record, others[record.identity])
                except ValueError as error:
                    problems.append(f"{record.image}: {error}")
                    kinds.add(type(error))
        if problems:
            shown = "\n  ".join(problems[:SHOWN_PROBLEMS])
            # A PromptError if all of them are.
            kind = kinds.pop() if len(kinds) == 1 else ValueError
            raise kind(f"{len(problems)} records cannot be used:\n  {shown}")
        self._warn_of_unread_keys()
        for field in self.fields:
            for note in field.notes():
                log.warning("%s", note)

    def _warn_of_unread_keys(self):
        there = {key for record in self.records for key in record.extra or ()}
        there |= {f"images.{name}" for record in self.records for name in record.images or ()}
        if there - self._keys:
            unread = ", ".join(sorted(there - self._keys))
            log.warning("keys of the data that this method does not read: %s", unread)

    # ---- for filling a cache ----

    def fixed_crop(self, record: Record) -> TargetCrop | None:
        """The crop of a record's image if it is always the same; None, and counted, if not.

        ImageError if the image does not decode.
        """
        size = self.features.picture_of(self, record.image).size
        shapes = self.buckets or [(self.size, self.size)]
        crop = self.plan(record, shapes[nearest(size, shapes)], np.random.default_rng(0))
        if crop.certain:
            return crop
        self.features.counts["crops drawn again in every step, not stored"] += 1
        return None

    def feature_jobs(self, row: int) -> list[tuple[Field, Input]]:
        """What examples need from the cache for this record; [] if its image does not decode."""
        record, jobs = self.records[row], []
        try:
            self.features.picture_of(self, record.image)
            for field in self.fields:
                if self.caches(field):
                    jobs += [(field, entry) for entry in field.all_inputs(self, record)]
        except ImageError:
            return []
        return jobs
