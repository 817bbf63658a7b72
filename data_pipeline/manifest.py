"""Makes the manifest of a folder of photographs, or checks one.

    python -m data_pipeline.manifest FOLDER
    python -m data_pipeline.manifest FOLDER --check

The first reads the folder as it is (person/*.jpg, kohya's, diffusers', Hugging Face's metadata, or
images of one person), finds the faces, proposes captions and writes FOLDER/manifest.jsonl, which
may be edited. The second reads that file and the headers of its images, and lists all faults.
"""

import argparse
import os
from pathlib import Path

from data_pipeline.cli import command
from data_pipeline.faces.reading import DETECTORS
from data_pipeline.records.building import build_records
from data_pipeline.records.checking import check_manifest
from data_pipeline.records.manifest import FILE_NAME, ManifestError, write_manifest


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER")
    add("--check", action="store_true", help="check the manifest and its images, write nothing")
    add("--class-word", default="", help="what the people are; default: as found, else person")
    add("--trigger-word", default="img", help="word after the class word (default: img)")
    add("--detector", default="auto", help=DETECTORS)
    add("--pose", default="", metavar="FILE", help="MoveNet's .json: keypoints, too")
    add("--keep-faceless", action="store_true", help="keep images in which no face is found")
    add("--replace", action="store_true", help=f"replace a {FILE_NAME} that is there")
    add("--workers", type=int, metavar="N", help="processes; default: one per core")
    args = parser.parse_args(argv)
    path = args.folder / FILE_NAME
    if args.check:
        kept = ("folder", "check", "trigger_word")
        idle = [n for n, v in vars(args).items() if n not in kept and v != parser.get_default(n)]
        if idle:
            parser.error(f"--{idle[0].replace('_', '-')} has no effect with --check")
        for line in check_manifest(args.folder, args.trigger_word):
            print(line)
        return
    if args.folder.is_dir() and not os.access(args.folder, os.W_OK):
        raise ManifestError(f"{args.folder}: cannot be written to; copy it")
    if path.exists() and not args.replace:
        raise ManifestError(
            f"{path}: there already; edit it, check it with --check, or --replace it"
        )
    built = build_records(
        args.folder,
        trigger_word=args.trigger_word,
        class_word=args.class_word,
        detector=args.detector,
        pose=args.pose,
        keep_faceless=args.keep_faceless,
        workers=args.workers,
    )
    for line in built.lines():
        print(line)
    if not built.records:
        raise ManifestError(f"{args.folder}: no image can be used; nothing was written")
    print(f"wrote {write_manifest(args.folder, built.records)}")


if __name__ == "__main__":
    main()
