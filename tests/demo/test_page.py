"""The page in a real browser: what visitors do, and what they should not."""

import re
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.demo.conftest import STEPS

pytest.importorskip("playwright")

from playwright.sync_api import expect  # noqa: E402

from tests.demo.visitor import PATIENCE, Visitor  # noqa: E402


@pytest.fixture(scope="module")
def served(serve):
    return serve()


@pytest.fixture
def visitor(browser, served):
    visitor = Visitor(browser, served[0])
    yield visitor
    visitor.leave()


def images_of(site):
    return sorted(site.folder.folder.glob("*.png"))


def test_a_photograph_and_a_prompt_become_an_image(visitor, served, strangers, tmp_path):
    """Also: a bad upload, a prompt that is too long, one with HTML, nothing asked elsewhere."""
    page, site = visitor.page, served[1]
    broken = tmp_path / "<b>me.png"
    with zipfile.ZipFile(broken, "w") as file:
        file.writestr("../../etc/passwd", "x")
    visitor.upload(str(broken))
    expect(visitor.error).to_contain_text("Photograph 1", timeout=PATIENCE)
    page.reload()
    expect(page.get_by_text("It reads").first).to_be_visible(timeout=PATIENCE)

    visitor.upload(strangers[0])
    visitor.sees_face(1)
    prompt = page.locator("#prompt textarea")
    prompt.fill("a photo of a <svg onload=alert(1)> man" + " in a red hat" * 40)
    page.click("#generate")
    visitor.wait("this part is cut")
    prompt.fill("a photo of a man in a space suit")
    page.click("#generate")
    visitor.wait("done")
    visitor.picture("generated")
    expect(page.get_by_text(re.compile("Face-Sim .* CLIP-T .* seed 42"))).to_be_visible()
    first, second = images_of(site)
    with Image.open(second) as image:
        assert image.size == (64, 64) and np.asarray(image).std() > 10
        assert image.text["prompt"] == "a photo of a man img in a space suit"
    assert page.locator("svg[onload]").count() == 0
    assert visitor.outside == []
    assert list(site.sessions.uploads.rglob("*stranger*"))


@pytest.mark.slow
def test_a_request_can_be_ended_half_way(visitor, served, strangers):
    page, before = visitor.page, len(images_of(served[1]))
    visitor.upload(strangers[0])
    page.get_by_text("Settings", exact=True).first.click()
    page.get_by_role("spinbutton", name=re.compile("Steps")).first.fill("100")
    page.click("#generate")
    visitor.wait("of 100")
    page.click("#cancel")
    visitor.wait("cancelled")
    assert len(images_of(served[1])) == before
    page.get_by_role("spinbutton", name=re.compile("Steps")).first.fill(str(STEPS))
    page.click("#generate")
    visitor.wait("done")
    assert len(images_of(served[1])) == before + 1


@pytest.mark.slow
def test_uploads_are_deleted_when_the_page_is_closed(browser, served, strangers):
    visitor = Visitor(browser, served[0])
    visitor.upload(strangers[1])
    visitor.sees_face(1)
    uploads = served[1].sessions.uploads
    assert list(uploads.rglob("stranger-2.png"))
    visitor.leave()
    deadline = time.time() + 30
    while list(uploads.rglob("stranger-2.png")) and time.time() < deadline:
        time.sleep(0.2)
    assert not list(uploads.rglob("stranger-2.png"))
