"""Verbs on a project: look at it, name and comment what was found, take a change back."""

from __future__ import annotations

from typing import Annotated

from ..errors import ProjectError
from ..project import Project
from ..report import terminal
from ..site import Site
from .verb import Argument, Result, verb

Kept = Annotated[str, Argument("A project.", positional=True)]
Place = Annotated[str, Argument("A site or a part, as in L1.attn.h2.", positional=True)]


@verb("show", show=terminal.project, chapter="Keep")
def show(
    project: Kept,
    claim: Annotated[str, Argument("Show this claim in full (its id, or how it begins).", positional=True)] = "",
) -> Result:
    """What a project holds: networks, claims, names, comments and the last changes; or one claim with its evidence."""
    with Project(project, create=False, readonly=True) as opened:
        found = opened.show()
        if not claim:
            return found
        stored = opened.claim(claim)
        known = found["models"].get(stored["provenance"].get("fingerprint"), {})
    from .finding import told

    one = {"claim": stored["id"], "claim_facts": known, "told": told(stored), "provenance": stored["provenance"]}
    return found | one


@verb("rename", show=terminal.changed, chapter="Keep")
def rename(
    project: Kept,
    site: Place,
    name: Annotated[str, Argument("Its name from now on; an empty one takes the name away.", positional=True)],
) -> Result:
    """Give a site or part a name that says what it does."""
    Site.parse(site)
    with Project(project, create=False) as opened:
        opened.rename(site, name)
        now = opened.names().get(site)
        done = f"{site} is now called {now}" if now else f"{site} has no name now"
        return {"project": str(opened.path), "site": site, "name": now, "done": done}


@verb("comment", show=terminal.changed, chapter="Keep")
def comment(
    project: Kept,
    site: Place,
    text: Annotated[str, Argument("What there is to say.", positional=True)],
) -> Result:
    """Write a comment to a site or part."""
    Site.parse(site)
    with Project(project, create=False) as opened:
        opened.comment(site, text)
        said = opened.comments().get(site, [])
        done = f"{site} has {len(said)} comment{'s' if len(said) != 1 else ''} now"
        return {"project": str(opened.path), "site": site, "comments": said, "done": done}


@verb("undo", show=terminal.changed, chapter="Keep")
def undo(
    project: Kept,
    entry: Annotated[int, Argument("Take back this entry of the history instead of the newest change.", least=0)] = 0,
) -> Result:
    """Take back the newest change that stands, or a named one; nothing is lost, an undo can be undone."""
    with Project(project, create=False) as opened:
        undone = opened.undo(entry or None)
        if undone is None:
            raise ProjectError(f"{opened.path} has no change that could be taken back.")
        done = f"took back entry {undone['id']}: {undone['verb']} {undone['subject']}"
        return {"project": str(opened.path), "undone": undone, "done": done}
