"""The settings of all stages, with the thesis' and PhotoMaker's values.

A file of configs/collect/ has ``get_config()``, which returns a :class:`Collect`. Thresholds stand
here and nowhere else; every one of them can be changed without measuring a picture again.
"""

import ast
import dataclasses
import runpy
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from data_pipeline.collect.download_settings import DownloadSettings


class SettingsError(ValueError):
    """Settings that cannot be used; the message names the key and the remedy."""


@dataclass(frozen=True)
class Measure:
    """How pictures are measured. A change here measures them again.

    detector, recogniser: as ``open_detector`` and ``open_recogniser`` name them.
    pose: MoveNet's file, for keypoints; "" for none.
    scores: plug-ins, "package.module:NAME" each (looking/scores.py).
    """

    detector: str = "yunet"
    recogniser: str = "sface"
    pose: str = ""
    scores: tuple[str, ...] = ()


@dataclass(frozen=True)
class Limit:
    """The most that a plug-in's score may be."""

    score: str
    most: float


@dataclass(frozen=True)
class Filter:
    """Which pictures can be used. None switches a condition off.

    Sides and faces (their shorter side) are in pixels of the upright picture. The thesis and
    PhotoMaker say 512 and 256; the others are ours.

    min_score: of the detector, 0 to 1.
    max_second: area of the second largest face as a part of the main one's.
    max_aspect: long side over short side.
    min_sharpness: see looking/measure.py. max_dark, max_bright: share of a face's pixels that
        are almost black or white.
    max_roll: degrees between the line through the eyes and the horizon.
    max_yaw: how far the nose is from the middle of the eyes, in distances of the eyes.
    min_colour: mean difference of a pixel's largest and smallest channel, 0 to 255; 0 keeps grey
        pictures.
    limits: of plug-ins' scores.
    """

    min_side: int | None = 512
    min_face: float | None = 256
    min_score: float | None = 0.6
    max_second: float | None = 0.5
    max_aspect: float | None = 3.0
    min_sharpness: float | None = 10.0
    max_dark: float | None = 0.6
    max_bright: float | None = 0.4
    max_roll: float | None = 45.0
    max_yaw: float | None = None
    min_colour: float | None = None
    limits: tuple[Limit, ...] = ()


@dataclass(frozen=True)
class Duplicates:
    """Which pictures count as one.

    bits: of 64 that the hashes of two copies may differ in. Pictures with the same bytes are
        always copies.
    same_face: least cosine of the two faces, so that two portraits before one wall are no copies.
    across: of one picture under two names, drop "both", or the "worse" by verification.
    """

    bits: int | None = 8
    same_face: float = 0.85
    across: str = "worse"


@dataclass(frozen=True)
class Verify:
    """Which pictures show the person whose name they have (verify.py).

    rule: "median", "mean_cosine", "mad" or "paper"; every rule's result is reported.
    median, mean_cosine, merge: least cosines; they belong to the recogniser, and are SFace's
    (benchmarks/results/verification.md). mad: median - mad * 1.4826 *
    MAD, paper: mean - paper * standard deviation, both of the summed similarities.
    merge: least cosine of the medians of two names that are one person; None merges none.
    min_pictures: people with fewer are left out.
    """

    rule: str = "median"
    median: float = 0.5
    mean_cosine: float = 0.4
    mad: float = 5.0
    paper: float = 8.0
    merge: float | None = 0.6
    min_pictures: int = 2


@dataclass(frozen=True)
class Crop:
    """The square around the person.

    min_face_share: least share of the crop's area that the face has.
    above: room over the face, in heights of the face.
    max_side: larger crops are reduced to it, pixels; None keeps them.
    format: "jpg" or "png". quality: of JPEG.
    """

    min_face_share: float = 0.1
    above: float = 0.5
    max_side: int | None = 1024
    format: str = "jpg"
    quality: int = 95


