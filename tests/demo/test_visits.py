"""Several visitors, what they draw and open, and on what they look at it."""

import re
from pathlib import Path

import httpx
import pytest
from PIL import Image

from persongen_jax.demo.offers import offers
from persongen_jax.demo.tabs.form import MOST_IMAGES, MOST_STEPS
from tests.demo.test_folders import write_evaluation, write_run

pytest.importorskip("playwright")

from playwright.sync_api import expect  # noqa: E402

from tests.demo.visitor import PATIENCE, Visitor  # noqa: E402

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(serve):
    return serve(waiting=1)


@pytest.fixture
def come(browser, served):
    """Visitors of the page, each with a window of their own kind."""
    came = []

    def come(**window):
        came.append(Visitor(browser, served[0], **window))
        return came[-1]

    yield come
    for each in came:
        each.leave()


def test_a_second_visitor_waits_and_a_third_is_refused(come, served, strangers):
    first, second, third = visitors = [come() for _ in range(3)]
    for visitor, file in zip(visitors, strangers, strict=False):
        visitor.upload(file)
        visitor.sees_face(1)
    first.page.get_by_text("Settings", exact=True).first.click()
    for name in ("Steps", "Images"):  # as many as possible, during which the others come
        field = first.page.get_by_role("spinbutton", name=re.compile(name)).first
        field.fill(str(MOST_STEPS if name == "Steps" else MOST_IMAGES))
    with served[1].models.computing:  # so that the first waits for the others here
        first.page.click("#generate")
        first.wait("loading")
        second.page.click("#generate")
        second.wait("1 before you")
        third.page.click("#generate")
        expect(third.error).to_contain_text("busy, 1 wait already", timeout=PATIENCE)
        fourth = come()  # opening the page and looking at faces do not wait
        fourth.upload(strangers[3])
        fourth.sees_face(1)
    first.wait(f"of {MOST_STEPS}")  # it was not disturbed
    first.page.click("#cancel")  # ends the own request alone
    first.wait("cancelled")
    second.wait("done")
    third.page.click("#generate")  # there is room again
    third.wait("done")
    assert len(list(served[1].folder.folder.glob("*.png"))) == 2


def test_the_keyboard_is_enough(come, strangers):
    visitor = come()
    page = visitor.page
    visitor.upload(strangers[0])
    visitor.sees_face(1)
    page.locator("#prompt textarea").focus()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "generate":
            break
    else:
        raise AssertionError("the button is not reached by Tab")
    page.keyboard.press("Enter")
    visitor.wait("done")


def test_a_phone_does_not_scroll_sideways(come):
    visitor = come(viewport={"width": 390, "height": 844}, is_mobile=True, has_touch=True)
    for tab in ("Generate", "Two people", "Compare", "Watch a training"):
        if tab != "Generate":
            visitor.tab(tab)
        wide = visitor.page.evaluate("document.documentElement.scrollWidth")
        assert wide <= 390, f"{tab}: {wide} pixels"
        visitor.picture(f"phone-{tab}")


def brightness(visitor):
    return visitor.page.evaluate(
        """() => ['backgroundColor', 'color'].map(which => getComputedStyle(document.body)[which]
            .match(/[0-9.]+/g).slice(0, 3).reduce((sum, each) => sum + Number(each) / 765, 0))"""
    )


def test_light_and_dark(come):
    for scheme in ("light", "dark"):
        visitor = come(color_scheme=scheme)
        ground, ink = brightness(visitor)
        assert (ground > 0.9 and ink < 0.3) if scheme == "light" else (ground < 0.2 and ink > 0.7)
        visitor.picture(scheme)


def test_a_client_cannot_name_files_or_addresses_of_the_server(served, strangers):
    """Gradio's own client would upload the file, so this one asks by itself."""
    address = served[0].rstrip("/")
    endpoint = f"{address}/gradio_api/call/v2/generate"

    def answer(path):
        given = dict.fromkeys(["pose", "photograph_2", "photograph_3", "photograph_4"])
        file = {"path": path, "url": path, "meta": {"_type": "gradio.FileData"}}
        begun = httpx.post(endpoint, json={**given, "prompt": "a man", "photograph_1": file})
        return httpx.get(f"{endpoint}/{begun.json()['event_id']}", timeout=PATIENCE / 1000).text

    secret = strangers[0]  # a good photograph, outside of the folder of uploads
    for path, said in (
        (secret, ""),
        (f"{address}/favicon.ico", "an address is not fetched"),
        ("http://example.com/me.png", "an address is not fetched"),
    ):
        told = answer(path)
        assert "event: error" in told and said in told, told
        assert "event: complete" not in told and "generating" not in told
    with open(secret, "rb") as file:
        sent = httpx.post(f"{address}/gradio_api/upload", files={"files": file})
    told = answer(*sent.json())  # the same, uploaded
    assert "event: complete" in told and "event: error" not in told, told


def test_names_of_uploads_do_not_leave_their_folder(come, served, tmp_path):
    visitor, site = come(), served[1]
    content = b"x" * 100
    for name in ("../../escape.png", "/tmp/escape.png", "..\\escape.png", "a/../../escape.png"):
        sent = {"files": {"name": name, "mimeType": "image/png", "buffer": content}}
        answer = visitor.page.request.post(f"{served[0]}gradio_api/upload", multipart=sent)
        for file in answer.json() if answer.ok else ():
            assert Path(file).resolve().is_relative_to(site.sessions.uploads), name
            Path(file).unlink()
    large = {"files": {"name": "me.png", "mimeType": "image/png", "buffer": b"x" * 6_000_000}}
    answer = visitor.page.request.post(f"{served[0]}gradio_api/upload", multipart=large)
    assert answer.status == 413
    assert not list(site.sessions.uploads.rglob("me.png"))


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """A finished one of two methods, with images of its own colours."""
    folder = tmp_path_factory.mktemp("studies") / "two"
    write_run(folder / "dual" / "seed_0")
    (folder / "comparison.csv").write_text(
        "run,set,face_sim\ndual,in-train,0.25\ncascade,in-train,0.5\n"
    )
    write_evaluation(folder / "dual" / "seed_0", {"in_train": ["blue"]}, size=(64, 64))
    colours = {"in_train": ["lime", "lime"], "out_of_train": ["blue"]}
    write_evaluation(folder / "cascade" / "seed_0", colours, size=(64, 64))
    Image.new("RGB", (80, 60), "red").save(folder / "face_sim.png")
    return folder


def test_a_study_is_opened_and_a_row_shows_its_images(browser, serve, study):
    address, _ = serve(offers(""), roots=[study.parent])
    visitor = Visitor(browser, address)
    page = visitor.page
    visitor.tab("Compare")
    chosen = page.locator("#study input")
    chosen.fill(str(study.parent.parent))
    chosen.press("Enter")
    expect(visitor.error).to_contain_text("outside of the page", timeout=PATIENCE)
    chosen.fill(str(study))
    chosen.press("Enter")
    visitor.picture("study")
    page.get_by_role("gridcell", name="cascade").click()
    images = page.locator("button.thumbnail-item img, .grid-container img")
    expect(images).to_have_count(3, timeout=PATIENCE)  # a plot and the row's two
    page.get_by_role("columnheader", name=re.compile("face_sim")).first.click()  # sorts
    page.get_by_role("gridcell", name="dual").click()
    expect(images).to_have_count(2, timeout=PATIENCE)
    visitor.picture("study")
    visitor.leave()
    assert visitor.outside == []
