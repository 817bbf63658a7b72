"""The page in a real browser: what visitors do, and what they should not."""

import re
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from persongen_jax.demo.offers import offers
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
    for file in (first, "/etc/passwd", site.sessions.uploads):
        assert page.request.get(f"{served[0]}gradio_api/file={file}").status in (403, 404)
    assert list(site.sessions.uploads.rglob("*stranger*"))


@pytest.mark.slow
def test_a_request_can_be_ended_half_way(visitor, served, strangers):
    page, before = visitor.page, len(images_of(served[1]))
    visitor.upload(strangers[0])
    page.get_by_text("Settings", exact=True).first.click()
    for name, number in (("Steps", "100"), ("Images", "4")):
        page.get_by_role("spinbutton", name=re.compile(name)).first.fill(number)
    page.click("#generate")
    visitor.wait("of 100")
    page.click("#cancel")
    visitor.wait("cancelled")
    assert len(images_of(served[1])) == before
    for name, number in (("Steps", str(STEPS)), ("Images", "1")):
        page.get_by_role("spinbutton", name=re.compile(name)).first.fill(number)
    page.click("#generate")
    visitor.wait("done")
    assert len(images_of(served[1])) == before + 1


@pytest.mark.slow
def test_nothing_of_a_visitor_stays(browser, served, strangers):
    """Uploads of every tab, the faces found in them, previews, and copies of what was made."""
    uploads = served[1].sessions.uploads

    def files():
        return {file for file in uploads.rglob("*") if file.is_file()}

    before, visitor = files(), Visitor(browser, served[0])
    visitor.upload(strangers[1])
    visitor.sees_face(1)
    visitor.page.click("#generate")
    visitor.wait("done")
    visitor.tab("Compare")
    visitor.upload(strangers[2])
    visitor.page.wait_for_timeout(3000)
    assert len(files() - before) >= 7  # two uploads, two faces, previews, an image
    visitor.leave()
    deadline = time.time() + 30
    while files() - before and time.time() < deadline:
        time.sleep(0.2)
    assert not files() - before


@pytest.mark.slow
def test_a_drawn_stranger_and_the_same_again(visitor, served):
    page, before = visitor.page, len(images_of(served[1]))
    page.locator(".gallery-item").first.click()  # of the drawn strangers
    visitor.sees_face(1)
    page.get_by_text("Settings", exact=True).first.click()
    steps = page.get_by_role("spinbutton", name=re.compile("Steps")).first
    steps.fill("3")
    page.get_by_label("Negative prompt").first.fill("hats")
    page.click("#generate")
    visitor.wait("done")
    steps.fill("5")
    page.get_by_label("Negative prompt").first.fill("")
    page.click("#again")
    deadline = time.time() + 60
    while len(images_of(served[1])) < before + 2 and time.time() < deadline:
        page.wait_for_timeout(200)
    visitor.wait("done")
    *_, first, second = images_of(served[1])
    with Image.open(first) as one, Image.open(second) as other:
        assert one.text["settings"] == other.text["settings"]
        assert one.text["negative_prompt"] == other.text["negative_prompt"] == "hats"
        assert np.array_equal(np.asarray(one), np.asarray(other))


@pytest.fixture(scope="module")
def branch_run(tmp_path_factory):
    """A training of two steps, of a method that reads people by a branch."""
    from configs.mini.id_branch import get_config
    from persongen_jax.train import train

    config = get_config()
    config.data = "people:in_train?identities=8&pictures=4&framing=portrait"
    config.steps = config.checkpoint_every = 2
    config.batch_size, config.validation_every, config.cpu_devices = 4, 0, 1
    folder = tmp_path_factory.mktemp("runs") / "branch"
    assert train(config, folder)
    return folder


@pytest.fixture(scope="module")
def with_run(serve, branch_run):
    return serve(offers("", runs=[str(branch_run)]), roots=[branch_run.parent], waiting=1)


