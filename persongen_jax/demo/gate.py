"""What is refused before Gradio reads the request."""

import re
from typing import Any
from urllib.parse import unquote

# Of everything but an upload, which has a limit of its own; Gradio reads these into memory whole.
MOST_BYTES = 4_000_000
UPLOADS = ("/gradio_api/upload", "/gradio_api/upload/")
ADDRESS = re.compile(r".*?/file[=/]\s*[a-z][a-z0-9+.-]+:/", re.IGNORECASE | re.DOTALL)


class Gate:
    """ASGI middleware: 403 for a file that is an address, 411 or 413 for a body too large.

    Gradio itself would fetch the address for whoever asks.
    """

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        answer = refusal(scope) if scope["type"] == "http" else None
        if answer is None:
            await self.app(scope, receive, send)
            return
        status, text = answer
        headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": text.encode()})


def refusal(scope: dict[str, Any]) -> tuple[int, str] | None:
    """(status, why) for the ASGI scope of a request that is refused."""
    if names_address(scope["path"]):
        return 403, "an address is not fetched"
    if scope["path"] in UPLOADS:
        return None
    headers = dict(scope["headers"])
    if b"transfer-encoding" in headers:
        return 411, "say how long the request is"
    if int(headers.get(b"content-length", 0)) > MOST_BYTES:
        return 413, f"more than {MOST_BYTES} bytes"
    return None


def names_address(path: str) -> bool:
    """Whether it asks for a file that is an address, however often it is percent-encoded."""
    while (plain := unquote(path)) != path:
        path = plain
    return ADDRESS.match(path) is not None
