"""Makes a data set of a list, or of downloaded pictures: filter, verify, crop, caption, split.

    python -m data_pipeline.collect --config configs/collect/att.py --work WORK --out OUT
    python -m data_pipeline.collect --config … --set filter.min_side=300 --set verify.rule=paper
    python -m data_pipeline.collect --config … --set rows=faces.csv --set download.contact=me@…
    python -m data_pipeline.collect --config … --runner FnApiRunner -- --direct_num_workers=2

The first reads WORK/pictures.jsonl, measures what is not measured yet, and writes OUT. A changed
threshold (--set) reads the stored measurements. With ``rows`` the list is downloaded first, which
goes on where it was (--no-download: not at all). With the extra `beam` a --runner of Apache Beam
does the same, with the same bytes; what follows -- is for Beam.
"""

import argparse
import dataclasses
import sys

from data_pipeline.cli import command
from data_pipeline.collect.download.run import download_list
from data_pipeline.collect.looking import scores
from data_pipeline.collect.looking.measure import check_networks
from data_pipeline.collect.make import collect, lines_of
from data_pipeline.collect.settings import checked, load_settings


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.collect", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help="of configs/collect/")
    add("--work", metavar="DIR", help="what the download wrote; default: the config's")
    add("--out", metavar="DIR", help="folder to write; default: the config's")
    add("--workers", type=int, metavar="N", help="processes; 0: this one")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the config")
    add("--runner", default="none", metavar="NAME", help="none (default), FnApiRunner, …")
    add("--no-download", action="store_true", help="take WORK as it is, also with rows")
    add("options", nargs="*", metavar="-- OPTIONS", help="of Beam")
    args = parser.parse_args(argv)
    settings = load_settings(args.config, args.set)
    given = {name: getattr(args, name) for name in ("work", "out", "workers")}
    changes = {name: value for name, value in given.items() if value is not None}
    settings = checked(dataclasses.replace(settings, **changes))
    if args.options and args.runner == "none":
        parser.error(f"{args.options[0]} has no effect without --runner")
    for line in check_networks(settings.measure) + scores.terms(settings.measure.scores):
        print(line, file=sys.stderr)
    if settings.rows and not args.no_download:
        if not settings.work:
            parser.error(f"rows={settings.rows!r}: --work, a folder to download into, is needed")
        download_list(settings.rows, settings.columns, settings.download, settings.work)
    curated = collect(settings, args.runner, args.options)
    print("\n".join(lines_of(curated, settings)))


if __name__ == "__main__":
    main()
