"""The contract of captions: what is refused, what is asked again, what stands in."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest

from data_pipeline.collect.captions.base import View
from data_pipeline.collect.captions.contract import Unusable, covered, mark, read_answer
from data_pipeline.collect.captions.opening import open_captioner
from data_pipeline.collect.captions.server import ServerError
from data_pipeline.collect.captions.write import write_captions
from data_pipeline.collect.settings import Caption, SettingsError
from data_pipeline.prompts import split_at_trigger

GOOD = {
    "class_word": "woman",
    "caption": "A smiling woman in a red coat holds a cup on a beach; a boat is on the far right.",
    "general": "a smiling woman",
    "background": "a beach, a boat on the far right",
    "body": "in a red coat, holds a cup",
}


def view(key="k", identity="Maria Example", **changes):
    image = np.full((32, 32, 3), 120, np.uint8)
    return View(key, image, identity, **({"face_share": 0.3, "colour": 40.0} | changes))


def answer(**changes):
    return json.dumps(GOOD | changes)


def test_a_good_answer_also_with_words_around_it():
    for text in (answer(), f"Here it is:\n```json\n{answer()}\n```"):
        found = read_answer(text, view(), "img", 0.8)
        assert (found.class_word, found.body, found.coverage) == ("woman", GOOD["body"], 1.0)
    assert read_answer(answer(class_word="Women"), view(), "img", 0.8).class_word == "woman"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("I cannot do that.", "no JSON object"),
        ('{"class_word": "man"', "no JSON object|not JSON"),
        ("{'class_word': 'man'}", "not JSON"),
        (json.dumps({**GOOD, "body": None}), "without the text body"),
        (answer(caption=""), "empty caption"),
        (answer(class_word="astronaut"), "none of"),
        (answer(class_word="man"), "occurs 0 times"),
        (answer(caption="A woman and a woman in a red coat on a beach"), "occurs 2 times"),
        (answer(caption="A woman's red coat"), "occurs 0 times"),
        (answer(general="Maria smiles, a woman"), "name occurs"),
        (answer(body="an img of a coat"), "trigger word"),
        (answer(body=""), r"the parts hold 0.\d+ of"),
    ],
)
def test_what_is_refused(text, why):
    with pytest.raises(Unusable, match=why):
        read_answer(text, view(), "img", 0.8)


def test_coverage_counts_content_words_once_and_plurals_as_one():
    assert covered("a man with two dogs and a dog", ["man", "two dog"]) == 1
    assert covered("a red hat and a blue scarf", ["red hat", "", "scarf"]) == 0.75
    assert covered("of the", []) == 1


def test_the_trigger_follows_the_class_word():
    marked = mark(GOOD["caption"], "woman", "img")
    assert split_at_trigger(marked, "img")[0] == "A smiling woman"


class Scripted:
    """A captioner whose answers are given; it notes what it was asked."""

    name, revision, prompt = "scripted", "7", "Say it."

    def __init__(self, *rounds):
        self.rounds, self.asked = rounds, []

    def ask(self, views, seed):
        self.asked.append(([v.key for v in views], seed))
        return [self.rounds[seed] for _ in views]


def test_a_bad_answer_is_asked_again_alone_with_other_seeds():
    captioner = Scripted("no", answer(body=""), answer())
    (one, other) = write_captions([view("a"), view("b")], captioner, Caption())
    assert captioner.asked == [(["a", "b"], 0), (["a"], 1), (["a"], 2), (["b"], 1), (["b"], 2)]
    assert one == other and (one.tries, one.captioner, one.fallback) == (3, "scripted", "")
    assert len(one.prompt) == 12 and one.revision == "7"


def test_after_three_retries_the_template_stands_in_and_says_why():
    captioner = Scripted(*["no"] * 4)
    (found,) = write_captions([view(face_share=0.5)], captioner, Caption())
    assert len(captioner.asked) == 4 and found.tries == 4
    assert found.caption == "a close-up photo of a person" and found.captioner == "template"
    assert found.fallback == "scripted: no JSON object"


def test_the_template_says_what_was_measured():
    (grey,) = write_captions([view(colour=0.0, face_share=0.1, class_word="man")], None, Caption())
    assert grey.caption == "a black and white full-body photo of a man"
    assert (grey.captioner, grey.background, grey.body, grey.prompt) == ("template", "", "", "")


@pytest.fixture
def server():
    """A server of chat completions on this machine; what it was sent, and what it answers next."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            state.sent.append((self.path, self.headers.get("Authorization"), body))
            status, text = state.answers.pop(0) if state.answers else (200, answer())
            self.send_response(status)
            self.end_headers()
            message = {"choices": [{"message": {"content": text}}]}
            self.wfile.write(json.dumps(message).encode() if status == 200 else b"")

        def log_message(self, *_):
            pass

    state = HTTPServer(("127.0.0.1", 0), Handler)
    state.sent, state.answers = [], []
    thread = threading.Thread(target=state.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield state
    state.shutdown()
    thread.join()
    state.server_close()


def settings_of(server, **changes):
    url = f"http://127.0.0.1:{server.server_port}/v1"
    return Caption(captioner=f"server:{url}", model="qwen2.5-vl", timeout=5, **changes)


def test_a_server_gets_picture_prompt_and_schema(server, monkeypatch):
    monkeypatch.setenv("CAPTION_KEY", "secret")
    settings = settings_of(server, key="CAPTION_KEY", revision="a1")
    server.answers[:] = [(503, "")]  # it is asked again
    found = write_captions([view()], open_captioner(settings), settings)
    assert (found[0].captioner, found[0].revision, found[0].tries) == ("qwen2.5-vl", "a1", 1)
    assert len(server.sent) == 2
    path, key, body = server.sent[1]
    assert path == "/v1/chat/completions" and key == "Bearer secret"
    assert body["temperature"] == 0 and body["seed"] == 0
    assert body["response_format"]["json_schema"]["schema"]["required"][0] == "class_word"
    (picture, text) = body["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/jpeg;base64,")
    assert "never name anybody" in text["text"]


def test_a_server_that_refuses_is_named(server):
    settings = settings_of(server)
    server.answers[:] = [(404, "")]
    with pytest.raises(ServerError, match="HTTP 404"):
        open_captioner(settings).ask([view()], 0)


def test_a_folder_of_another_model(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    with pytest.raises(SettingsError, match="llava, not qwen2_5_vl"):
        open_captioner(Caption(captioner=f"qwen:{tmp_path}"))


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        (Caption(captioner="gpt"), "give template"),
        (Caption(captioner="server:localhost", model="m"), "an address such as"),
        (Caption(captioner="server:http://localhost", model="m", key="NO_SUCH"), "is not set"),
        (Caption(captioner="qwen:nowhere"), "no config.json"),
        (Caption(captioner="data_pipeline.collect.captions.base:digest"), "has no name"),
    ],
)
def test_a_captioner_that_cannot_be_opened(settings, why):
    with pytest.raises(SettingsError, match=why):
        open_captioner(settings)
