"""From a picture that stays to its line of the manifest: crop, mask, caption."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_pipeline.collect import crop, mask
from data_pipeline.collect.captions.base import Captioner, View, Written
from data_pipeline.collect.captions.contract import mark
from data_pipeline.collect.captions.opening import open_captioner
from data_pipeline.collect.captions.write import write_captions
from data_pipeline.collect.choices import Choice, Drop
from data_pipeline.collect.looking.store import cut_torn_line
from data_pipeline.collect.records import CAPTIONS
from data_pipeline.collect.settings import Collect
from data_pipeline.files import atomic_write
from data_pipeline.pictures.reading import ImageError, load_image
from data_pipeline.records.captions import CLASS_WORDS
from data_pipeline.records.schema import Record
from data_pipeline.text_files import parse_json


@dataclass(frozen=True, eq=False)
class Job:
    """A picture, the set it goes to, and where its crop was written below the output folder."""

    choice: Choice
    set: str
    square: crop.Square | None = None
    image: str = ""
    mask: str = ""
    drop: Drop | None = None


@dataclass(frozen=True)
class Finisher:
    """Cuts and masks; a function of jobs that can be sent to another process."""

    settings: Collect
    out: str

    def __call__(self, jobs: Sequence[Job]) -> list[Job]:
        return [self._one(job) for job in jobs]

    def named(self, job: Job) -> str:
        """The picture, for messages."""
        return f"{job.choice.picture.key} ({Path(self.settings.work) / job.choice.picture.path})"

    def failed(self, job: Job, why: str) -> Job:
        """What stands for a picture that ended its process, or that raised."""
        return replace(job, drop=job.choice.drop(crop.STAGE, "unreadable", why))

    def _one(self, job: Job) -> Job:
        choice, settings = job.choice, self.settings
        square = crop.square_of(choice, settings.crop)
        try:
            image = load_image(Path(settings.work) / choice.picture.path)
        except ImageError as error:
            return self.failed(job, str(error))
        if square is None or image.shape[:2] != choice.look.size:
            return self.failed(job, f"{choice.picture.path} changed since it was measured")
        part = square.cut(image)
        key = choice.picture.key
        job = replace(job, square=square)
        if settings.mask.model:
            masks = mask.open_masks(settings.mask.model)(part)
            found, share = mask.mask_of_face(masks, square.moved_box(choice.box))
            if found is None or share < settings.mask.min_face:
                least = settings.mask.min_face
                drop = choice.drop(mask.STAGE, "no mask over the face", share, least)
                return replace(job, drop=drop)
            name = f"masks/{key[:2]}/{key}.png"
            _save(Path(self.out) / job.set / name, np.rint(found * 255).astype(np.uint8), "PNG")
            job = replace(job, mask=name)
        name = f"images/{key[:2]}/{key}.{settings.crop.format}"
        kind: dict[str, Any] = {"format": "PNG"}
        if settings.crop.format == "jpg":
            kind = {"format": "JPEG", "quality": settings.crop.quality, "subsampling": 0}
        _save(Path(self.out) / job.set / name, part, **kind)
        return replace(job, image=name)


@dataclass
class CaptionWriter:
    """Captions of jobs whose crops are written; what was asked once is kept in the work folder."""

    settings: Collect
    out: str
    _captioner: Captioner | None = None
    _opened: bool = False
    _known: dict[str, Written] | None = None

    def __call__(self, jobs: Sequence[Job]) -> list[Written]:
        """The texts of each, which the work folder keeps; one process may call it."""
        found = self.answers(jobs)
        if self._captioner is not None:
            self.keep(found)
        return [written for _, _, written in found]

    def answers(self, jobs: Sequence[Job]) -> list[tuple[str, str, Written]]:
        """(mark, key, texts) of each; the mark says what they depend on, "" without a model."""
        if not self._opened:
            self._captioner, self._opened = open_captioner(self.settings.caption), True
        if self._known is None:
            self._known = self._read() if self._captioner is not None else {}
        known = self._known
        keys = [job.choice.picture.key for job in jobs]
        marks = [self._mark(job) if self._captioner else "" for job in jobs]
        if all(name in known for name in marks):
            texts = [known[name] for name in marks]
        else:
            # The whole batch, so that an answer never depends on what was known before.
            views = [self._view(job) for job in jobs]
            texts = write_captions(views, self._captioner, self.settings.caption)
        return list(zip(marks, keys, texts, strict=True))

    def _view(self, job: Job) -> View:
        choice, square = job.choice, job.square
        assert square is not None
        _, top, _, bottom = square.moved_box(choice.box)
        image = load_image(Path(self.out) / job.set / job.image)
        hint = choice.picture.caption
        words = [word.strip(".,;:!?").lower() for word in hint.split()]
        known = next((word for word in words if word in CLASS_WORDS), "")
        share = (bottom - top) / square.size
        return View(
            *(choice.picture.key, image, choice.identity, share, choice.look.colour, hint, known)
        )

    def _mark(self, job: Job) -> str:
        """What a caption depends on: crop, identity and captioner."""
        captioner, square = self._captioner, job.square
        assert captioner is not None and square is not None
        parts = [job.choice.picture.key, job.choice.identity, *square.box, square.size]
        parts += [captioner.name, captioner.revision, captioner.prompt]
        caption = self.settings.caption
        parts += [caption.trigger_word, caption.retries, caption.coverage, caption.max_new_tokens]
        parts += [caption.min_pixels, caption.max_pixels, self.settings.crop.format]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]

    def _read(self) -> dict[str, Written]:
        path = Path(self.settings.work) / CAPTIONS
        cut_torn_line(path)
        found = {}
        if path.is_file():
            with path.open(encoding="utf-8") as file:
                for number, line in enumerate(file, 1):
                    entry = parse_json(line, path, number)
                    found[entry["mark"]] = Written(**entry["written"])
        return found

    def keep(self, answers: Sequence[tuple[str, str, Written]]) -> None:
        """Add (mark, key, texts) of other processes to the work folder, unless they are there."""
        if self._known is None:
            self._known = self._read()
        new = [answer for answer in answers if answer[0] and answer[0] not in self._known]
        with (Path(self.settings.work) / CAPTIONS).open("a", encoding="utf-8") as file:
            for name, key, written in new:
                entry = {"mark": name, "key": key, "written": vars(written)}
                file.write(json.dumps(entry, ensure_ascii=False) + "\n")
                self._known[name] = written


def record_of(job: Job, written: Written, settings: Collect, out: str | Path) -> Record:
    """The line of the manifest, with all that is known of the picture's origin."""
    choice, square = job.choice, job.square
    assert square is not None
    picture, look = choice.picture, choice.look
    folder = Path(out) / job.set
    collected = {
        "url": picture.url,
        "source": picture.source,
        "origin": picture.origin,
        "fetched": picture.fetched,
        "sha256": picture.key,
        "phash": look.phash,
        "rotated": picture.rotated,
        "licence": picture.licence,
        "consent": picture.consent,
        "detector": settings.measure.detector,
        "face_score": choice.the_face.score,
        "recogniser": settings.measure.recogniser,
        "verification": choice.score,
        "captioner": written.captioner,
        "captioner_revision": written.revision,
        "prompt": written.prompt,
        "coverage": written.coverage,
        "tries": written.tries,
        "fallback": written.fallback,
    }
    if picture.identity != choice.identity:
        collected["also_called"] = picture.identity
    keypoints = look.keypoints
    x0, y0, x1, y1 = map(float, square.box)
    return Record(
        image=str(folder / job.image),
        identity=choice.identity,
        caption=mark(written.caption, written.class_word, settings.caption.trigger_word),
        background=written.background,
        body=written.body,
        class_word=written.class_word,
        face_box=square.moved_box(choice.box),
        landmarks=square.moved(choice.the_face.landmarks),
        keypoints=None if keypoints is None else square.moved(keypoints),
        visibility=_inside(look, square),
        original_size=look.size,
        crop=(x0, y0, x1, y1),
        images={"mask": str(folder / job.mask)} if job.mask else None,
        extra={"general": written.general, "collected": collected},
    )


def _inside(look, square: crop.Square) -> tuple[bool, ...] | None:
    """Which joints are visible in the crop."""
    if look.keypoints is None or look.visibility is None:
        return None
    places = np.asarray(square.moved(look.keypoints))
    within: Any = ((places >= 0) & (places < square.size)).all(1)
    return tuple(bool(v and w) for v, w in zip(look.visibility, within, strict=True))


def _save(path: Path, pixels: np.ndarray, format: str, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as partial:
        Image.fromarray(pixels).save(partial, format, **options)
