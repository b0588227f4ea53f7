"""What verbs keep in a project. Nothing is made before there is something to keep."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import InputError, ProjectError
from ..project import Project
from .verb import running

if TYPE_CHECKING:
    from ..claims.claim import Claim


def plain(data: Any) -> Any:
    """JSON-able data with tuples as lists and None for what is not a finite number."""
    if isinstance(data, dict):
        return {str(key): plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [plain(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def check(path: str) -> None:
    """Raise before a long job, and without making anything, what keeping its result in `path` would raise after it."""
    if not path.strip() or "\0" in path:
        raise ProjectError("The project's path is empty or holds a NUL character; give the name of a folder.")
    folder = Path(path) if path.endswith(".cutaway") else Path(f"{path}.cutaway")
    if folder.exists():
        Project(path, create=False, readonly=True).close()
        return
    parent = next(parent for parent in folder.absolute().parents if parent.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ProjectError(f"'{parent}' is no folder that can be written to, so no project can be made in it.")


def check_file(option: str, path: str) -> None:
    """Raise InputError before a long job when a file that it will write cannot be there."""
    folder = Path(path).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{option} is '{path}', and '{folder}' is no folder that can be written to; make it first.")
    if Path(path).is_dir():
        raise InputError(f"{option} is '{path}', which is a folder; give the name of a file.")


def stored_form(claim: Claim) -> dict[str, Any]:
    """A claim as a project keeps it, with the command line that made it."""
    data: dict[str, Any] = plain(claim.to_dict())
    return data | {"provenance": data["provenance"] | {"command": running()}}


def keep_claim(path: str, facts: dict[str, Any], claim: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any]:
    """Keep the network's facts and a claim; tells the project, the claim's id, and whether the claim is new."""
    with Project(path) as project:
        before = {kept["id"] for kept in project.claims()}
        project.add_model(facts["fingerprint"], facts)
        key = project.add_claim(claim, tensors)
        return {"project": str(project.path), "claim": key, "new": key not in before}


def keep_record(
    path: str, facts: dict[str, Any], kind: str, data: dict[str, Any], tensors: dict[str, Any], command: str = ""
) -> dict[str, Any]:
    """Keep the network's facts and any other result; tells the project and the record's id.

    `command` is the command line that makes it, by default the one that is running.
    """
    body = plain(data) | {"provenance": {"fingerprint": facts["fingerprint"], "command": command or running()}}
    with Project(path) as project:
        project.add_model(facts["fingerprint"], facts)
        return {"project": str(project.path), "record": project.add_record(kind, body, tensors)}
