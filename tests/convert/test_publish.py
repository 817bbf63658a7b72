"""What is published: the card, no path, no picture; and the upload to a stand-in of a Hub."""

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import yaml
from PIL import Image

from persongen_jax.convert import __main__ as convert
from persongen_jax.convert.model_card import Facts, make_card, paths_in, public_config
from persongen_jax.convert.publishing import (
    FILES,
    PublishError,
    check_private,
    check_repo,
    read_token,
    upload,
)
from tests.convert.runs import fails

TOKEN = "hf_secret"


class Hub:
    """The four endpoints that an upload uses, on 127.0.0.1; ``status`` answers creations."""

    def __init__(self, status=200):
        self.status, self.asked, self.files, self.created = status, [], {}, None
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def log_message(self, *_):
                pass

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                allowed = self.headers["Authorization"] == f"Bearer {TOKEN}"
                status, answer = hub.answer(self.path, body) if allowed else (401, {})
                raw = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(raw)))
                self.send_header("Content-Type", "application/json")
                self.end_headers()
                self.wfile.write(raw)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, path, body):
        self.asked.append(path)
        if path == "/api/repos/create":
            self.created = json.loads(body)
            return self.status, {"url": f"{self.url}/me/adapter"}
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if path == "/api/models/me/adapter/preupload/main":
            files = [{"path": f["path"]} for f in json.loads(body)["files"]]
            return 200, {
                "files": [{**f, "uploadMode": "regular", "shouldIgnore": False} for f in files]
            }
        assert path == "/api/models/me/adapter/commit/main", path
        for line in map(json.loads, body.decode().splitlines()):
            if line["key"] == "file":
                value = line["value"]
                self.files[value["path"]] = base64.b64decode(value["content"])
        return 200, {
            "commitUrl": f"{self.url}/me/adapter/commit/1",
            "commitOid": "1" * 40,
            "success": True,
        }

    def __enter__(self):
        serve = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        serve.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "out"
    (folder / "controlnet").mkdir(parents=True)
    (folder / "README.md").write_text("---\nlicense: openrail++\n---\n# adapter\n")
    (folder / "controlnet" / "weights.safetensors").write_bytes(bytes(range(256)))
    return folder


@pytest.mark.parametrize("public", [False, True])
def test_files_arrive_in_a_new_repository_that_is_private_unless_asked(
    public, folder, monkeypatch, capsys
):
    with Hub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        address = upload(folder, "me/adapter", TOKEN, public=public)
    assert address.endswith("/me/adapter")
    assert hub.created["name"] == "adapter" and hub.created["organization"] == "me"
    private = hub.created.get("visibility") == "private" or hub.created.get("private") is True
    assert private is not public
    assert hub.files == {
        "README.md": (folder / "README.md").read_bytes(),
        "controlnet/weights.safetensors": bytes(range(256)),
    }
    assert TOKEN not in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not accept the token"),
        (403, "may not write to me/adapter"),
        (409, "me/adapter exists already .* give another --repo"),
    ],
)
def test_what_a_hub_refuses_is_one_sentence(status, said, folder, monkeypatch):
    with Hub(status) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        with pytest.raises(PublishError, match=said) as caught:
            upload(folder, "me/adapter", TOKEN)
    assert hub.asked == ["/api/repos/create"] and not hub.files
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value)


def test_no_network_is_one_sentence(folder, monkeypatch):
    with Hub() as hub:
        pass
    monkeypatch.setenv("HF_ENDPOINT", hub.url)
    with pytest.raises(PublishError, match="cannot be reached: check the network"):
        upload(folder, "me/adapter", TOKEN)


CONFIG = {
    "method": "photomaker",
    "base": "/home/ann/models/sdxl-base",
    "data": "ann_photos",
    "validate_in_train": "/home/ann/photos",
    "clip": "~/clip",
    "trainable": [["unet/.*/lora/up", "lora"]],
    "losses": {"keypoints": {"net": "C:\\nets\\x.json", "weight": 0.1}},
    "rank": 4,
    "trigger_word": "img",
}