@dataclass(frozen=True)
class Mask:
    """Masks of the person; by default none.

    model: "selfie:FILE.json" (MediaPipe's, as TensorFlow.js), "package.module:function", or "".
    min_face: least share of the face box that the mask has to cover.
    """

    model: str = ""
    min_face: float = 0.5


@dataclass(frozen=True)
class Caption:
    """Who writes the captions.

    captioner: "template"; "qwen:DIR", Qwen2.5-VL's weights for transformers; "server:URL", an
        OpenAI-compatible server; or "package.module:function".
    model: the model's name at the server. key: the environment variable with the server's key.
    revision: what the records say of the weights; "" takes it from the model where it says one.
    batch: pictures at once. retries: with other seeds, before the template stands in.
    coverage: least share of the caption's content words that its parts have.
    min_pixels, max_pixels: area to which Qwen scales a picture.
    timeout: seconds of an answer from the server.
    """

    captioner: str = "template"
    model: str = ""
    key: str = ""
    revision: str = ""
    trigger_word: str = "img"
    batch: int = 8
    retries: int = 3
    coverage: float = 0.8
    min_pixels: int = 56 * 56
    max_pixels: int = 28 * 28 * 1280
    max_new_tokens: int = 400
    timeout: float = 120.0


@dataclass(frozen=True)
class Split:
    """People of the validation sets (the thesis: 10 seen in training, 10 held out, 7 from
    elsewhere).

    out_of_domain: origins whose people are never trained on: the column ``origin`` of the list, or
        the host of a picture or of the page it was found on.
    seed: of the draw. Whom a run held out, WORK/held_out.json keeps for the next ones.
    """

    in_train: int = 10
    out_of_train: int = 10
    out_of_domain: tuple[str, ...] = ()
    seed: int = 0


@dataclass(frozen=True)
class Output:
    """What is written besides the folder with its manifests.

    shards, webdataset: in addition. tar_size: pictures of a tar. sheet: contact sheets in the
    report; ``purge`` removes them.
    """

    shards: bool = False
    webdataset: bool = False
    tar_size: int = 1000
    sheet: bool = True


@dataclass(frozen=True)
class Collect:
    """All of it. ``work`` is the folder that the download fills, ``out`` where the set goes.

    rows: the list or folder that is downloaded first; "" takes ``work`` as it is. columns: the
        list's names of our columns, "identity=celebrity" each. download: with whose contact, …
    name, purpose: of the data set, for its card.
    workers: processes of the local executor; 0 works in this process.
    timeout: seconds that a process may take for one picture before it is ended.
    """

    work: str = ""
    out: str = ""
    rows: str = ""
    columns: tuple[str, ...] = ()
    name: str = "identities"
    purpose: str = "Training of personalised generation of people."
    workers: int = 1
    timeout: float = 120.0
    download: DownloadSettings = field(default_factory=DownloadSettings)
    measure: Measure = field(default_factory=Measure)
    filter: Filter = field(default_factory=Filter)
    duplicates: Duplicates = field(default_factory=Duplicates)
    verify: Verify = field(default_factory=Verify)
    crop: Crop = field(default_factory=Crop)
    mask: Mask = field(default_factory=Mask)
    caption: Caption = field(default_factory=Caption)
    split: Split = field(default_factory=Split)
    output: Output = field(default_factory=Output)


ONE_OF = {
    "duplicates.across": ("both", "worse"),
    "verify.rule": ("median", "mean_cosine", "mad", "paper"),
    "crop.format": ("jpg", "png"),
}


