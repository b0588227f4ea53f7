"""Record and lift every network of the zoo: python benchmarks/zoo.py [--rounds 3] [--json]

CPU seconds of one thread, the least of a few rounds, each with a newly opened network (nothing is remembered between
them). The networks are those of tests/zoo.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import sys
import time
from pathlib import Path

import torch

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
    rows = [
        {
            "name": f"record + lift, {len(seconds)} networks of the zoo, {which}", "ours": round(figure, 3),
            "unit": "s", "better": "lower", "peers": {}, "goal": 0.2, "met": figure <= 0.2, "n": arguments.rounds,
            "seed": 0, "command": "python benchmarks/zoo.py",
        }
        for which, figure in figures.items()
    ]  # fmt: skip
    if arguments.json:
        print(json.dumps({"rows": rows}, indent=1))
        return
    for row in rows:
        print(f"{row['name']:<80} {row['ours']:>7} s (goal 0.2, {'met' if row['met'] else 'MISSED'})")


if __name__ == "__main__":
    main()
