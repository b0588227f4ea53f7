"""`benchmark`: the figures of benchmarks/README.md, measured again on this machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

from ..errors import CutawayError, InputError
from ..report.benchmark_text import benchmark as shown
from .checkout import folder_of
from .looking import NOTHING
from .verb import Argument, Result, near, verb

_NOT_MEASURED = {"rows"}  # files of the folder that measure nothing


@verb("benchmark", show=shown, chapter="Development")
def benchmark(
    name: Annotated[str, Argument("What to measure; the benchmarks there are when left out.", positional=True)] = "",
    parts: Annotated[list[str], Argument("Some parts of it only, where it has parts.", positional=True)] = NOTHING,
    peer: Annotated[
        list[str],
        Argument("The interpreter of an environment with other libraries, measured too; repeatable.", shown="PYTHON"),
    ] = NOTHING,
    folder: Annotated[str, Argument("Where the benchmarks are, if not in this package's checkout.")] = "",
) -> Result:
    """Measure Cutaway against stated goals, and against other libraries where their environments are named.

    Each row tells our figure, its unit and direction, the goal, and the command that repeats it. Benchmarks take
    minutes; they run in a process of their own, one at a time.
    """
    place = folder_of("benchmarks", folder, "rows.py")
    known = sorted(file.stem for file in place.glob("*.py") if file.stem not in _NOT_MEASURED)
    if not name:
        return {"benchmarks": [{"name": one, "what": _first_line(place / f"{one}.py")} for one in known], "rows": []}
    if name not in known:
        raise InputError(f"There is no benchmark '{name}'{near(name, tuple(known))}")
    if missing := [one for one in peer if shutil.which(one) is None]:
        raise InputError(f"--peer is '{missing[0]}', which is no program here; give an environment's bin/python.")
    words = [sys.executable, str(place / f"{name}.py"), *parts, *(f"--peer={one}" for one in peer), "--json"]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, check=False)  # progress is on its stderr
    if done.returncode:
        raise CutawayError(f"The benchmark '{name}' failed with status {done.returncode}; what it said is above.")
    try:
        rows: list[dict[str, Any]] = json.loads(done.stdout)["rows"]
    except (ValueError, KeyError):
        raise CutawayError(f"The benchmark '{name}' printed no rows; run {words[1]} --json by hand.") from None
    return {"name": name, "rows": rows}


def _first_line(file: Path) -> str:
    return file.read_text(encoding="utf-8").split("\n", 1)[0].strip('" ')
