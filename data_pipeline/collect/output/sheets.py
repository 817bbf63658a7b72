"""Contact sheets: some pictures of each set, and some that each reason dropped.

They show people's faces inside of report.html, and go when somebody is purged. Who refused is on
none, nor is a picture that a plug-in dropped, such as for nudity or a minor.
"""

import base64
import io
from collections import defaultdict
from pathlib import Path

from PIL import Image

from data_pipeline.collect import refused
from data_pipeline.collect.filter import too_high
from data_pipeline.collect.running.run import Curated
from data_pipeline.collect.settings import Collect
from data_pipeline.pictures.reading import ImageError, load_image

COLUMNS, SIDE = 12, 96
KEPT, DROPPED = 48, 24  # pictures at most on each sheet


def sheets_of(settings: Collect, curated: Curated, out: Path) -> dict[str, str]:
    """Title to a sheet as a data: address of a JPEG."""
    files: dict[str, list[Path]] = defaultdict(list)
    for job in _spread(curated.jobs):
        files[f"set {job.set}"].append(out / job.set / job.image)
    paths = {picture.key: Path(settings.work) / picture.path for picture in curated.pictures}
    hidden = {too_high(limit.score) for limit in settings.filter.limits}
    hidden_keys = {d.key for d in curated.dropped if d.stage == refused.STAGE or d.reason in hidden}
    for drop in curated.dropped:
        # One that cannot be read may end the process that tries.
        shown = drop.key not in hidden_keys and drop.reason != "unreadable"
        if drop.key in paths and shown:
            files[f"dropped by {drop.stage}: {drop.reason}"].append(paths[drop.key])
    sheets = {}
    for title, found in files.items():
        most = KEPT if title.startswith("set ") else DROPPED
        sheet = _sheet(found[:most])
        if sheet:
            sheets[f"{title} ({min(len(found), most)} of {len(found)})"] = sheet
    return sheets


def _spread(jobs):
    """A picture of each person in turn, so that a sheet shows many people."""
    turns, seen = [], defaultdict(int)
    for job in jobs:
        who = (job.set, job.choice.identity)
        turns.append((seen[who], len(turns), job))
        seen[who] += 1
    return [job for _, _, job in sorted(turns, key=lambda turn: turn[:2])]


def _sheet(files: list[Path]) -> str:
    thumbnails = [small for file in files if (small := _thumbnail(file)) is not None]
    if not thumbnails:
        return ""
    rows = -(-len(thumbnails) // COLUMNS)
    sheet = Image.new("RGB", (min(len(thumbnails), COLUMNS) * SIDE, rows * SIDE), "white")
    for n, small in enumerate(thumbnails):
        sheet.paste(small, (n % COLUMNS * SIDE, n // COLUMNS * SIDE))
    file = io.BytesIO()
    sheet.save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()


def _thumbnail(file: Path) -> Image.Image | None:
    try:
        image = Image.fromarray(load_image(file))
    except ImageError:  # what was dropped because it cannot be read
        return None
    image.thumbnail((SIDE, SIDE))
    return image
