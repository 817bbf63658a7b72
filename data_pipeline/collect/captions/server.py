"""An OpenAI-compatible server, such as vLLM on many GPUs: POST <URL>/chat/completions."""

import base64
import io
import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from data_pipeline.collect.captions.base import View
from data_pipeline.collect.captions.contract import PROMPT, SCHEMA
from data_pipeline.collect.settings import Caption, SettingsError

TRIES = 3  # requests for one answer, where the server is busy or fails
LARGEST = 1 << 20  # bytes of an answer


class ServerError(OSError):
    """The server does not answer as it should; the message names it and the remedy."""


class Server:
    """Asks for one picture per request, all of a batch at once.

    ``url`` is the server's address through ``/v1``. Pictures go to it: use one that you may send
    photographs of people to.

    Raises:
        SettingsError: no address, no model, or an environment variable that is not set.
    """

    prompt = PROMPT

    def __init__(self, url: str, settings: Caption):
        if not url.startswith(("http://", "https://")) or not settings.model:
            raise SettingsError(
                f"caption.captioner=server:{url}: an address such as http://localhost:8000/v1 and "
                "the model's name (caption.model) are needed"
            )
        self._url = url.rstrip("/") + "/chat/completions"
        self._settings, self._key = settings, ""
        if settings.key:
            self._key = os.environ.get(settings.key, "")
            if not self._key:
                raise SettingsError(f"caption.key={settings.key!r}: this variable is not set")
        self.name, self.revision = settings.model, settings.revision

    def ask(self, views: Sequence[View], seed: int) -> list[str]:
        """The answers; seed 0 asks for temperature 0.

        Raises:
            ServerError: it cannot be reached, or answers otherwise than OpenAI's API does.
        """
        with ThreadPoolExecutor(max(1, len(views))) as pool:
            return list(pool.map(lambda view: self._ask(view, seed), views))

    def _ask(self, view: View, seed: int) -> str:
        content = [
            {"type": "image_url", "image_url": {"url": data_url(view.image)}},
            {"type": "text", "text": PROMPT},
        ]
        form = {"name": "caption", "schema": SCHEMA, "strict": True}
        body = {
            "model": self._settings.model,
            "messages": [{"role": "user", "content": content}],
            "max_tokens": self._settings.max_new_tokens,
            "temperature": 0.7 if seed else 0.0,
            "seed": seed,
            "response_format": {"type": "json_schema", "json_schema": form},
        }
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(self._url, json.dumps(body).encode(), headers)
        answer = self._fetch(request)
        try:
            return json.loads(answer)["choices"][0]["message"]["content"] or ""
        except (ValueError, LookupError, TypeError) as error:
            raise ServerError(
                f"{self._url}: its answer is not that of a chat completion ({error!r})"
            ) from error

    def _fetch(self, request: urllib.request.Request) -> bytes:
        why = ""
        for number in range(TRIES):
            time.sleep(number)  # a busy server needs a moment
            try:
                with urllib.request.urlopen(request, timeout=self._settings.timeout) as answer:
                    return answer.read(LARGEST)
            except urllib.error.HTTPError as error:
                why = f"HTTP {error.code} {error.reason}"
                if error.code not in (408, 429) and error.code < 500:
                    break
            except OSError as error:
                why = str(error)
        raise ServerError(f"{self._url}: {why}; start the server, or choose another captioner")


def data_url(image: np.ndarray) -> str:
    """uint8 RGB [h, w, 3] as a data: address of a JPEG."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=95)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
