"""Open mutated files in this process, which may do little else: run as a program, by the tests.

    python fuzz_files.py COUNT SEED FOLDER [FILE …]

The mutants are those of the seeds, one of each format, or of the files that are given.

Memory is limited to what the interpreter holds at the start plus 512 MiB, a file to five seconds. Python's audit events
see every process, import, connection, unpickling, executed code and file opened to be written: one of them while a
mutant is looked at ends the run. Prints what happened as JSON; a crash shows as a status that is not 0.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import sys
import time
import unicodedata  # noqa: F401 - an escaped name in a pickle makes Python import it
from collections import Counter
from pathlib import Path
from typing import Any

from seeds import Seed, mutate, seeds

from cutaway.errors import FormatError
from cutaway.formats import info, open_checkpoint

MEMORY, SECONDS = 512 << 20, 5
FORBIDDEN = (
    "os.", "subprocess.", "socket.", "shutil.", "pickle.", "marshal.", "ctypes.", "import", "exec", "pty.", "urllib.",
    "tempfile.", "webbrowser.", "sqlite3.", "code.__new__",
)  # fmt: skip
ALLOWED = {"os.scandir", "os.listdir"}
watched = False


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """End the run, with a status of its own, when a look at a file does more than look."""
    if not watched or event in ALLOWED:
        return
    writes = event == "open" and (arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND))
    if event.startswith(FORBIDDEN) or writes:
        sys.stderr.write(f"forbidden: {event} {arguments!r:.300}\n")
        sys.stderr.flush()
        os._exit(77)


def too_long(*_: object) -> None:
    """End a look that takes too long."""
    raise TimeoutError(f"more than {SECONDS} seconds")


def look(path: Path) -> bool:
    """Whether the file opens; all of it is read. Raises whatever is no FormatError."""
    global watched
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watched = True
    try:
        facts = info(path, deep=True, sha256=True)
        json.dumps(facts, allow_nan=False)
        checkpoint = open_checkpoint(path)
        for name, tensor in checkpoint.tensors.items():
            if not tensor.expanded and not tensor.place.refusal:
                checkpoint.numbers(name)
    except FormatError as error:
        assert str(error) and "\n" not in str(error), f"not one sentence: {error}"
        return False
    finally:
        watched = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    return True


def place(folder: Path, seed: Seed) -> Path:
    """Write a seed's files; gives the path to open."""
    for name, content in seed.items():
        if not name.endswith("/"):
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(content)
    return folder / next(iter(seed))


def main(count: int, number: int, folder: Path, chosen: list[str]) -> None:
    """Look at `count` mutants, as many of each format."""
    known = {file: {Path(file).name: Path(file).read_bytes()} for file in chosen} or seeds()
    everything = [content for seed in known.values() for content in seed.values() if content]
    for seed in known.values():  # what is imported late is imported now, and the seeds are sound
        assert look_unwatched(place(folder, seed))
    sys.addaudithook(watch)
    signal.signal(signal.SIGALRM, too_long)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    chance, slowest, start = random.Random(number), 0.0, time.perf_counter()
    opened: Counter[str] = Counter()
    for index in range(count):
        name = list(known)[index % len(known)]
        part = chance.choice([key for key, content in known[name].items() if content])
        path = place(folder, known[name]) if len(known[name]) > 1 else folder / part
        mutant = mutate(known[name][part], chance, chance.choice(everything))
        (folder / part).write_bytes(mutant)
        began = time.perf_counter()
        try:
            opened[name] += look(path)
        except BaseException:
            sys.stderr.write(f"mutant {index} of {name}, seed {number}: {mutant.hex()[:4000]}\n")
            raise
        slowest = max(slowest, time.perf_counter() - began)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10
    seconds = round(time.perf_counter() - start, 1)
    report = {"files": count, "opened": opened, "slowest": round(slowest, 3), "grown_mib": grown, "seconds": seconds}
    print(json.dumps(report))


def look_unwatched(path: Path) -> bool:
    """The same look, before anything is forbidden."""
    info(path, deep=True)
    for codec in ("cp437", "unicode_escape", "raw_unicode_escape", "latin1", "ascii"):  # imported at their first use
        b"a".decode(codec)
    return bool(open_checkpoint(path).tensors)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:])
