"""Reading the documentation: the code snippets of a Markdown page, in order."""

import re
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(r"^(?P<indent> *)```(?P<words>[^`]*)$")


@dataclass(frozen=True)
class Snippet:
    """One fenced block: its language, the words after it, its text, and the page's line its text starts on."""

    language: str
    marks: frozenset[str]
    text: str
    line: int

    @property
    def runs(self) -> bool:
        return "no-run" not in self.marks


def snippets(page: str) -> list[Snippet]:
    """The fenced blocks of a page. A fence that is never closed is an error: what follows would go unread."""
    found: list[Snippet] = []
    opened: tuple[re.Match[str], int] | None = None
    body: list[str] = []
    for number, line in enumerate(page.splitlines(), start=1):
        fence = FENCE.match(line)
        if opened is None:
            opened, body = ((fence, number + 1), []) if fence else (None, [])
        elif fence and not fence["words"].strip():
            words = opened[0]["words"].split() or [""]
            indent = len(opened[0]["indent"])
            text = "\n".join(row[min(indent, len(row) - len(row.lstrip())) :] for row in body)
            found.append(Snippet(words[0], frozenset(words[1:]), text, opened[1]))
            opened = None
        else:
            body.append(line)
    if opened is not None:
        raise ValueError(f"the fence above line {opened[1]} is never closed")
    return found


def commands(snippet: Snippet) -> list[str]:
    """The `$ cutaway ...` lines of a console snippet, continued lines joined, without the `$ `."""
    joined = re.sub(r"\\\n", " ", snippet.text)
    lines = [line.strip() for line in joined.splitlines()]
    return [line[2:] for line in lines if line == "$ cutaway" or line.startswith("$ cutaway ")]


def pages(checkout: Path) -> list[Path]:
    return [checkout / "README.md", *sorted((checkout / "docs").rglob("*.md"))]
