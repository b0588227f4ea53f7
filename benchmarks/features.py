"""Features: collecting values, training dictionaries, recovery of known features, attribution graphs, latents' pages.

    python benchmarks/features.py [collect] [speed] [quality] [recovery] [evaluation] [graphs] [looking] [files]
                                  [--seeds 3] [--peer PYTHON ...] [--json]

Each part is a file of features_parts/. A peer is the interpreter of an environment with another library; peers/ holds
what runs there. Parts that need a real network use the one below CUTAWAY_DATA and say so where it is missing. Progress
is told on the standard error.
"""

from __future__ import annotations

import argparse
import sys
from importlib import import_module
from pathlib import Path

from rows import Row, show

PARTS = sorted(file.stem for file in (Path(__file__).parent / "features_parts").glob("*.py"))


def measured(parts: list[str], seeds: int, peers: list[str]) -> list[Row]:
    """The rows of some parts."""
    rows: list[Row] = []
    for part in parts:
        print(f"{part} ...", file=sys.stderr, flush=True)
        rows += import_module(f"features_parts.{part}").rows(seeds, peers)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"any of {', '.join(PARTS)}; all when left out")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--peer", action="append", default=[], metavar="PYTHON")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if strange := [part for part in given.parts if part not in PARTS]:
        parser.error(f"there is no part '{strange[0]}'; there is {', '.join(PARTS)}")
    show(measured(given.parts or PARTS, given.seeds, given.peer), given.json)


if __name__ == "__main__":
    main()
