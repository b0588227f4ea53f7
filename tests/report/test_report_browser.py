"""The page in a real browser without a screen: a silent console, no request, no sideways scrolling."""

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from crafted_claims import Page, claim, crowd, data
from test_report_page import EVIL, with_evil

from cutaway.report.html import page

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-sync --disable-component-update --enable-logging=stderr"
).split()
QUIET.append("--host-resolver-rules=MAP * ~NOTFOUND")  # the browser itself would ask for its updates all the same
POLICY = re.compile(r'<meta http-equiv="Content-Security-Policy"[^>]*>')

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium or Chrome on the path to open the report with"),
]


class Visit:
    """What a browser made of a file: the document as text, console lines, and the addresses that it asked for."""

    def __init__(self, file: Path, folder: Path, *options: str) -> None:
        assert BROWSER is not None
        log = folder / f"{file.stem}.net.json"
        own = [f"--user-data-dir={folder / file.stem}", f"--log-net-log={log}", "--net-log-capture-mode=Everything"]
        done = subprocess.run(
            [BROWSER, *QUIET, *own, *options, "--dump-dom", file.as_uri()], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        self.document = done.stdout
        self.console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
        events = json.loads(log.read_text(encoding="utf-8"))["events"]
        requests = [event["params"] for event in events if "initiator" in event.get("params", {})]
        # what the browser asks for on its own account has no origin
        asked = {str(request.get("url")) for request in requests if request["initiator"] != "not an origin"}
        self.asked = sorted(address for address in asked if re.match("(https?|wss?|ftp):", address))


@pytest.fixture
def visit(tmp_path: Path) -> Callable[..., Visit]:
    """Open a text as a file in the browser."""

    def open_(text: str, *options: str, name: str = "page") -> Visit:
        file = tmp_path / f"{name}.html"
        file.write_text(text, encoding="utf-8")
        return Visit(file, tmp_path, *options)

    return open_


def test_nothing_is_reported_and_nothing_is_fetched(visit: Callable[..., Visit]) -> None:
    seen = visit(page(data()))
    assert (seen.console, seen.asked) == ([], [])
    assert "In toy, 4 of 81 edges" in seen.document and Page(seen.document).text("h2")


def test_hostile_texts_do_nothing(visit: Callable[..., Visit]) -> None:
    hostile = with_evil(data(), "".join(EVIL[:-1]))
    hostile["claim"]["circuit"]["level"] = "edge"
    seen = visit(page(hostile))
    assert (seen.console, seen.asked) == ([], [])
    tags = {tag for tag, _, _ in Page(seen.document).elements}
    assert not tags & {"script", "img", "iframe"}


def test_the_policy_stops_what_escaping_would_miss(visit: Callable[..., Visit]) -> None:
    image = "<img src='http://127.0.0.1:9/x.png' onerror=\"document.title = 'owned'\">"
    attack = f"<script>document.title = 'owned'</script>{image}</body>"
    guarded = visit(page(data()).replace("</body>", attack))
    assert len(guarded.console) >= 2 and guarded.asked == []
    assert "<title>owned" not in guarded.document
    bare = visit(POLICY.sub("", page(data())).replace("</body>", attack), name="bare")
    assert "<title>owned" in bare.document and bare.asked == ["http://127.0.0.1:9/x.png"], (
        "this test sees what it looks for"
    )


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("given", [data(), data(claim=claim(crowd()))], ids=["chain", "crowd"])
def test_only_tables_and_drawings_scroll_sideways(visit: Callable[..., Visit], width: int, given: dict) -> None:
    measure = "<script>document.title = innerWidth + ' ' + document.documentElement.scrollWidth</script></body>"
    text = POLICY.sub("", page(given)).replace("</body>", measure)
    seen = visit(text, f"--window-size={width},900", "--hide-scrollbars")
    inner, whole = map(int, Page(seen.document).text("title")[0].split())
    assert whole <= inner <= max(width, 500), "the smallest window of some versions is 500 wide"
