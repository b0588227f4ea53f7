"""The lines that repeat a claim, in Python and on the command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def lines(claim: Mapping[str, Any]) -> dict[str, str]:
    """Snippets by name ("Python", "Command line") that test a stored claim again on the inputs it was tested on.

    What is not known here, the project's folder and perhaps the claim's id, stands in capitals.
    """
    provenance = claim.get("provenance") or {}
    key = str(claim.get("id") or "CLAIM")
    kind, colon, rest = str(provenance.get("source") or "").partition(":")
    if colon and kind in ("organism", "folder", "hub"):
        opened = f"net = cw.open({rest!r})"
    else:
        name = str(provenance.get("model") or "network")
        opened = f"net = cw.open(module, name={name!r})  # the module that the claim is about"
    python = f"""\
import cutaway as cw
from cutaway.claims.repeat import options, rebuild

{opened}
with cw.Project("PROJECT.cutaway") as project:
    claim, arrays = project.claim({key!r}), project.tensors({key!r})
    circuit = rebuild(net, claim, arrays)
    print(cw.verify(circuit, **options(net, claim, arrays)))
"""
    if not (colon and kind in ("organism", "folder", "hub")):
        return {"Python": python}  # a command line cannot open a module made in Python
    return {"Python": python, "Command line": f"cutaway verify PROJECT.cutaway {_quoted(key)}\n"}


def _quoted(word: str) -> str:
    from shlex import quote

    return quote(word)
