"""Record and lift every network of the zoo: python benchmarks/zoo.py [--rounds 3] [--json]

CPU seconds of one thread, the least of a few rounds, each with a newly opened network (nothing is remembered between
them). The networks are those of tests/zoo.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import sys
import time
from pathlib import Path

import torch
from rows import row, show

import cutaway as cw

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "zoo"))


def main() -> None:
    """Measure and print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    from zoo import ZOO

    seconds: dict[str, float] = {}
    for name, entry in ZOO.items():
        for _ in range(arguments.rounds):
            module, args, kwargs = entry.make()
            net = cw.open(module)
            gc.collect()
            start = time.process_time()
            trace = net.record(*args, **kwargs)
            if entry.expected:
                trace.lift()
            took = time.process_time() - start
            seconds[name] = min(took, seconds.get(name, took))
    slowest = max(seconds, key=lambda name: seconds[name])
    figures = {"median": statistics.median(seconds.values()), f"slowest ({slowest})": seconds[slowest]}
    name, command = f"record + lift, {len(seconds)} networks of the zoo", "python benchmarks/zoo.py"
    rows = [row(f"{name}, {which}", [took], "s", 0.2, command) for which, took in figures.items()]
    show([made | {"n": arguments.rounds} for made in rows], arguments.json)


if __name__ == "__main__":
    main()
