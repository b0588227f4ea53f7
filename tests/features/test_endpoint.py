"""Endpoints that are slow, rude or lie, on this machine: a clear error within the time given, or a tested label."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from looked import WIDTH, directions, talk

from cutaway.errors import InputError, ResourceError
from cutaway.features.endpoint import MOST_BYTES, Endpoint, json_in
from cutaway.features.index import LatentIndex, build_index
from cutaway.features.proposals import plainly, propose
from cutaway.features.seen import watch

Answer = Callable[[BaseHTTPRequestHandler, dict[str, Any]], None]


def says(text: str, status: int = 200) -> Answer:
    """A chat completion with this content."""

    def answer(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        body = json.dumps({"choices": [{"message": {"content": text}}]}).encode()
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def raw(body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Any bytes."""

    def answer(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        handler.send_response(status)
        for name, value in (headers or {"Content-Length": str(len(body))}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def drips(pause: float, header: bool) -> Answer:
    """A byte now and then, without end: in the header or in the body."""

    def answer(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n" + (b"" if header else b"\r\n"))
        for _ in range(200):
            handler.wfile.write(b"X: y\r\n" if header else b"{")
            handler.wfile.flush()
            time.sleep(pause)

    return answer


def floods(handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
    """More than anybody wants to read."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    for _ in range(MOST_BYTES // 4096 + 100):
        handler.wfile.write(b"x" * 4096)


class Served:
    """A server that gives its answers in turn, the last one for good; what it was asked is in `asked`."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                owner.asked.append({"path": self.path, **asked})
                owner.keys.append(self.headers["Authorization"])
                answer = owner.answers.pop(0) if len(owner.answers) > 1 else owner.answers[0]
                try:
                    answer(self, asked)
                except OSError:
                    self.close_connection = True  # the other side hung up, as it should

            def log_message(self, *given: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def at(self, *answers: Answer, **options: Any) -> Endpoint:
        """The endpoint, with these answers to come."""
        self.answers = list(answers)
        return Endpoint(f"http://127.0.0.1:{self.server.server_port}/v1", **{"timeout": 5.0, "retries": 0, **options})


@pytest.fixture
def served() -> Iterator[Served]:
    made = Served()
    yield made
    made.server.shutdown()
    made.server.server_close()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> LatentIndex:
    net, inputs = talk(80)
    return build_index(
        directions("resid.4", WIDTH, 40, k=3), watch(net, inputs), tmp_path_factory.mktemp("i") / "index"
    )


def test_it_asks_as_the_protocol_says(served: Served) -> None:
    endpoint = served.at(says("hello"), model="tiny", key="secret")
    assert endpoint.ask([{"role": "user", "content": "hi"}]) == "hello"
    assert served.asked[0]["path"] == "/v1/chat/completions" and served.asked[0]["model"] == "tiny"
    assert served.asked[0]["messages"] == [{"role": "user", "content": "hi"}]
    assert served.keys == ["Bearer secret"] and "secret" not in repr(endpoint)


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (raw(b"<html>Sign in</html>"), "something else than a chat completion"),
        (raw(b'{"choices": []}'), "something else"),
        (raw(b'{"choices": [{"message": {"content": null}}]}'), "no text"),
        (raw(b"[" * 100_000), "something else"),
        (raw(b"\xff\xfe"), "something else"),
        (raw(b"no", 404), "status 404"),
        (raw(b"", 302, {"Location": "http://example.invalid/"}), "status 302"),
        (floods, "longer than"),
    ],
)
def test_rude_answers(served: Served, answer: Answer, told: str) -> None:
    with pytest.raises(ResourceError, match=told):
        served.at(answer).ask([])


@pytest.mark.parametrize("header", [True, False])
def test_a_drip_is_cut_off(served: Served, header: bool) -> None:
    endpoint = served.at(drips(0.1, header), timeout=0.5)
    start = time.monotonic()
    with pytest.raises(ResourceError, match=r"within 0\.5 s"):
        endpoint.ask([])
    assert time.monotonic() - start < 10  # without the clock it would be 20


def test_failures_that_pass_are_tried_again(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cutaway.features.endpoint._WAIT", 0.01)
    endpoint = served.at(raw(b"", 500), raw(b"busy", 429), says("at last"), retries=2)
    assert endpoint.ask([]) == "at last" and len(served.asked) == 3
    with pytest.raises(ResourceError, match="status 500"):
        served.at(raw(b"", 500), retries=1).ask([])


def test_nobody_is_there() -> None:
    with pytest.raises(ResourceError, match="no usable answer"):
        Endpoint("http://127.0.0.1:9/v1", timeout=2.0, retries=0).ask([])


@pytest.mark.parametrize("url", ["file:///etc/passwd", "localhost:8000", "http://", "http://a b/", "http://u:p@host/"])
def test_no_url(url: str) -> None:
    with pytest.raises(InputError, match="no URL"):
        Endpoint(url)


def test_a_proposed_label_is_tested_like_any_other(served: Served, index: LatentIndex) -> None:
    latent = int(index.fired.argmax())
    everything = list(range(20))
    endpoint = served.at(
        says('Sure!\n```json\n{"label": "fires\\nalways"}\n```'), says(json.dumps({"fires": everything}))
    )
    label = propose(index, latent, endpoint, asked=20)
    assert label.text == "fires always" and label.rule is None
    assert label.score.recall == 1 and label.score.precision == pytest.approx(0.5)  # it lies, and the test shows it
    assert label.controls["everything"] == pytest.approx(label.score.f1)
    with pytest.raises(InputError, match="words alone"):
        label.fires(index.example(0))


def test_a_proposed_rule_is_run_or_refused(served: Served, index: LatentIndex) -> None:
    latent = int(index.fired.argmax())
    rule = {"any": [[{"what": "position", "values": [0, 3]}]]}
    label = propose(index, latent, served.at(says(json.dumps({"label": "at the start", "rule": rule}))))
    assert label.rule is not None and label.score.rows > 100
    assert label.fires(index.example(0)).tolist()[:5] == [True] * 4 + [False]
    for bad in ({"any": [[{"what": "exec", "values": ["x"]}]]}, [], {"any": [[{"what": "property", "values": ["x"]}]]}):
        answers = says(json.dumps({"label": "x", "rule": bad})), says('{"fires": []}')
        assert "rule refused" in propose(index, latent, served.at(*answers)).how


@pytest.mark.parametrize("second", ['{"fires": [0, 99]}', '{"fires": "all"}', '{"fires": [true]}', "I will not say."])
def test_lies_about_numbers(served: Served, index: LatentIndex, second: str) -> None:
    with pytest.raises(ResourceError, match="was asked for numbers"):
        propose(index, int(index.fired.argmax()), served.at(says('{"label": "x"}'), says(second)), asked=20)


def test_text_of_a_label_is_harmless() -> None:
    assert plainly("a\x1b[31m\u202e b\n" + "x" * 500).startswith("a [31m b x") and len(plainly("y" * 999)) == 200
    with pytest.raises(ResourceError):
        json_in('{"label": 1}', lambda found: isinstance(found.get("label"), str), "a label")
