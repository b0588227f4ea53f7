"""docs/zoo.md says of every network of the zoo what lifting finds in it today."""

from __future__ import annotations

import pytest
from table import PAGE, found_in, row

from zoo import ZOO, case

LINES = {line.split("|")[1].strip(): line for line in PAGE.read_text(encoding="utf-8").splitlines() if line[:1] == "|"}
AGAIN = "run `python tests/zoo/table.py`"


@pytest.mark.parametrize("name", ZOO)
def test_the_page_is_up_to_date(name: str) -> None:
    assert name in LINES, f"docs/zoo.md lacks '{name}'; {AGAIN}"
    assert LINES[name] == row(name, case(name).module, found_in(name)), AGAIN


def test_the_page_names_no_network_that_is_gone() -> None:
    assert set(LINES) - {"network", "---"} == set(ZOO), AGAIN
