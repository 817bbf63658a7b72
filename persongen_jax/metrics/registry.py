"""The names that ``config.metrics`` accepts, and how a name becomes a metric."""

import importlib
from pathlib import Path

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
    "tar_far_1e2": f"{_HERE}.images.verification:VerificationAt1In100",
    "tar_far_1e3": f"{_HERE}.images.verification:VerificationAt1In1000",
    "tar_far_1e4": f"{_HERE}.images.verification:VerificationAt1In10000",
    "face_sim_misses_as_0": f"{_HERE}.images.face_sim:FaceSimMissesAs0",
    "cosine_true": f"{_HERE}.images.cosines:CosineTrue",
    "cosine_others": f"{_HERE}.images.cosines:CosineOthers",
    "image_diversity": f"{_HERE}.images.image_diversity:ImageDiversity",
    "face_diversity": f"{_HERE}.images.face_diversity:FaceDiversity",
    "face_sharpness": f"{_HERE}.images.face_sharpness:FaceSharpness",
    "pose_error": f"{_HERE}.pose.pose_error:PoseError",
    "pck": f"{_HERE}.pose.pck:Pck",
    "oks": f"{_HERE}.pose.oks:Oks",
    "joints_found": f"{_HERE}.pose.joints_found:JointsFound",
    "copy": f"{_HERE}.images.copy:Copy",
    "fid": f"{_HERE}.sets.fid:Fid",
    "kid": f"{_HERE}.sets.kid:Kid",
    "inception_score": f"{_HERE}.sets.inception_score:InceptionScore",
    "cmmd": f"{_HERE}.sets.cmmd:Cmmd",
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


def open_metrics(
    config: ConfigDict,
    keep: str | Path | None = None,
    label: str = "",
    missing: dict[type[Metric], NoJudge] | None = None,
) -> list[Metric]:
    """The metrics of ``config.metrics``, in its order.

    Metrics whose judge the config does not name are left out, with a printed line.

    Args:
        config: ``metrics``, and the keys that the metrics read (``clip``, ``dino``, ...).
        keep: a folder in which the judges keep what they compute from images; None: nowhere.
        label: goes into every name and title, to tell the same metric by several judges apart.
        missing: gets the classes of metrics that are left out, and why; nothing is printed then.

    Raises:
        ValueError: an unknown metric, or two with one name.
        WeightsError, OSError: a judge that cannot be opened.
    """
    judges, metrics, titles_by_reason = Judges(config), [], {}
    for cls in map(find_class, config.metrics):
        if not cls.name.isidentifier() or cls.name in [metric.name for metric in metrics]:
            raise ValueError(
                f"config.metrics: {cls.name!r} is the name of two metrics, or no identifier"
            )
        try:
            metrics.append(labelled(cls, label)(config, judges))
        except NoJudge as error:
            titles_by_reason.setdefault(str(error), []).append(cls.title)
            if missing is not None:
                missing[cls] = error
    if keep is not None:
        judges.keep(keep)
    for reason, titles in titles_by_reason.items() if missing is None else ():
        print(f"{', '.join(titles)} {'are' if titles[1:] else 'is'} not measured: {reason}")
    return metrics


def labelled(cls: type[Metric], label: str) -> type[Metric]:
    """The same metric under another name and title: face_sim_sface, "Face-Sim (sface)".

    "" changes nothing.
    """
    if not label:
        return cls
    suffix = "".join(letter if letter.isalnum() else "_" for letter in label)
    names = {"name": f"{cls.name}_{suffix}", "title": f"{cls.title} ({label})"}
    return type(cls.__name__, (cls,), {"__doc__": cls.__doc__, **names})
