"""Evaluates a method: generates people x prompts x images, and measures them by config.metrics.

The protocol is the thesis' (one reference per person; CLIP-T and Face-Sim on people seen in
training, on held-out people, and on people from elsewhere). Validation during training and the
evaluate command both use it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from data_pipeline.examples.fields import Field, requirements
from data_pipeline.examples.identity.masked_references import grey_around, mask_of
from data_pipeline.pictures.transforms import square_face_crop
from data_pipeline.records.groups import join_groups
from data_pipeline.records.schema import Record
from data_pipeline.records.sources import open_records
from persongen_jax.evaluation.contact_sheet import MAX_ROWS, Row, choose_rows, contact_sheet
from persongen_jax.evaluation.generating import PeopleGenerator
from persongen_jax.evaluation.groups.by_group import groups_of
from persongen_jax.evaluation.prompts import class_word_of, open_prompts
from persongen_jax.evaluation.trajectories import SETS
from persongen_jax.metrics.base import Generated, Known, Owner, People
from persongen_jax.metrics.judge_check import check_judges
from persongen_jax.metrics.measures import measure_all
from persongen_jax.metrics.pose.targets import Target, as_inputs, of_record
from persongen_jax.metrics.registry import open_metrics
from persongen_jax.parallel.sharding import mesh_for
from persongen_jax.pipeline import Pipeline
from persongen_jax.systems.sdxl import Sdxl

WIDE = 8  # images in a row of a sheet


@dataclass
class Person:
    """A person to generate.

    Attributes:
        records: all their images. The first ``references`` of them, or as many as there are, are
            what the method reads.
        show: what they show, config.references.
        crops: of the references, uint8 [h, w, 3] each, for the method.
        reference: the first of them whole, for sheets.
    """

    identity: str
    word: str
    records: list[Record]
    read: Callable
    references: int = 1
    show: str = "face"
    crops: list[np.ndarray] = field(init=False)
    reference: np.ndarray = field(init=False)

    def __post_init__(self):
        own = self.records[: self.references]
        images = [self.read(record.image) for record in own]
        self.reference = images[0]
        self.crops = [self._shown(image, record) for image, record in zip(images, own, strict=True)]

    def _shown(self, image, record):
        if self.show == "masked":
            image = grey_around(image, self.read(mask_of(record)))
        whole = self.show == "whole" or record.face_box is None
        return image if whole else square_face_crop(image, record.face_box)

    def pose(self, size: int) -> Target | None:
        """The reference's pose in images of ``size``; None if its joints are not known."""
        return of_record(self.records[0], self.reference.shape[:2], (size, size))

    def given(self, field: Field, size: int) -> Any:
        """The value of an additional field for this person, taken from the references; or None."""
        return field.from_records(self.records[: self.references], self.read, (size, size))


@dataclass
class Result:
    """For one set: a row of metrics.jsonl, and the images, uint8 [people, prompts, n, h, w, 3]."""

    row: dict
    images: np.ndarray


def open_people(spec: str, system: Sdxl, limit: int | None = None) -> list[Person]:
    """The first ``limit`` people of a source of records (data_pipeline/records/sources.py)."""
    by_identity, read = records_by_identity(spec, system)
    config, marked = system.config, requirements(system.fields)["marked"]
    references = config.validation_references
    if references < 1:
        raise ValueError(f"config.validation_references={references}: at least 1")
    people = [
        Person(
            identity,
            class_word_of(own[0], config.trigger_word, marked),
            own,
            read,
            references,
            config.references,
        )
        for identity, own in list(by_identity.items())[:limit]
    ]
    fewer = [person.identity for person in people if len(person.records) < references]
    if fewer:
        print(f"{spec}: fewer than {references} references of {', '.join(fewer)}: all are read")
    return people


def records_by_identity(spec: str, system: Sdxl) -> tuple[dict[str, list[Record]], Callable]:
    """Records by identity, in the source's order, and the function that reads an image."""
    needs = {**requirements(system.fields), "least": 1}  # a reference, and no target
    records, read = open_records(spec, system.config.trigger_word, **needs)
    by_identity = {}
    for record in records:
        by_identity.setdefault(record.identity, []).append(record)
    return by_identity, read


