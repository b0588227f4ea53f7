"""A language model behind an OpenAI-compatible URL, which may propose labels and is never trusted.

It is asked with the standard library alone. Whatever comes back, slow, endless, no JSON or no answer to the question,
ends in an answer of text or one clear error, within the time given. Its labels pass the same test as all others.
"""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from ..errors import InputError, ResourceError

MOST_BYTES = 1 << 20
_PIECE = 1 << 14
_WAIT = 0.5  # seconds before a second try; doubled each time


@dataclass(frozen=True)
class Endpoint:
    """Where to ask: the URL of the API (its part before /chat/completions), the model's name there and a key.

    `timeout` is for a whole answer, in seconds; a failed try is repeated `retries` times. Proxies and redirects are not
    followed, so the key goes nowhere else. Raises InputError for a URL that is none.
    """

    url: str
    model: str = "default"
    key: str = field(default="", repr=False)
    timeout: float = 60.0
    retries: int = 2

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            known = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            known = False
        if not known or parts.username or any(ord(mark) <= 32 for mark in self.url + self.key):
            raise InputError(f"'{self.url}' is no URL of an endpoint; give one such as 'http://localhost:8000/v1'.")
        if not self.timeout > 0 or self.retries < 0:
            raise InputError("The time for an answer must be more than 0 s, and tries cannot be negative.")

    def ask(self, messages: Sequence[dict[str, str]]) -> str:
        """The text of an answer. Raises ResourceError when there is none in time, or what comes is no answer."""
        body = json.dumps({"model": self.model, "messages": list(messages), "temperature": 0}).encode()
        why = ""
        for attempt in range(self.retries + 1):
            if attempt:
                time.sleep(min(_WAIT * 2 ** (attempt - 1), self.timeout))
            try:
                status, answer = self._post(body)
                if status == 200:
                    return _content(answer)
                why = f"it answers with status {status}"
                if status not in (408, 409, 429) and status < 500:
                    break
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = str(error) or type(error).__name__
        raise ResourceError(f"The endpoint '{self.url}' gives no usable answer ({why:.200}); look at its log.")

    def _post(self, body: bytes) -> tuple[int, bytes]:
        parts = urlsplit(self.url)
        kind: type[http.client.HTTPConnection] = http.client.HTTPConnection
        options: dict[str, Any] = {"timeout": self.timeout}
        if parts.scheme == "https":
            kind, options["context"] = http.client.HTTPSConnection, ssl.create_default_context()
        connection = kind(parts.hostname or "", parts.port, **options)
        late = threading.Event()
        clock: threading.Timer | None = None
        try:
            connection.connect()
            clock = threading.Timer(self.timeout, _hang_up, (connection.sock, late))  # a drip outlives a read's timeout
            clock.daemon = True
            clock.start()
            headers = {"Content-Type": "application/json", "Accept": "application/json"}
            headers |= {"Authorization": f"Bearer {self.key}"} if self.key else {}
            connection.request("POST", f"{parts.path.rstrip('/')}/chat/completions", body, headers)
            with connection.getresponse() as response:
                found = bytearray()
                while piece := response.read1(_PIECE):
                    found += piece
                    if len(found) > MOST_BYTES:
                        raise ValueError(f"its answer is longer than {MOST_BYTES:,} bytes")
                if late.is_set():
                    raise TimeoutError(f"no whole answer within {self.timeout:g} s")
                return response.status, bytes(found)
        except (OSError, http.client.HTTPException, ValueError) as error:
            if late.is_set():
                raise TimeoutError(f"no whole answer within {self.timeout:g} s") from error
            raise
        finally:
            if clock is not None:
                clock.cancel()
            connection.close()


def _hang_up(held: socket.socket, late: threading.Event) -> None:
    late.set()
    with suppress(OSError):
        held.shutdown(socket.SHUT_RDWR)


def _content(answer: bytes) -> str:
    """The message in an answer's JSON. Raises ValueError for anything else."""
    try:
        found = json.loads(answer.decode("utf-8"))["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        start = answer[:40].decode("utf-8", "replace")
        raise ValueError(f"it answers with something else than a chat completion: {start!r}") from error
    if not isinstance(found, str) or not found.strip():
        raise ValueError("its message is empty or no text")
    return found


def json_in(text: str, check: Callable[[Any], bool], wanted: str) -> Any:
    """The JSON object in an answer, which may stand in a fence or a sentence. Raises ResourceError for what is none, or
    not the one that was asked for."""
    decoder, start = json.JSONDecoder(), text.find("{")
    while start >= 0:
        try:
            found, _ = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict) and check(found):
            return found
        start = text.find("{", start + 1)
        if start > 20_000:
            break
    raise ResourceError(f"The endpoint was asked for {wanted} and says {text.strip()[:80]!r}; try another model.")
