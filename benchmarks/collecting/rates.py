"""Pictures per second of the download and of its decoding, with what bounds them.

    python -m benchmarks.collecting.rates --out benchmarks/results/collecting_rates.md

A server in a process of its own on this machine, no limits per host, JPEG pictures as large as
photographs. The floors: reading all files with http.client and nothing else; decoding, encoding
and nothing else, by Pillow in as many processes as the download has.
"""

import argparse
import datetime
import http.client
import io
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.collect.download.stage import download
from data_pipeline.collect.download_settings import DownloadSettings
from data_pipeline.collect.records import Row
from data_pipeline.files import write_text
from persongen_jax.tables import markdown
from tests.helpers.bad_server import BadServer

SPAWN = multiprocessing.get_context("spawn")


def photograph(number: int, side: int) -> bytes:
    """A JPEG with as much detail as a photograph of this size."""
    rng = np.random.default_rng(number)
    small = rng.integers(0, 256, (side // 16, side // 16, 3), np.uint8)
    image = np.asarray(Image.fromarray(small).resize((side, side), Image.Resampling.BICUBIC))
    grain = rng.normal(0, 3, image.shape)
    file = io.BytesIO()
    Image.fromarray(np.clip(image + grain, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def serve(folder: str, pipe) -> None:
    """The server's process: says where it is, and ends with the pipe."""
    with BadServer(folder) as server:
        pipe.send(server.place)
        try:
            pipe.recv()
        except EOFError:
            pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """127.0.0.1 with the port of a server of the folder."""
    ours, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=serve, args=(str(folder), theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours.recv()
    finally:
        ours.close()
        process.join(5)


def cpu() -> float:
    """Seconds of the processor that this process and those that it has ended have had."""
    own, ended = (resource.getrusage(w) for w in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime


def only_read(place: str, names: list[str]) -> float:
    """Pictures per second of one connection that does nothing with them."""
    connection = http.client.HTTPConnection(place)
    begun = time.perf_counter()
    for name in names:
        connection.request("GET", f"/files/{name}")
        connection.getresponse().read()
    return len(names) / (time.perf_counter() - begun)


def transcode(folder: str, names: list[str]) -> None:
    """Decode and encode as the download does, into memory."""
    for name in names:
        with Image.open(Path(folder, name)) as image:
            image.load()
            image.save(io.BytesIO(), "JPEG", quality=95, subsampling=0)


def only_transcode(folder: Path, names: list[str], processes: int) -> float:
    """Pictures per second of Pillow alone."""
    shares = [names[i::processes] for i in range(processes)]
    with SPAWN.Pool(processes) as pool:
        pool.map(partial(transcode, str(folder)), [names[:1]] * processes)  # imports come first
        begun = time.perf_counter()
        pool.map(partial(transcode, str(folder)), shares, chunksize=1)
        seconds = time.perf_counter() - begun
        pool.close()
        pool.join()
    return len(names) / seconds


def downloaded(place: str, names: list[str], work: Path, decoders: int) -> float:
    """Pictures per second of the stage, its start included."""
    rows = [Row("ann", f"http://{place}/files/{name}") for name in names]
    settings = DownloadSettings(
        contact="benchmarks@example.org",
        allow=(place,),
        interval=0,
        per_host=16,
        threads=16,
        decoders=decoders,
    )
    begun = time.perf_counter()
    pictures = list(download(rows, settings, work))
    seconds = time.perf_counter() - begun
    if len(pictures) != len(names):
        raise ValueError(f"{len(names) - len(pictures)} pictures did not arrive")
    return len(names) / seconds


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--side", type=int, default=1024, help="pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--note", default="", help="what is to be said of the machine")
    args = parser.parse_args()
    found: dict[str, list[tuple[float, float]]] = {}

    def note(what: str, measure: Callable[[], float]) -> None:
        before = cpu()
        rate = measure()
        found.setdefault(what, []).append((rate, 1000 * (cpu() - before) / args.pictures))
        print(what, *(f"{value:.1f}" for value in found[what][-1]), flush=True)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary, "photographs")
        folder.mkdir()
        names = [f"{i}.jpg" for i in range(args.pictures)]
        for i, name in enumerate(names):
            (folder / name).write_bytes(photograph(i, args.side))
        size = statistics.mean((folder / name).stat().st_size for name in names)
        for turn in range(args.rounds):
            with served(folder) as place:
                note("floor: reading alone, one connection", partial(only_read, place, names))
                for count in (1, 2):
                    of = f"{count} process{'es' if count > 1 else ''}"
                    note(
                        f"floor: Pillow alone, {of}", partial(only_transcode, folder, names, count)
                    )
                    work = Path(temporary, f"work {turn} {count}")
                    note(f"download, {of} decoding", partial(downloaded, place, names, work, count))
    table = []
    for what, measured in sorted(found.items()):
        rates, costs = zip(*measured, strict=True)
        row = [what, f"{statistics.median(rates):.1f}", f"{min(rates):.1f} to {max(rates):.1f}"]
        table.append([*row, f"{statistics.median(costs):.1f}"])
    text = [
        "# The rate of the download",
        "",
        f"`python -m benchmarks.collecting.rates`, {datetime.date.today()}, {processor()}. "
        f"{args.pictures} JPEG pictures of {args.side} × {args.side} pixels, {size / 1e3:.0f} kB "
        "on average, from a server on the same machine, which shares its cores; no limits per "
        f"host. Median of {args.rounds} rounds, the start of the processes included. The time of "
        "the processor is the client's alone; other programs do not change it much. "
        f"{args.note}".rstrip(),
        "",
        markdown(["", "pictures/s", "range", "processor ms/picture"], table),
        "",
    ]
    write_text(args.out, "\n".join(text))


if __name__ == "__main__":
    main()
