"""The names that ``config.metrics`` accepts, and how a name becomes a metric."""

import importlib

from ml_collections import ConfigDict

from persongen_jax.metrics.base import Metric
from persongen_jax.metrics.judges import Judges, NoJudge

_HERE = "persongen_jax.metrics"

METRICS = {
    "clip_t": f"{_HERE}.images.clip_t:ClipT",
    "clip_i": f"{_HERE}.images.clip_i:ClipI",
    "dino_i": f"{_HERE}.images.dino_i:DinoI",
    "dinov2_i": f"{_HERE}.images.dinov2_i:Dinov2I",
    "face_sim": f"{_HERE}.images.face_sim:FaceSim",
    "rank1_10": f"{_HERE}.images.rank1:Rank1Of10",
    "rank1_100": f"{_HERE}.images.rank1:Rank1Of100",
    "detection_rate": f"{_HERE}.images.detection_rate:DetectionRate",
    "face_sim_misses_as_0": f"{_HERE}.images.face_sim:FaceSimMissesAs0",
    "cosine_true": f"{_HERE}.images.cosines:CosineTrue",
    "cosine_others": f"{_HERE}.images.cosines:CosineOthers",
    "frechet_clip": f"{_HERE}.sets.frechet_clip:FrechetClip",
    "attribute_accuracy": f"{_HERE}.images.attribute_accuracy:AttributeAccuracy",
    "frechet_attributes": f"{_HERE}.sets.frechet_attributes:FrechetAttributes",
    "precision_attributes": f"{_HERE}.sets.precision_recall:PrecisionAttributes",
    "recall_attributes": f"{_HERE}.sets.precision_recall:RecallAttributes",
}


def find_class(name: str) -> type[Metric]:
    """The class of a name in METRICS, or of "package.module:Class".

    Raises:
        ValueError: no such metric; the message lists the known ones.
    """
    place = METRICS.get(name, name)
    module, given, attribute = place.partition(":")
    if not given:
        raise ValueError(
            f"config.metrics: there is no metric {name!r}; there are {', '.join(METRICS)}, and "
            "'package.module:Class' for one of your own"
        )
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"config.metrics: {name!r} cannot be imported: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Metric)):
        raise ValueError(f"config.metrics: {name!r} is not a subclass of {_HERE}.base.Metric")
    lacking = [each for each in ("name", "title") if not hasattr(found, each)]
    if lacking:
        raise ValueError(f"config.metrics: {name!r} has no {' and no '.join(lacking)}")
    return found


def open_metrics(config: ConfigDict) -> list[Metric]:
    """The metrics of ``config.metrics``, in its order.

    Metrics whose judge the config does not name are left out, with a printed line.

    Args:
        config: ``metrics``, and the keys that the metrics read (``clip``, ``dino``, ...).

    Raises:
        ValueError: an unknown metric, or two with one name.
        WeightsError, OSError: a judge that cannot be opened.
    """
    judges, metrics, missing = Judges(config), [], {}
    for cls in map(find_class, config.metrics):
        if not cls.name.isidentifier() or cls.name in [metric.name for metric in metrics]:
            raise ValueError(
                f"config.metrics: {cls.name!r} is the name of two metrics, or no identifier"
            )
        try:
            metrics.append(cls(config, judges))
        except NoJudge as error:
            missing.setdefault(str(error), []).append(cls.title)
    for reason, titles in missing.items():
        print(f"{', '.join(titles)} {'are' if titles[1:] else 'is'} not measured: {reason}")
    return metrics
