"""Writes the output folder.

OUT/train/manifest.jsonl, images/…     what the loader reads; so in_train, out_of_train, …
OUT/shards/train/…                     the same as shards (output.shards)
OUT/webdataset/train/000000.tar …      the same as tars (output.webdataset)
OUT/dropped.jsonl                      every picture that was left out: reason, value, threshold;
                                       without name and address where people refused
OUT/report.json, report.html, DATASET_CARD.md
"""

import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

from data_pipeline.collect.output.card import card
from data_pipeline.collect.output.page import page
from data_pipeline.collect.output.report import report_of
from data_pipeline.collect.output.sheets import sheets_of
from data_pipeline.collect.output.tars import write_tars
from data_pipeline.collect.records import DROPPED, Dropped, write_json_lines
from data_pipeline.collect.refused import REASON
from data_pipeline.collect.running.run import Curated
from data_pipeline.collect.settings import Collect
from data_pipeline.collect.split import IN_TRAIN, SETS
from data_pipeline.files import write_text
from data_pipeline.records.manifest import write_manifest
from data_pipeline.shards import write_shards

REPORT, PAGE, CARD = "report.json", "report.html", "DATASET_CARD.md"
SHARDS, TARS = "shards", "webdataset"


def write_output(settings: Collect, curated: Curated, out: Path) -> None:
    """Everything but the crops, which are in ``out`` already.

    Raises:
        ShardError, ImportError: shards cannot be written; has the remedy.
    """
    of_set = defaultdict(list)
    for job, record in zip(curated.jobs, curated.records, strict=True):
        of_set[job.set].append(record)
    for name in SETS:
        records = of_set.get(name)
        if not records:
            continue
        write_manifest(out / name, records)
        if settings.output.webdataset:
            write_tars(records, out / name, out / TARS / name, settings.output.tar_size)
        if settings.output.shards and name != IN_TRAIN:  # it has one picture of each, shards two
            (out / SHARDS).mkdir(exist_ok=True)
            write_shards(
                str(out / name), out / SHARDS / name, trigger_word=settings.caption.trigger_word
            )
    write_json_lines(out / DROPPED, map(_unnamed, curated.dropped))
    report = report_of(settings, curated)
    write_text(out / REPORT, json.dumps(report, indent=1, ensure_ascii=False) + "\n")
    sheets = sheets_of(settings, curated, out) if settings.output.sheet else {}
    write_text(out / PAGE, page(report, sheets))
    write_text(out / CARD, card(report))


def _unnamed(drop: Dropped) -> Dropped:
    """A line that may be passed on: who refused is not named."""
    return replace(drop, identity="", url="") if drop.reason.startswith(REASON) else drop