def load_settings(file: str | Path, changes: Iterable[str] = ()) -> Collect:
    """The settings of a file, with "key=value" or "stage.key=value" changed.

    Raises:
        SettingsError: no such file, no such key, or a value that cannot be used.
    """
    if not Path(file).is_file():
        raise SettingsError(f"{file}: no such file; configs/collect/ has examples")
    made = runpy.run_path(str(file)).get("get_config")
    settings = made() if callable(made) else None
    if not isinstance(settings, Collect):
        raise SettingsError(f"{file}: its get_config() has to return a Collect (settings.py)")
    for change in changes:
        key, equals, text = change.partition("=")
        if not equals:
            raise SettingsError(f"--set {change}: key=value is needed")
        settings = _changed(settings, key.split("."), text, key)
    return checked(settings)


def checked(settings: Collect) -> Collect:
    """The settings as they are; SettingsError for values that cannot be used."""
    for key, known in ONE_OF.items():
        stage, name = key.split(".")
        value = getattr(getattr(settings, stage), name)
        if value not in known:
            raise SettingsError(f"{key}={value!r}: use one of {', '.join(known)}")
    positive = ("caption.batch", "output.tar_size", "verify.min_pictures", "timeout")
    for key in positive:
        if not _value(settings, key) > 0:
            raise SettingsError(f"{key}={_value(settings, key)}: more than 0 is needed")
    for key in ("split.in_train", "split.out_of_train", "caption.retries", "workers"):
        if not _value(settings, key) >= 0:
            raise SettingsError(f"{key}={_value(settings, key)}: 0 or more is needed")
    if not 0 < settings.crop.min_face_share < 1:
        raise SettingsError(f"crop.min_face_share={settings.crop.min_face_share}: between 0 and 1")
    if settings.mask.model and settings.output.shards:
        raise SettingsError("mask.model: shards have no place for masks; output.shards=False")
    names = [limit.score for limit in settings.filter.limits]
    known_scores = [name.partition(":")[2] for name in settings.measure.scores]
    for name in names:
        if name not in known_scores:
            raise SettingsError(f"filter.limits: {name!r} is none of measure.scores {known_scores}")
    return settings


def _value(settings: Any, key: str) -> Any:
    for name in key.split("."):
        settings = getattr(settings, name)
    return settings


def _limits(value: Any, key: str) -> tuple[Limit, ...]:
    """Limits that are given as pairs."""
    try:
        found = tuple(pair if isinstance(pair, Limit) else Limit(*pair) for pair in value)
        if all(isinstance(f.score, str) and type(f.most) in (int, float) for f in found):
            return found
    except TypeError:
        pass
    raise SettingsError(f"--set {key}={value}: pairs are needed, such as (('nsfw', 0.5),)")


def _changed(settings: Any, path: list[str], text: str, key: str) -> Any:
    names = [item.name for item in dataclasses.fields(settings)]
    if path[0] not in names:
        raise SettingsError(f"--set {key}: {path[0]!r} is unknown; known: {', '.join(names)}")
    old = getattr(settings, path[0])
    if len(path) > 1:
        if not dataclasses.is_dataclass(old):
            raise SettingsError(f"--set {key}: {path[0]!r} has no parts")
        return dataclasses.replace(settings, **{path[0]: _changed(old, path[1:], text, key)})
    if dataclasses.is_dataclass(old):
        raise SettingsError(f"--set {key}: a stage; name one of its keys")
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        value = text  # a plain word needs no quotes
    if isinstance(old, str):
        value = text.strip("\"'")
    elif type(old) is float and type(value) is int:
        value = float(value)
    wrong = old is not None and value is not None and not isinstance(value, type(old))
    if wrong and {type(old), type(value)} != {int, float}:  # where both are used, as for pixels
        raise SettingsError(f"--set {key}={text}: a {type(old).__name__} is needed")
    if path[0] == "limits":
        value = _limits(value, key)
    return dataclasses.replace(settings, **{path[0]: value})


def to_json(settings: Any) -> dict[str, Any]:
    """The settings as plain values, for the report: what the set depends on."""
    found = dataclasses.asdict(settings)
    hidden = ("work", "out", "rows", "columns", "workers", "download")
    return {name: value for name, value in found.items() if name not in hidden}
