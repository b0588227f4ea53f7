"""Small networks whose mechanism is known: organisms to test tools on, bundled with their weights.

Importing this package imports no torch; the functions do.
"""

from __future__ import annotations

import json
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .organism import Organism, Pairs, Truth

if TYPE_CHECKING:
    from torch import nn

    from .training import Progress, Recipe

__all__ = ["Organism", "Pairs", "Truth", "load", "names", "save", "train"]

_FILES = {
    "induction": "induction",
    "indirect-object": "indirect_object",
    "shapes": "shapes",
    "counter": "counter",
    "superposition": "superposition",
}
_WEIGHTS = Path(__file__).parent / "weights"
_UNTRAINED_SEED = 1234


def names() -> tuple[str, ...]:
    """The names `load` and `train` accept."""
    return tuple(_FILES)


def load(name: str, *, trained: bool = True) -> Organism:
    """The bundled organism `name`, its module in eval mode on the CPU. KeyError for a name that is not bundled.

    With `trained=False` the same architecture with random weights, always the same ones, and no truth: a control.
    """
    from safetensors.torch import load_file

    from .training import build

    recipe = _recipe(name)
    module = build(recipe, _UNTRAINED_SEED).eval()
    truth = None
    if trained:
        module.load_state_dict(load_file(_WEIGHTS / f"{name}.safetensors"))
        truth = _read_truth(_WEIGHTS / f"{name}.json")
    return Organism(name, module, recipe.vocabulary, recipe.behaviour, truth, recipe.description, recipe.pairs)


def train(
    name: str, *, seed: int = 0, steps: int | None = None, progress: Progress | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Train organism `name` from scratch with its planted masks; the same seed gives the same weights.

    Returns the module and its final figures (loss, accuracy, logit differences). `steps` defaults to what the bundled
    weights were trained for; `progress(step, steps, loss)` is called every 100 steps.
    """
    from .training import fit

    return fit(_recipe(name), seed, steps, progress)


def save(name: str, module: nn.Module, folder: str | Path) -> Path:
    """Write the module's weights to `folder/name.safetensors` and return that path."""
    from safetensors.torch import save_file

    path = Path(folder) / f"{_recipe(name).name}.safetensors"
    save_file({key: value.detach().contiguous() for key, value in module.state_dict().items()}, path)
    return path


def _recipe(name: str) -> Recipe:
    if name not in _FILES:
        raise KeyError(f"no organism is called {name!r}; the bundled ones are {', '.join(_FILES)}")
    recipe: Recipe = import_module(f".{_FILES[name]}", __name__).RECIPE
    return recipe


def _read_truth(path: Path) -> Truth:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Truth(
        tuple(stored["nodes"]), tuple(stored["edges"]), stored["mechanism"], stored["how_known"], stored["figures"]
    )
