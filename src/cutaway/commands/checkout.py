"""What lies beside the package in a checkout and is not installed with it: tests' networks, benchmarks."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError


def folder_of(part: str, given: str, needs: str) -> Path:
    """The folder `part` of the checkout that the package runs from, or the one that is given.

    Raises InputError when it does not hold the file `needs`.
    """
    place = Path(given) if given else Path(__file__).resolve().parents[3] / part
    if (place / needs).is_file():
        return place.resolve()
    if given:
        raise InputError(f"There is no {needs} in '{given}'; name the folder {part} of a checkout.")
    raise InputError(
        f"{part} belongs to Cutaway's checkout and is not installed with the package; run this in a checkout that is "
        "installed with `pip install -e`, or name the folder with --folder."
    )
