"""What the page in the browser costs, on the miniature and nothing beside it.

    python -m benchmarks.demo --out benchmarks/results/demo.md

starts `python -m persongen_jax.demo` with nothing compiled before, and visits it with a headless
browser: until the page is open, until the first image, until the next one; the time of sampling
with previews as a multiple of that without, measured in turns; and the server's memory over fifty
requests.
"""

import argparse
import datetime
import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np

from benchmarks.machine import processor
from data_pipeline.cli import command
from data_pipeline.files import write_text
from persongen_jax.demo.judging import Judges
from persongen_jax.demo.offers import Models, miniature
from persongen_jax.demo.painting import Person, Request, paint
from persongen_jax.demo.photographs import read_photograph
from persongen_jax.demo.strangers import draw_strangers
from persongen_jax.tables import markdown

PORT, STEPS, REQUESTS, ROUNDS = 7899, 30, 50, 15
ADDRESS = f"http://127.0.0.1:{PORT}/"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 180_000  # milliseconds


def memory(process: int) -> int:
    """Resident bytes."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def answers() -> bool:
    try:
        return urllib.request.urlopen(ADDRESS, timeout=1).status == 200
    except OSError:
        return False


def of_visits(work: Path) -> dict[str, float]:
    """Seconds and bytes of a server that is started anew."""
    from playwright.sync_api import sync_playwright

    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise ValueError("no browser: install the distribution's chromium")
    reference = draw_strangers(work / "strangers")[0]
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(work / "compiled")}
    words = [sys.executable, "-m", "persongen_jax.demo", "--port", str(PORT)]
    words += ["--out", str(work / "images"), "--steps", str(STEPS)]
    found = {}
    start = time.perf_counter()
    with subprocess.Popen(words, env=environment) as server, sync_playwright() as playwright:
        try:
            while not answers():
                time.sleep(0.05)
                if server.poll() is not None:
                    raise ValueError("the page did not start")
            found["until the page answers, with the import"] = time.perf_counter() - start
            browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
            page = browser.new_page()
            page.set_default_timeout(PATIENCE)
            begun = time.perf_counter()
            page.goto(ADDRESS)
            page.wait_for_selector("#generate")
            found["until the page is open"] = time.perf_counter() - begun
            page.locator('input[type="file"]:not([disabled])').first.set_input_files(reference)
            page.get_by_text("photograph 1", exact=True).first.wait_for()
            said = page.locator(".said:visible").first

            def request() -> float:
                begun = time.perf_counter()
                page.click("#generate")
                said.filter(has_text="loading").wait_for()
                said.filter(has_text="done").wait_for()
                return time.perf_counter() - begun

            found["until the first image, nothing compiled"] = request()
            found["until the next image"] = request()
            for _ in range(8):  # allocators settle
                request()
            before = memory(server.pid)
            seconds = [request() for _ in range(REQUESTS)]
            found["median of fifty more"] = float(np.median(seconds))
            found["MiB more after fifty"] = (memory(server.pid) - before) / 2**20
            browser.close()
        finally:
            server.terminate()
    return found


def of_previews(work: Path) -> np.ndarray:
    """Time of a request with previews as a multiple of that without, by round."""
    models = Models(miniature())
    offer = next(iter(models.offers.values()))
    person = Person((read_photograph(draw_strangers(work / "strangers")[0]),), (0,))
    asked = Request("a photo of a man", people=(person,), steps=STEPS)

    def seconds(on_preview):
        begun = time.perf_counter()
        paint(
            models,
            offer,
            asked,
            judges=Judges(),
            progress=lambda steps: None,
            on_preview=on_preview,
        )
        return time.perf_counter() - begun

    for given in (None, id):
        seconds(given)
    return np.array([seconds(id) / seconds(None) for _ in range(ROUNDS)])


@command
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.demo", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="a Markdown file for the table")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        rows = [[name, f"{value:.1f}"] for name, value in of_visits(Path(folder)).items()]
        ratios = of_previews(Path(folder))
    middle = f"{np.median(ratios):.3f} ({ratios.min():.3f} to {ratios.max():.3f})"
    rows.append(["a request with previews, as a multiple", middle])
    text = (
        "# The page in the browser\n\n"
        f"`python -m benchmarks.demo`, {datetime.date.today()}, {processor()}, jax "
        f"{jax.__version__}: the miniature with its adapter, {STEPS} steps; seconds, MiB, and the "
        f"median of {ROUNDS} rounds in turns.\n\n" + markdown(["", ""], rows) + "\n"
    )
    print(text)
    if args.out:
        write_text(args.out, text)


if __name__ == "__main__":
    main()
