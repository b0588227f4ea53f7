"""Small networks whose mechanism is known: organisms to test tools on, bundled with their weights or compiled.

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

__all__ = ["Organism", "Pairs", "Truth", "aligned", "is_name", "load", "names", "programs", "save", "train"]

_FILES = {
    "induction": "induction",
    "indirect-object": "indirect_object",
    "shapes": "shapes",
    "counter": "counter",
    "gates": "gates",
    "marks": "marks",
    "superposition": "superposition",
}
_WEIGHTS = Path(__file__).parent / "weights"
_UNTRAINED_SEED = 1234
_COMPILED, _ALIGNED = "rasp:", "aligned:"


def names() -> tuple[str, ...]:
    """The bundled organisms, which `load` and `train` accept."""
    return tuple(_FILES)


def programs() -> tuple[str, ...]:
    """The compiled organisms, which `load` accepts: "rasp:reverse" and so on (see docs/compiled.md)."""
    from .rasp import PROGRAMS

    return tuple(f"{_COMPILED}{name}" for name in PROGRAMS)


def aligned() -> tuple[str, ...]:
    """The networks trained to compute a program, which `load` and `train` accept: "aligned:reverse" and so on."""
    listed = sorted(path.stem.removeprefix("aligned-") for path in _WEIGHTS.glob("aligned-*.json"))
    return tuple(f"{_ALIGNED}{name}" for name in listed)


def is_name(text: str) -> bool:
    """Whether a text means an organism: a bundled one, or one to be compiled, which may turn out not to exist."""
    return text in _FILES or text.startswith((_COMPILED, _ALIGNED))


def load(name: str, *, trained: bool = True) -> Organism:
    """The organism `name`, its module in eval mode on the CPU. KeyError for a name that is not bundled.

    "rasp:NAME" compiles a program, "rasp:NAME+OTHER" with the other program as a distractor in the same weights;
    ValueError where the two are for different inputs. With `trained=False` the same architecture with random weights,
    always the same ones, and no truth: a control.
    """
    if name.startswith(_COMPILED):
        from .rasp.build import build as compiled

        return compiled(name.removeprefix(_COMPILED), trained=trained)
    from safetensors.torch import load_file

    from .training import build

    recipe = _recipe(name)
    module = build(recipe, _UNTRAINED_SEED).eval()
    truth = None
    if trained:
        module.load_state_dict(load_file(_WEIGHTS / f"{recipe.name}.safetensors"))
        truth = _read_truth(_WEIGHTS / f"{recipe.name}.json")
    return Organism(name, module, recipe.vocabulary, recipe.behaviour, truth, recipe.description, recipe.pairs)


def train(
    name: str, *, seed: int = 0, steps: int | None = None, progress: Progress | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Train organism `name` from scratch, planted or aligned; the same seed gives the same weights.

    Returns the module and its final figures (loss, accuracy, logit differences). `steps` defaults to what the bundled
    weights were trained for; `progress(step, steps, loss)` is called every 100 steps.
    """
    from .training import fit

    return fit(_recipe(name), seed, steps, progress)


def save(name: str, module: nn.Module, folder: str | Path) -> Path:
    """Write the module's weights to `folder/name.safetensors` and return that path."""
    from safetensors.torch import save_file

    recipe = _recipe(name)
    path, stored = Path(folder) / f"{recipe.name}.safetensors", recipe.schedule.stored
    save_file({key: value.detach().to(stored).contiguous() for key, value in module.state_dict().items()}, path)
    return path


def _recipe(name: str) -> Recipe:
    if name.startswith(_ALIGNED):
        from .interchange import recipe_named

        return recipe_named(name.removeprefix(_ALIGNED))
    if name not in _FILES:
        raise KeyError(f"no organism is called {name!r}; the bundled ones are {', '.join(_FILES)}")
    recipe: Recipe = import_module(f".{_FILES[name]}", __name__).RECIPE
    return recipe


def _read_truth(path: Path) -> Truth:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return Truth(
        tuple(stored["nodes"]), tuple(stored["edges"]), stored["mechanism"], stored["how_known"], stored["figures"]
    )
