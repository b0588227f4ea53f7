"""Verbs on organisms: the bundled networks whose mechanism is known."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Annotated, Any

from .. import organisms
from ..errors import InputError, ResourceError
from ..report import terminal
from .progress import report
from .store import plain
from .verb import Argument, Result, near, verb


@verb("organisms list", show=terminal.organisms, chapter="First steps")
def list_organisms() -> Result:
    """The bundled networks whose mechanism is known."""
    return {"organisms": [_described(name) for name in organisms.names()]}


def _described(name: str) -> dict[str, Any]:
    organism = organisms.load(name)
    return {
        "name": name,
        "description": organism.description,
        "behaviour": organism.behaviour,
        "parameters": sum(parameter.numel() for parameter in organism.module.parameters()),
        "vocabulary": list(organism.vocabulary) if organism.vocabulary else None,
        "known_edges": len(organism.truth.edges) if organism.truth is not None else 0,
        "mechanism": organism.truth.mechanism if organism.truth is not None else None,
    }


@verb("organisms train", show=terminal.trained, chapter="First steps")
def train_organism(
    name: Annotated[str, Argument("An organism.", positional=True)],
    seed: Annotated[int, Argument("The same seed gives the same weights.", least=0)] = 0,
    steps: Annotated[int, Argument("How long to train; 0 is as long as the bundled weights were.", least=0)] = 0,
    out: Annotated[str, Argument("The folder for NAME.safetensors.")] = ".",
) -> Result:
    """Train an organism from scratch."""
    if name not in organisms.names():
        raise InputError(f"No organism is called '{name}'{near(name, organisms.names())}")
    folder = Path(out)
    parent = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise ResourceError(f"'{parent}' is no folder that can be written to; choose another --out.")
    module, figures = organisms.train(
        name, seed=seed, steps=steps or None, progress=lambda done, of, loss: report(f"loss {loss:.4f}", done, of)
    )
    folder.mkdir(parents=True, exist_ok=True)
    # Into a folder beside it first: a full disk leaves no half a file under the final name.
    with tempfile.TemporaryDirectory(dir=folder) as staging:
        staged = organisms.save(name, module, staging)
        final = staged.replace(folder / staged.name)
    return {"name": name, "seed": seed, "path": str(final), "figures": plain(figures)}
