"""Measures the images of a folder by any metrics, once with each face recogniser."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from ml_collections import ConfigDict

from data_pipeline.pictures.reading import ImageError, load_image
from persongen_jax.evaluation.folders.entries import Entry, Folder
from persongen_jax.evaluation.folders.pictures import Picture, Pictures, decode
from persongen_jax.evaluation.groups.by_group import Groups, groups_of
from persongen_jax.metrics.base import Generated, Known, Metric, NoFigure, Values
from persongen_jax.metrics.judges import NoJudge
from persongen_jax.metrics.measures import measure_of, values_of
from persongen_jax.metrics.pose.targets import as_inputs
from persongen_jax.metrics.registry import METRICS, find_class, labelled, open_metrics

USUAL = ("clip_t", "clip_i", "dino_i", "dinov2_i", "face_sim", "rank1_10", "detection_rate")
OF_FACES = ("face_net", "face_detector")  # keys of the judges that --recogniser names
RECOGNISER = "--recogniser FILE"


@dataclass
class Scores:
    """A measured folder.

    Attributes:
        folder: its entries are the measured images.
        pictures: the images, in the entries' order.
        values: what each metric gave, by its name; without those that gave nothing.
        measures: their means, see metrics/measures.py.
        metrics: those with values, by name.
        groups: of the people, see groups/by_group.py.
    """

    folder: Folder
    pictures: Pictures
    metrics: dict[str, Metric]
    values: dict[str, Values]
    measures: dict[str, dict]
    groups: Groups = field(default_factory=dict)

    @property
    def entries(self) -> list[Entry]:
        return self.folder.entries

    @property
    def people(self) -> dict[str, int]:
        """Number of measured images by person."""
        return images_by_person(self.entries)

    def of_images(self, name: str) -> np.ndarray | None:
        """A metric's values [n], NaN where it could not measure; None for a set's, or if absent."""
        if name not in self.values or self.metrics[name].over == "set":
            return None
        return np.asarray(self.values[name].values, np.float64)


def images_by_person(entries: Sequence[Entry]) -> dict[str, int]:
    """Number of images by person, in the order of the entries."""
    owners = [entry.person for entry in entries]
    return {who: owners.count(who) for who in dict.fromkeys(owners)}


# ---- metrics -----------------------------------------------------------------------------------


def judge_keys(config: ConfigDict) -> list[str]:
    """The config's keys that name a judge of any registered metric."""
    keys = dict.fromkeys(find_class(name).judge_key for name in METRICS)
    return [key for key in keys if key and key in config]


def open_scorers(
    config: ConfigDict, recognisers: Sequence[str], keep: str | Path
) -> tuple[list[Metric], list[str]]:
    """The metrics of ``config.metrics`` in its order, and a sentence for each that has no judge.

    Args:
        config: as open_metrics'.
        recognisers: of faces, files each, in place of ``config.face_net``; with several, metrics of
            faces are there once for each, and their titles say which; [] for the config's own.
        keep: the folder of the judges' features.

    Raises:
        ValueError: no metric that can be measured, or an unusable one.
    """
    classes = {name: find_class(name) for name in config.metrics}
    files = [*recognisers] or [config.get("face_net", "")]
    faces = [name for name, cls in classes.items() if cls.judge_key in OF_FACES]
    jobs = [(list(classes), files[0], "")]
    if len(files) > 1:
        jobs = [([name for name in classes if name not in faces], files[0], "")]
        jobs += [(faces, *each) for each in zip(files, short_names(files), strict=True)]
    opened: dict[str, list[Metric]] = {name: [] for name in classes}
    missing: dict[type[Metric], NoJudge] = {}
    for names, face_net, label in jobs:
        own = config.copy_and_resolve_references()
        own.metrics, own.face_net = tuple(names), face_net
        found = {metric.name: metric for metric in open_metrics(own, keep, label, missing)}
        for name in names:
            metric = found.get(labelled(classes[name], label).name)
            # A detector that two recognisers share is one judge.
            judges = [other.judge for other in opened[name]]
            if metric and not (metric.judge_key == "face_detector" and metric.judge in judges):
                opened[name].append(metric)
    metrics = [metric for own_metrics in opened.values() for metric in own_metrics]
    notes = [
        f"{cls.title} is not measured: {why}{_remedy(why.key or cls.judge_key)}"
        for cls, why in missing.items()
    ]
    if len({metric.name for metric in metrics}) < len(metrics):
        raise ValueError(f"--recogniser: {', '.join(recognisers)} have like names: rename a file")
    if not metrics:
        raise ValueError("; ".join(notes) or "--metrics: give at least one")
    return metrics, notes


def _remedy(key: str) -> str:
    """The option that names a judge, by the config's key."""
    if not key:
        return ""
    return f" ({RECOGNISER if key in OF_FACES else f'--encoder {key}=FILE'})"


def short_names(files: Sequence[str]) -> list[str]:
    """What tells files apart in a column's title: their own names, or more of their paths."""
    for parts in range(1, 1 + max((len(Path(file).parts) for file in files), default=0)):
        names = ["/".join(Path(file).with_suffix("").parts[-parts:]) for file in files]
        if len(set(names)) == len(files):
            return names
    return [f"{Path(file).stem} {i}" for i, file in enumerate(files, 1)]


# ---- images ------------------------------------------------------------------------------------


def open_pictures(folder: Folder) -> Pictures:
    """The images that can be decoded, in the entries' order; the folder excludes the others.

    Their entries stay until ``folder.drop_excluded``.

    Raises:
        ValueError: none can be.
    """
    paths = [str(folder.path / entry.file) for entry in folder.entries]
    pictures = [Picture(path, functools.partial(load_image, path)) for path in paths]
    found = decode(pictures)
    kept = []
    for entry, picture, result in zip(folder.entries, pictures, found, strict=True):
        if isinstance(result, ImageError):
            folder.excluded[entry.file] = str(result)
        else:
            kept.append((picture, result))
    if not kept:
        why = next(iter(folder.excluded.values()))
        raise ValueError(f"{folder.path}: no image can be decoded: {why}")
    copies = len(kept) - len({digest for _, digest in kept})
    if copies:
        folder.notes.append(f"{copies} images have the pixels of another one of the folder")
    return Pictures([picture for picture, _ in kept], [digest for _, digest in kept])


def score(folder: Folder, pictures: Pictures, known: Known, metrics: list[Metric]) -> Scores:
    """Measure a folder's images; ``known`` is about their people.

    Raises:
        ValueError: a metric that cannot judge these images.
    """
    for metric in metrics:
        metric.prepare(known)
    texts = [entry.text for entry in folder.entries]
    owners = [entry.person for entry in folder.entries]
    poses = as_inputs([entry.pose for entry in folder.entries])
    generated = Generated(pictures, owners, texts if any(texts) else None, poses)
    missing: dict[str, NoFigure] = {}
    values = values_of(metrics, generated, known, missing)
    with_values = {metric.name: metric for metric in metrics if metric.name in values}
    for metric in metrics:
        if metric.name not in values:
            why = missing.get(metric.name, "" if any(texts) else "no prompt is known")
            folder.notes.append(f"{metric.title} gives no figure{f': {why}' if why else ''}")
    measures = {
        name: measure_of(metric, values[name], generated) for name, metric in with_values.items()
    }
    groups = groups_of(known.people.owners)
    return Scores(folder, pictures, with_values, values, measures, groups)
