"""`zoo`: the developers' check. Every network of tests/zoo goes through the same comparison as any other network.

The zoo is no part of the package; it is found in the checkout that the package runs from, or in a folder that is named.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from ..errors import InputError
from ..report.zoo_text import zoo as shown
from .checkout import folder_of
from .looking import NOTHING
from .progress import report
from .verb import Argument, Result, verb


@verb("zoo", show=shown, chapter="Development", good=lambda result: all(row["ok"] for row in result["networks"]))
def zoo(
    names: Annotated[list[str], Argument("Networks of the zoo; all of them by default.", positional=True)] = NOTHING,
    folder: Annotated[str, Argument("Where the zoo is, if not in this package's checkout.")] = "",
) -> Result:
    """Check every network of the tests' zoo against plain PyTorch, and what lifting finds in it.

    Ends with exit status 1 when one of them is not as it should be.
    """
    import torch

    entries = _entries(folder)
    if strange := [name for name in names if name not in entries]:
        close = difflib.get_close_matches(strange[0], entries, n=1)
        meant = f"did you mean '{close[0]}'? It" if close else "it"
        raise InputError(f"The zoo has no '{strange[0]}'; {meant} has {len(entries)} networks, listed in docs/zoo.md.")
    chosen = names or list(entries)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the networks are too small to share
    rows = []
    try:
        for done, name in enumerate(chosen):
            report(name, done, len(chosen))
            rows.append(_checked(entries[name]))
    finally:
        torch.set_num_threads(threads)
    return {"networks": rows, "ok": all(row["ok"] for row in rows)}


def _checked(entry: Any) -> Result:
    """The record of one entry. What the entry says cannot be followed is expected to be found."""
    from ..attribution.checking import check_network
    from ..lift import lift
    from ..run.check import Check
    from ..run.opening import open_network

    started = time.perf_counter()
    try:
        module, args, kwargs = entry.make()
        net = open_network(module, lifter=lift, name=entry.name)
        record = check_network(net, *args, expected=entry.expected or None, **kwargs).record()
    except Exception as error:  # noqa: BLE001 - a network that cannot be checked at all is a finding like any other
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        record = Check(entry.name, None, None, None, None, problems=(first,)).record()
    if entry.problems:  # it leaves torch on purpose: then saying so is what is right
        said = "\n".join(record["problems"])
        record["ok"] = record["parity"] == 0 and all(part in said for part in entry.problems)
    return {**record, "seconds": round(time.perf_counter() - started, 3)}


def _entries(folder: str) -> Mapping[str, Any]:
    """The zoo's entries by name. Raises InputError when there is no zoo."""
    place = folder_of("tests/zoo", folder, "zoo.py")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the networks are made from their configs; nothing is fetched
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # what it says of tiny configs is no news
    with _importable(place):
        module = importlib.import_module("zoo")
    if Path(str(module.__file__)).resolve().parent != place:
        raise InputError(f"Another module called zoo is loaded already, so '{place}' cannot be.")
    entries: Mapping[str, Any] = module.ZOO
    return entries


@contextmanager
def _importable(place: Path) -> Iterator[None]:
    """The folder's modules importable by their names inside the block."""
    sys.path.insert(0, str(place))
    try:
        yield
    finally:
        sys.path.remove(str(place))
