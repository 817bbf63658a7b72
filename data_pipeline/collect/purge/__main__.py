"""Removes people from a collection: from its work folder and from finished data.

    python -m data_pipeline.collect.purge --work WORK --data OUT --name "Ann Example"
    python -m data_pipeline.collect.purge --data SHARDS --picture me.jpg
    python -m data_pipeline.collect.purge --work WORK --data OUT --sha256 0123… --url https://…

A name, and a face that is the median of a name's, remove all pictures of that name and of the names
that were found to be the same person; an address, a hash and any other face the pictures that have
it; and always the copies of what goes. WORK remembers the wish (refused.txt, refused_faces.jsonl)
with the hashes of all that went, so that later runs and downloads obey it. The report and the card
are written again; what they say of stages and measurements is of before. Contact sheets are removed
for good.
"""

import argparse
from collections import Counter
from pathlib import Path

from data_pipeline.cli import command
from data_pipeline.collect import refused
from data_pipeline.collect.purge.data import find_in_data, purge_data
from data_pipeline.collect.purge.facts import Facts
from data_pipeline.collect.purge.wanted import PurgeError, wanted
from data_pipeline.collect.purge.work import find_in_work, purge_work
from data_pipeline.collect.settings import Measure


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m data_pipeline.collect.purge", description=__doc__, allow_abbrev=False
    )
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("--work", type=Path, metavar="DIR", help="work folder of the collection")
    add("--data", type=Path, action="append", default=[], metavar="DIR", help="finished data")
    add("--name", action="append", default=[], help="a person, without regard to case")
    add("--url", action="append", default=[], help="an address of a picture")
    add("--sha256", action="append", default=[], help="of a picture's file as it was fetched")
    add("--picture", action="append", default=[], metavar="FILE", help="shows the person alone")
    add("--least", type=float, default=0.5, help="cosine of a face that is theirs (default: 0.5)")
    add("--detector", default="yunet", help="default: yunet")
    add("--recogniser", default="sface", help="default: sface")
    args = parser.parse_args(argv)
    if args.work is None and not args.data:
        raise PurgeError("give --work, --data or both")
    if args.work is not None and not args.work.is_dir():
        raise PurgeError(f"--work {args.work}: no such folder")
    measure = Measure(detector=args.detector, recogniser=args.recogniser)
    who, texts, faces = wanted(args.name, args.url, args.sha256, args.picture, args.least, measure)
    facts, counts = Facts(), Counter[str]()
    if args.work is not None:
        refused.append(args.work, texts, faces)  # first: a run that starts now obeys it
        find_in_work(args.work, who, facts)
    for folder in args.data:  # in all of them before anything goes
        find_in_data(folder, who, measure, facts)
    facts.spread(who)
    if args.work is not None:
        keys = sorted(key for key in who.keys if refused.HASH.fullmatch(key))
        refused.append(args.work, [*sorted(who.names - who.refused.names), *keys])
        counts += purge_work(args.work, who)
    for folder in args.data:
        counts += purge_data(folder, who)
    removed = ", ".join(f"{n} {what}" for what, n in counts.items()) or "nothing was found"
    print(f"removed: {removed}")
    if args.work is None:
        print("later runs are not told; give --work for that")


if __name__ == "__main__":
    main()
