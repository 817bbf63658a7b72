"""Finds the faces in image files.

    python -m data_pipeline.faces FILE… [--embed] [--pose movenet.json] --json OUT

writes for each file {"file": …, "size": [height, width], "faces": [{"box": [x0, y0, x1, y1],
"score": …, "landmarks": [[x, y] × 5], "embedding": […]}]}, the highest score first. With a pose net
(data_pipeline/pose/movenet.py) also "pose": {"joints": [[x, y] × 17], "scores": [17]}, of the most
prominent person. Positions are pixels of the upright image, (0, 0) its corner. A folder stands for
its images. A file that cannot be read has "error" and no faces, and makes the exit status 1.
"""

import argparse
import json
import sys
from pathlib import Path

from data_pipeline.cli import command
from data_pipeline.faces.reading import DETECTORS, FoundFaces, Networks, read_faces, terms_of
from data_pipeline.files import write_text
from data_pipeline.pictures.listing import named_images


def as_entry(found: FoundFaces) -> dict:
    """What the JSON says of one file."""
    entry: dict = {"file": found.file}
    if found.error:
        return {**entry, "error": found.error, "faces": []}
    faces = []
    for number, face in enumerate(found.faces):
        row: dict = {"box": [round(v, 2) for v in face.box], "score": round(face.score, 4)}
        if face.landmarks is not None:
            row["landmarks"] = face.landmarks.round(2).tolist()
        if found.embeddings is not None:
            row["embedding"] = [round(float(v), 6) for v in found.embeddings[number]]
        faces.append(row)
    entry |= {"size": list(found.size or ()), "faces": faces}
    if found.pose is not None:
        joints, scores = found.pose
        entry["pose"] = {"joints": joints.round(2).tolist(), "scores": scores.round(4).tolist()}
    return entry


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("files", nargs="+", metavar="FILE", help="image, or a folder of images")
    add("--json", required=True, metavar="OUT", help="write there; - for standard output")
    add("--detector", default="auto", help=DETECTORS)
    add("--embed", action="store_true", help="also the embedding of each face")
    add("--recogniser", metavar="NAME", help="sface (default), FILE.onnx, insightface[:DIR]")
    add("--pose", metavar="FILE", help="MoveNet's .json, with its .bin next to it")
    add("--workers", type=int, metavar="N", help="processes; default: one per core")
    args = parser.parse_args(argv)
    if args.recogniser and not args.embed:
        parser.error(f"--recogniser {args.recogniser} has no effect without --embed")
    if args.json != "-" and not Path(args.json).absolute().parent.is_dir():
        raise FileNotFoundError(f"--json {args.json}: there is no such folder")
    recogniser = (args.recogniser or "sface") if args.embed else ""
    files, entries, faults = named_images(args.files), [], 0
    networks = Networks(args.detector, recogniser, args.pose or "")
    for line in terms_of(networks):
        print(line, file=sys.stderr)
    for found in read_faces(files, networks, args.workers):
        if found.error:
            faults += 1
            print(f"warning: {found.error}", file=sys.stderr)
        entries.append(as_entry(found))
    rows = ",\n ".join(json.dumps(entry, ensure_ascii=False) for entry in entries)
    text = f"[{rows}]\n"
    if args.json == "-":
        print(text, end="")
    else:
        write_text(args.json, text)
    none = sum(not entry["faces"] and "error" not in entry for entry in entries)
    print(
        f"{len(entries)} files, {sum(len(e['faces']) for e in entries)} faces, {none} files "
        f"without a face, {faults} that cannot be read",
        file=sys.stderr,
    )
    if faults:
        sys.exit(1)


if __name__ == "__main__":
    main()
