"""The documentation is true: its Python runs, its commands exit 0, and what is not run is at least valid.

The snippets of a page share one namespace and one temporary folder, and run in the page's order, so that a command
may use what a snippet above it wrote. A block fenced `python no-run` is only parsed; `console no-run` is only read.
"""

import ast
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pages import Snippet, commands, pages, snippets
from source_tree import CHECKOUT

PAGES = [str(page.relative_to(CHECKOUT)) for page in pages(CHECKOUT)]
COMMAND_SECONDS = 120


@pytest.mark.parametrize("page", PAGES)
def test_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    play(CHECKOUT / page, tmp_path, monkeypatch)


def play(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's snippets in a folder; an error names the page and its line."""
    work = folder / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("PATH", os.pathsep.join([str(command_folder(folder)), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT / "src"))
    namespace: dict[str, Any] = {"__name__": "__page__"}
    for snippet in snippets(page.read_text(encoding="utf-8")):
        if snippet.language == "python":
            run_python(snippet, page, namespace)
        elif snippet.language == "console" and snippet.runs:
            for command in commands(snippet):
                run_command(command, f"{page}:{snippet.line}", work)


def run_python(snippet: Snippet, page: Path, namespace: dict[str, Any]) -> None:
    placed = "\n" * (snippet.line - 1) + snippet.text  # a traceback then shows the page's own line
    code = compile(ast.parse(placed, filename=str(page)), str(page), "exec")
    if snippet.runs:
        exec(code, namespace)


def run_command(command: str, where: str, folder: Path) -> None:
    """A shell runs the line, so that pipes and redirections may be shown; every part of a pipe must succeed."""
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(
        shell, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=COMMAND_SECONDS
    )
    assert done.returncode == 0, f"{where}: `{command}` exited {done.returncode}\n{done.stdout}\n{done.stderr}"


def command_folder(folder: Path) -> Path:
    """A folder whose `cutaway` is this checkout's, under this interpreter."""
    place = folder / "bin"
    place.mkdir()
    script = place / "cutaway"
    script.write_text(f"#!{sys.executable}\nimport sys\nfrom cutaway.cli import main\nsys.exit(main())\n")
    script.chmod(0o755)
    return place


# The reader and the player themselves, on small crafted pages.


def test_snippets_are_read() -> None:
    page = "text\n```python\nx = 1\n```\n- item\n  ```python no-run\n  def f():\n    pass\n  ```\n```\nplain\n```\n"
    first, second, third = snippets(page)
    assert (first.language, first.text, first.line, first.runs) == ("python", "x = 1", 3, True)
    assert (second.text, second.line, second.runs) == ("def f():\n  pass", 7, False)
    assert (third.language, third.text) == ("", "plain")


def test_an_open_fence_is_refused() -> None:
    with pytest.raises(ValueError, match="never closed"):
        snippets("```python\nx = 1\n")


def test_commands_are_read() -> None:
    (snippet,) = snippets("```console\n$ cutaway info \\\n  x --json\nan answer\n$ make demo\n$ cutaway\n```\n")
    assert [command.split() for command in commands(snippet)] == [["cutaway", "info", "x", "--json"], ["cutaway"]]


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("```python\nassert 1 == 2\n```\n", AssertionError),
        ("```python\nx = 1\n```\n```python\nassert x == 2\n```\n", AssertionError),
        ("```python\nunknown\n```\n", NameError),
        ("```python no-run\nx = = 1\n```\n", SyntaxError),
    ],
)
def test_a_wrong_page_fails(text: str, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(error):
        play(page, tmp_path, monkeypatch)


def test_a_right_page_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nx = 1\n```\n```python\nfrom pathlib import Path\nPath('f.txt').write_text(str(x))\n```\n"
        "```python no-run\nraise SystemExit\n```\n```console no-run\n$ cutaway never\n```\n"
        "```console\n$ make demo\n```\n"
    )
    play(page, tmp_path, monkeypatch)
    assert (tmp_path / "work" / "f.txt").read_text() == "1"


def test_a_wrong_command_fails(tmp_path: Path) -> None:
    run_command("true | cat > out.txt", "here", tmp_path)
    with pytest.raises(AssertionError, match="exited 3"):
        run_command("exit 3 | cat", "here", tmp_path)
