"""The page on circuits names every scoring method and every search, and no others."""

import re
from pathlib import Path

import cutaway as cw

PAGE = Path(__file__).parents[2] / "docs" / "circuits.md"


def listed(heading: str) -> set[str]:
    """The names in the first column of a chapter's table."""
    chapter = PAGE.read_text(encoding="utf-8").partition(f"## {heading}")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (.*?) \|", chapter, re.MULTILINE)
    return {name for row in rows for name in re.findall(r"`([^`]+)`", row)}


def test_every_method_and_search_is_documented() -> None:
    assert listed("Scores") == set(cw.methods())
    assert listed("Searches") == set(cw.searches())


def test_every_method_names_its_source_and_its_cost() -> None:
    for method in cw.methods().values():
        assert re.search(r"\d{4}|this package", method.paper) and method.function.__doc__
    for search in cw.searches().values():
        assert re.search(r"\d{4}|this package", search.paper) and search.function.__doc__