@pytest.mark.slow
def test_two_people_are_where_somebody_says(browser, with_run, strangers):
    address, site = with_run
    visitor = Visitor(browser, address)
    page = visitor.page
    visitor.tab("Two people")
    page.click("#both")
    expect(visitor.error).to_contain_text("person 1 has no photograph", timeout=PATIENCE)
    visitor.upload(strangers[0], 0)
    visitor.upload(strangers[1], 1)  # where the first was, a photograph is shown now
    page.wait_for_timeout(1000)
    page.get_by_label("Person 1 in the left half").check()
    before = len(images_of(site))
    page.click("#both")
    visitor.wait("done")
    assert len(images_of(site)) == before + 1
    visitor.picture("two-people")
    visitor.leave()


def paint(visitor, colour, side):
    """A stroke from top to bottom in the left or right half of the canvas."""
    canvas = visitor.page.locator("#canvas")
    canvas.scroll_into_view_if_needed()
    canvas.get_by_label("Color").click()
    canvas.locator(f'button.color[style*="rgb{colour}"]').click()
    canvas.get_by_label("Brush", exact=True).click()
    box = canvas.locator("canvas").first.bounding_box()
    x, y = box["x"] + box["width"] / 2 + 70 * side, box["y"] + box["height"] / 2
    mouse = visitor.page.mouse
    mouse.move(x, y - 90)
    mouse.down()
    mouse.move(x, y + 90, steps=12)
    mouse.up()


@pytest.mark.slow
def test_two_people_are_where_they_are_painted(browser, with_run, strangers, monkeypatch):
    address, site = with_run
    asked, paint_them = [], site.paint

    def watched(name, request, **told):
        asked.append(request)
        return paint_them(name, request, **told)

    monkeypatch.setattr(site, "paint", watched)
    visitor = Visitor(browser, address)
    visitor.tab("Two people")
    visitor.upload(strangers[0], 0)
    visitor.upload(strangers[1], 1)
    visitor.page.wait_for_timeout(1000)
    paint(visitor, (214, 39, 40), -1)
    visitor.page.click("#both")
    expect(visitor.error).to_contain_text("draw where person 2 may be", timeout=PATIENCE)
    paint(visitor, (31, 119, 180), 1)
    visitor.picture("painted")
    visitor.page.click("#both")
    visitor.wait("done")
    first, second = asked[0].regions
    assert not (first & second).any() and len(asked) == 1
    for mask, half in ((first, np.s_[:, :256]), (second, np.s_[:, 256:])):
        assert mask.sum() == mask[half].sum() > 5000
    visitor.leave()


@pytest.mark.slow
def test_models_are_compared_and_a_training_is_watched(browser, with_run, branch_run, strangers):
    visitor = Visitor(browser, with_run[0])
    page = visitor.page
    visitor.tab("Compare")
    page.get_by_role("tabpanel").get_by_role("button", name="Cancel").click()
    visitor.wait("cancelled: what was")
    visitor.upload(strangers[0])
    page.click("#compare")
    expect(page.get_by_text("base alone ·")).to_be_visible(timeout=PATIENCE)
    visitor.picture("compared")
    visitor.tab("Watch a training")
    run = page.locator("#run input")
    run.fill("/etc")
    run.press("Enter")
    expect(visitor.error).to_contain_text("outside of the page", timeout=PATIENCE)
    run.fill(str(branch_run))
    run.press("Enter")
    expect(page.get_by_text("step 2", exact=True)).to_be_visible(timeout=PATIENCE)
    visitor.picture("watched")
    visitor.leave()


@pytest.mark.slow
def test_a_client_generates_without_the_page(served, strangers):
    from gradio_client import Client, handle_file

    page = Client(served[0], verbose=False)
    photographs = {f"photograph_{n}": None for n in (2, 3, 4)}
    *_, files, notes = page.predict(
        prompt="a man in a space suit",
        photograph_1=handle_file(strangers[0]),
        pose=None,
        **photographs,
        api_name="/generate",
    )
    assert len(files) == 1 and notes[0]["prompt"] == "a man img in a space suit"
    public = page.view_api(return_format="dict")["named_endpoints"]
    assert list(public) == ["/generate"]
