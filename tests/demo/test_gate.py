"""Requests that are refused before Gradio sees them: by themselves, and of the served page."""

import httpx
import pytest

from persongen_jax.demo import gate

ADDRESSES = (
    "https://example.com/x",
    "HTTPS://example.com/x",
    "http:/example.com/x",
    "%68ttps://example.com/x",
    "https%3A%2F%2Fexample.com/x",
    "%2568ttp%253A//example.com/x",
    "%20http://example.com/x",
    "ftp://example.com/x",
)


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_recognised(address):
    assert gate.names_address(f"/gradio_api/file={address}")


@pytest.mark.parametrize("path", ["file=/tmp/a:/b.png", "file=C:/a.png", "queue/join", "file=http"])
def test_other_paths_pass(path):
    assert not gate.names_address(f"/gradio_api/{path}")


def scope(path, **headers):
    named = [(name.replace("_", "-").encode(), str(v).encode()) for name, v in headers.items()]
    return {"type": "http", "path": path, "headers": named}


def test_a_large_body_is_refused_unless_it_is_an_upload():
    large = {"content_length": gate.MOST_BYTES + 1}
    for path in ("/gradio_api/component_server", "/gradio_api/call/upload"):
        assert gate.refusal(scope(path, **large))[0] == 413
        assert gate.refusal(scope(path, transfer_encoding="chunked"))[0] == 411
        assert gate.refusal(scope(path, content_length=gate.MOST_BYTES)) is None
    assert gate.refusal(scope("/gradio_api/upload", **large)) is None


@pytest.mark.slow
def test_the_served_page_refuses_them(serve):
    pytest.importorskip("gradio")
    address = serve()[0].rstrip("/")
    for each in ADDRESSES:
        for method in ("GET", "HEAD"):
            answer = httpx.request(method, f"{address}/gradio_api/file={each}")
            assert answer.status_code == 403, each
            assert method == "HEAD" or answer.text == "an address is not fetched"
    assert httpx.get(f"{address}/config").is_success
    body = b"x" * (gate.MOST_BYTES + 1)
    assert httpx.post(f"{address}/gradio_api/component_server", content=body).status_code == 413
