"""Downloads the pictures of a list of people into a work folder.

    python -m data_pipeline.collect.download faces.csv --work work --contact me@example.org

The list is JSON lines, JSON, CSV, TSV or Parquet (each also .gz) with the columns identity and url,
and perhaps sha256, licence, consent, source, origin and caption; or a folder of images,
WebDataset's tars, or what img2dataset wrote. Run it again to go on after an interruption, and to
retry what may succeed now.
"""

import argparse
from dataclasses import fields
from pathlib import Path
from typing import Any

from data_pipeline.cli import command
from data_pipeline.collect.download.run import download_list
from data_pipeline.collect.download_settings import DownloadSettings


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=DownloadSettings.__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("list", metavar="LIST", help="a file or folder, see above")
    add("--work", required=True, type=Path, metavar="DIR", help="folder to write")
    add(
        "--column",
        action="append",
        default=[],
        metavar="FIELD=NAME",
        help="the list's name of one of our columns, such as identity=celebrity",
    )
    for field in fields(DownloadSettings):
        _add(parser, field.name, field.default)
    args = vars(parser.parse_args(argv))
    source, work, columns = args.pop("list"), args.pop("work"), args.pop("column")
    args["allow"] = tuple(args["allow"])
    settings = DownloadSettings(**args)
    download_list(source, columns, settings, work)
    print(f"wrote {work}/pictures.jsonl; what is missing and why: {work}/dropped.jsonl")


def _add(parser: argparse.ArgumentParser, name: str, default: Any) -> None:
    flag = "--" + name.replace("_", "-")
    if isinstance(default, bool):
        parser.add_argument(flag, action="store_true")
    elif isinstance(default, tuple):
        parser.add_argument(flag, action="append", default=[], metavar=name.upper())
    else:
        parser.add_argument(
            flag, type=type(default), default=default, metavar="N", help=f"default: {default}"
        )


if __name__ == "__main__":
    main()
