"""The page on the miniature, served in this process, and a headless browser that visits it."""

import shutil

import pytest

from persongen_jax.demo.judging import Judges
from persongen_jax.demo.offers import Models, miniature
from persongen_jax.demo.strangers import draw_strangers
from persongen_jax.pipeline.saving import ImageFolder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
HOW = "no browser: install the distribution's chromium (apt-get install chromium)"
STEPS = 4


@pytest.fixture(scope="session")
def browser():
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(HOW)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="module")
def strangers(tmp_path_factory):
    return draw_strangers(tmp_path_factory.mktemp("strangers"))


@pytest.fixture(scope="module")
def serve(tmp_path_factory):
    """Serves a page: (offers, further options of ``launch``) to (its address, its site)."""
    from persongen_jax.demo import page
    from persongen_jax.demo.sessions import Sessions
    from persongen_jax.demo.site import Site

    opened = []
    uploads = tmp_path_factory.mktemp("uploads")  # one of the whole process

    def serve(found=None, roots=(), waiting=8, **options):
        folder = tmp_path_factory.mktemp("demo")
        examples = draw_strangers(uploads / "strangers")
        site = Site(
            Models(found or miniature()),
            Judges.of_miniature(),
            ImageFolder(folder / "images"),
            Sessions(uploads, examples),
            tuple(root.resolve() for root in roots),
            examples=tuple(examples),
            steps=STEPS,
            waiting=waiting,
        )
        made = page.build(site)
        opened.append(made)
        usual = {"host": "127.0.0.1", "port": None, "largest": "5mb"}
        return page.launch(made, **{**usual, **options}), site

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
        patch.setenv("GRADIO_TEMP_DIR", str(uploads))
        yield serve
        for made in opened:
            made.close()
