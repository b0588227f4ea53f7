"""Cost of `info` against the plain read of the same bytes, in one process, on one thread.

    python benchmarks/files.py [--rounds 5] [--json]

The file has the tensors of GPT-2 small with random values (498 MB of float32), as safetensors, and as GGUF in blocks of
Q4_0. Each round reads the file in pieces of a megabyte and does every job once; a figure is the median over rounds of
job / plain read. The file is warm: what is measured is work, not the disk. Headers are those of a sparse file of 10 GB.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy is imported, which reads it once

import numpy as np
from rows import Row, row, show
from safetensors.numpy import load_file, save_file

from cutaway.formats import info

COMMAND = "python benchmarks/files.py"
LAYERS, WIDTH = 12, 768
BLOCK = {"attn.c_attn": (WIDTH, 3 * WIDTH), "attn.c_proj": (WIDTH, WIDTH), "mlp.c_fc": (WIDTH, 4 * WIDTH),
         "mlp.c_proj": (4 * WIDTH, WIDTH)}  # fmt: skip


def seconds(job: Callable[[], object]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    job()
    return time.perf_counter() - start


def plain_read(path: Path) -> None:
    """Every byte once, into the same megabyte."""
    piece = bytearray(1 << 20)
    with path.open("rb", buffering=0) as file:
        while file.readinto(piece):
            pass


def sha256(path: Path) -> None:
    """What `sha256sum` does."""
    with path.open("rb") as file:
        hashlib.file_digest(file, "sha256")


def write(folder: Path) -> tuple[Path, Path, Path]:
    """The network as safetensors, its matrices as Q4_0 in GGUF, and a header with 10 GB of nothing behind it."""
    random = np.random.default_rng(0)
    shapes = {f"h.{layer}.{name}.weight": shape for layer in range(LAYERS) for name, shape in BLOCK.items()}
    shapes |= {"wte.weight": (50257, WIDTH), "wpe.weight": (1024, WIDTH)}
    values = {name: random.standard_normal(shape, np.float32) for name, shape in shapes.items()}
    save_file(values, folder / "x.safetensors")
    rows, data, offset = [], [], 0
    for name, shape in shapes.items():
        blocks = random.integers(0, 256, (shape[0] * shape[1] // 32, 18), dtype=np.uint8)
        blocks[:, :2] = np.frombuffer(struct.pack("<e", 0.01), np.uint8)
        data.append(blocks.tobytes() + bytes(-blocks.size % 32))
        rows.append(struct.pack("<Q", len(name)) + name.encode() + struct.pack("<I2QIQ", 2, *shape[::-1], 2, offset))
        offset += len(data[-1])
    head = b"GGUF" + struct.pack("<IQQ", 3, len(rows), 0) + b"".join(rows)
    (folder / "x.gguf").write_bytes(head + bytes(-len(head) % 32) + b"".join(data))
    size = 10**7
    spans = {f"h.{at}.w": [at * size, (at + 1) * size] for at in range(1000)}
    header = {name: {"dtype": "U8", "shape": [size], "data_offsets": span} for name, span in spans.items()}
    text = json.dumps(header).encode()
    (folder / "large.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    os.truncate(folder / "large.safetensors", 8 + len(text) + 10**10)
    return folder / "x.safetensors", folder / "x.gguf", folder / "large.safetensors"


def peak_mb(path: Path) -> float:
    """Anonymous memory (what is not the file itself) of a process that examines all values, at its most."""
    code = (
        "import sys, threading, time; from cutaway.formats import info\n"
        "most = 0; stop = threading.Event()\n"
        "def watch():\n"
        "    global most\n"
        "    while not stop.wait(0.005):\n"
        "        most = max(most, int(open('/proc/self/status').read().split('RssAnon:')[1].split()[0]))\n"
        "threading.Thread(target=watch).start(); info(sys.argv[1], deep=True); stop.set(); print(most)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True)
    return int(done.stdout) / 1000


def rows(rounds: int) -> list[Row]:
    """All figures."""
    with tempfile.TemporaryDirectory() as folder:
        plain, quantised, large = write(Path(folder))
        peers: dict[str, Callable[[Path], object]] = {"sha256 of the file": sha256}
        found = [row("header of 10 GB, cold interpreter", [_cold(large) for _ in range(rounds)], "s", 1.0, COMMAND)]
        for path, more in ((plain, {"safetensors load_file": load_file}), (quantised, {})):
            jobs = {"info": info, "info --deep": lambda path: info(path, deep=True), **peers, **more}
            figures: dict[str, list[float]] = {name: [] for name in jobs}
            speeds = []
            for _ in range(rounds):
                read = seconds(lambda path=path: plain_read(path))
                speeds.append(path.stat().st_size / read / 1e9)
                for name, job in jobs.items():
                    figures[name].append(seconds(lambda job=job, path=path: job(path)) / read)
            beside = {name: round(statistics.median(figures[name]), 2) for name in jobs if not name.startswith("info")}
            beside["plain read, GB/s"] = round(statistics.median(speeds), 2)
            for name in ("info", "info --deep"):
                found.append(row(f"{name}, {path.suffix[1:]}", figures[name], "plain reads", None, COMMAND, beside))
            found.append(row(f"memory of --deep, {path.suffix[1:]}", [peak_mb(path)], "MB", 512.0, COMMAND))
    return found


def _cold(path: Path) -> float:
    command = [sys.executable, "-m", "cutaway.cli", "info", str(path), "--json"]
    return seconds(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))


def main() -> None:
    """Print the rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    show(rows(given.rounds), given.json)


if __name__ == "__main__":
    main()