class Evaluation:
    """Everything that is constant between validations.

    Opening it reads people, prompts and encoders, so that a wrong path or prompt fails before the
    first step of training; programs are compiled at the first call and reused.

    Args:
        system: systems.sdxl.Sdxl; the measured model may differ from its own. Reads the keys of
            configs/base.py under "Validation", and method, size, trigger_word.

    Attributes:
        people: list of Person by the name of the set; only sets that the config names.
        metrics: the metrics of config.metrics that can be measured, in its order.
        known: what the metrics know about each set.
        should_stop: called between sampling steps; True ends the evaluation with Stopped.
        said: what was printed about figures that are not there, so that it is printed once.

    Raises:
        ValueError: an unusable source, prompt or judge, or a judge that the method reads.
    """

    generates = True

    def __init__(self, system: Sdxl):
        self.system, self.config = system, system.config
        config, base = system.config, system.base
        self.should_stop: Callable[[], bool] = lambda: False
        self.said: set[str] = set()
        self.mesh = mesh_for(config)
        self.prompts = open_prompts(config.validation_prompts, config.trigger_word)
        own = (config.validation_images, config.validation_seed)
        self.generate = PeopleGenerator(system, self.prompts, *own)
        self.size, self.options = self.generate.size, self.generate.options
        specs = {name: config[f"validate_{name}"] for name in SETS}
        self.people = {
            name: open_people(spec, system, config.validation_people)
            for name, spec in specs.items()
            if spec
        }
        self.generate.check_prompts(p.word for people in self.people.values() for p in people)
        self.metrics = open_metrics(config)
        check_judges(self.metrics, base.model, system.trained_against, config.judges_are_inputs)
        self.known = self._known_sets()
        for known in self.known.values():
            for metric in self.metrics:
                metric.prepare(known)

    def __call__(self, model: Any, step: int) -> dict[str, Result]:
        """The Result of every set. Raises Stopped if ``should_stop`` returns True."""
        pipe = Pipeline.from_system(
            self.system, model, mesh=self.mesh, shard_weights=self.config.shard_frozen
        )
        self.generate.should_stop = lambda: self.should_stop()
        most = max(map(len, self.people.values()), default=0)
        results = {}
        for name, people in self.people.items():
            images = self.generate(pipe, people, most, name)
            row = {"step": step, "set": name, **self._settings(people)}
            generated = self._generated(images, people)
            row["metrics"] = measure_all(self.metrics, generated, self.known[name], self.said)
            if groups := groups_of(self.known[name].people.owners):
                row["groups"] = groups
            results[name] = Result(row, images)
        return results

    def sheet(self, name: str, images: np.ndarray) -> np.ndarray:
        """The contact sheet of a set, uint8 [h, w, 3]: one row per person if their images fit."""
        people = self.people[name]
        if len(self.prompts) * self.config.validation_images <= WIDE:
            own = (array.reshape(-1, *array.shape[2:]) for array in images)
            shown = list(zip(people, own, strict=True))[:MAX_ROWS]
            return contact_sheet([Row(p.identity, p.reference, list(all_)) for p, all_ in shown])
        return contact_sheet([row for *_, row in self.rows(name, images)])

    def rows(self, name: str, images: np.ndarray) -> list[tuple[int, int, Row]]:
        """(person, prompt, row of a sheet) for the people and prompts that fit on a sheet."""
        people, rows = self.people[name], []
        for i, j in choose_rows(len(people), len(self.prompts)):
            text = self.prompts[j].fill(people[i].word).whole(self.config.trigger_word)
            who = people[i]
            row = Row(f"{who.identity} / {text}", who.reference, list(images[i, j]))
            rows.append((i, j, row._replace(person=who.identity, prompt=text)))
        return rows

    # ---- measuring ----

    def _settings(self, people) -> dict:
        """What the figures depend on other than the weights."""
        config, several = self.config, self.config.validation_references
        return {
            "method": config.method,
            "seed": config.seed,
            "sampling_steps": self.options.num_inference_steps,
            "guidance": self.options.guidance,
            "merge_step": self.options.start_merge_step,
            "people": len(people),
            "prompts": len(self.prompts),
            "images_each": config.validation_images,
            **({"references": several} if several > 1 else {}),
        }

    def _generated(self, images, people) -> Generated:
        """The metrics' input, in the order of _flat."""
        trigger, n = self.config.trigger_word, images.shape[2]
        texts = [p.fill(who.word).whole(trigger) for who in people for p in self.prompts]
        owners = [p.identity for p in people for _ in range(images.shape[1] * n)]
        poses = [pose for p in people for pose in [p.pose(self.size)] * (images.shape[1] * n)]
        texts = [text for text in texts for _ in range(n)]
        return Generated(_flat(images), owners, texts, as_inputs(poses))

    def _known_sets(self) -> dict[str, Known]:
        """What is known about each set; the gallery is opened on demand."""
        gallery = self.config.validation_gallery
        others = People(lambda: open_owners(gallery, self.system) if gallery else [])
        known = {}
        for name, people in self.people.items():
            own = [make_owner(p.identity, p.records, p.read, p.references) for p in people]
            known[name] = Known(name, People(functools.partial(list, own)), others)
        return known


def open_owners(spec: str, system: Sdxl) -> list[Owner]:
    """Everyone in a source of records; reads no image yet."""
    by_identity, read = records_by_identity(spec, system)
    return [make_owner(identity, own, read) for identity, own in by_identity.items()]


def make_owner(identity: str, records: list[Record], read: Callable, references: int = 1) -> Owner:
    """The first ``references`` records are the references."""

    def pictures(limit=None):
        return [read(record.image) for record in records[:limit]]

    group = join_groups([record.group for record in records], identity)
    return Owner(identity, lambda: pictures(references), pictures, group)


def _flat(images):
    return images.reshape(-1, *images.shape[3:])