def test_the_config_loses_every_path():
    shown = public_config(CONFIG)
    assert shown == {
        **CONFIG,
        "base": "sdxl-base",
        "data": "",
        "validate_in_train": "",
        "clip": "",
        "losses": {"keypoints": {"net": "", "weight": 0.1}},
    }
    assert paths_in(CONFIG) == {"/home/ann/models/sdxl-base", "/home/ann/photos", "~/clip"}


@pytest.mark.parametrize("file_format", FILES)
def test_the_card_has_front_matter_figures_and_how_to_use_it(file_format):
    card = make_card(
        Facts(
            repo="me/adapter",
            file_format=file_format,
            weights=FILES[file_format],
            licence="openrail++",
            base_model="stabilityai/stable-diffusion-xl-base-1.0",
            prompt="a man img",
            terms={"base": "openrail++"},
            step=1000,
            config=public_config(CONFIG),
            losses={"step": 1000, "loss": 0.125},
            validation=[{"step": 1000, "set": "in_train", "clip_t": 0.25}],
        )
    )
    front = yaml.safe_load(card.split("---\n")[1])
    assert front["license"] == "openrail++" and front["instance_prompt"] == "a man img"
    assert front["base_model"] == "stabilityai/stable-diffusion-xl-base-1.0"
    assert {"persongen_jax", "stable-diffusion-xl"} < set(front["tags"])
    for text in ("Loss at step 1000: 0.125", "0.25", f" {FILES[file_format]}", "1,000 steps"):
        assert text in card
    assert "/home" not in card


def test_pictures_and_paths_are_found_before_anything_is_uploaded(folder):
    check_private(folder, {"/data/ann"})
    (folder / "training_config.json").write_text('{"data": "/data/ann/photos"}')
    with pytest.raises(PublishError, match="training_config.json: names the path /data/ann"):
        check_private(folder, {"/data/ann"})
    Image.new("RGB", (2, 2)).save(folder / "sheet.png")
    with pytest.raises(PublishError, match=r"sheet.png: is a picture, and none was asked for"):
        check_private(folder, ())
    check_private(folder, (), ["sheet.png"])


def test_tokens_and_names(tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(PublishError, match="HF_TOKEN is not set; set HF_TOKEN or give --token-f"):
        read_token(None)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    assert read_token(tmp_path / "token") == TOKEN
    for wrong in ("adapter", "me/a/b", "me/../x", "/me"):
        with pytest.raises(PublishError, match="write it as user/name"):
            check_repo(wrong)


@pytest.mark.slow
def test_a_run_from_the_command_to_the_hub(workdir, tmp_path, monkeypatch, capsys):
    options = ["publish", workdir, "--repo", "me/adapter"]
    assert "give --license, one of the Hub's" in fails(*options, "--dry_run")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    options += ["--license", "openrail++", "--format", "diffusers-lora"]
    assert "has no validation sheet of step 20" in fails(*options, "--images")
    sheet = workdir / "validation" / "step_000020_in_train.png"
    sheet.parent.mkdir(exist_ok=True)
    Image.new("RGB", (2, 2)).save(sheet)
    names = {"README.md", "pytorch_lora_weights.safetensors", "training_config.json"}
    try:
        convert.main([*map(str, options), "--dry_run"])
        said = capsys.readouterr().out
        assert "would be published as me/adapter, private" in said and "license: openrail++" in said
        for more in ([], ["--images"]):
            with Hub() as hub:
                monkeypatch.setenv("HF_ENDPOINT", hub.url)
                convert.main([*map(str, options), *more])
            assert set(hub.files) == names | ({sheet.name} if more else set())
            assert not any(str(workdir).encode() in content for content in hub.files.values())
            assert TOKEN not in "".join(capsys.readouterr())
    finally:
        sheet.unlink()
