"""Networks built from a recovered config, first without numbers to compare names and shapes, then with them.

The only file of this room that loads torch.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from cutaway.errors import ModelError
from cutaway.formats import Checkpoint
from cutaway.weights.recover import LEFTOVERS, Match, Recovery, recover

LAYERS = 1000  # the most that are built; a file may claim any number


def check(match: Match, shapes: dict[str, tuple[int, ...]]) -> None:
    """Build each class of a match on the meta device, and note the one whose names and shapes differ least."""
    best: list[str] | None = None
    for cls in match.family.classes:
        try:
            if any(isinstance(value, int) and value > LAYERS for key, value in match.config.items() if "layers" in key):
                raise ValueError(f"it would have more than {LAYERS:,} layers")
            module = _built(match, cls, "meta")
        except (ImportError, AttributeError):
            continue  # no such library, or a version of it without this class
        except Exception as error:  # noqa: BLE001 - libraries raise anything for sizes they do not expect
            found = [f"{cls} cannot be built: {str(error).splitlines()[0] if str(error) else type(error).__name__}"]
        else:
            found = differences(module, shapes)
        if best is None or len(found) < len(best):
            best, match.cls, match.differences = found, cls, found
        if not found:
            match.unseen = _unseen(match, module)
            return


def differences(module: nn.Module, shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """How a module's state dict differs from names and shapes; one name for a tied parameter is enough."""
    own = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    groups: dict[int, set[str]] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), set()).add(name)
    twins = {name: group for group in groups.values() for name in group}
    found = []
    for name, shape in own.items():
        if name not in shapes:
            if not any(twin in shapes for twin in twins.get(name, ())) and not LEFTOVERS.search(name):
                found.append(f"{name} {list(shape)} is missing")
        elif shapes[name] != shape:
            found.append(f"{name} is {list(shapes[name])} where {list(shape)} is built")
    return found + [f"{name} {list(shape)} is not built" for name, shape in shapes.items() if name not in own]


def load(checkpoint: Checkpoint, given: dict[str, Any] | None = None) -> tuple[nn.Module, Recovery]:
    """The network of a bare state dict with its numbers as float32, in eval mode, when recovery is certain.

    `given` settles fields of the config. Raises ModelError otherwise, with what is open.
    """
    found = recover(checkpoint, check, given)
    match = found.match
    if found.confidence != "certain" or match is None:
        raise ModelError(f"'{checkpoint.path.name}' holds weights without a config. {' '.join(found.why)}{_way(found)}")
    module = _built(match, match.cls, "cpu").eval()
    own = module.state_dict()
    with torch.no_grad():
        for name in checkpoint.tensors:
            inner = name.removeprefix(match.outer)
            if inner in own:
                numbers = torch.from_numpy(np.array(checkpoint.numbers(name)))
                own[inner].copy_(numbers)  # a tied parameter is written once for each of its names, with equal numbers
    return module, found


def _way(found: Recovery) -> str:
    """What to do about an uncertain recovery."""
    if found.match is not None and found.confidence == "ambiguous" and not found.also:
        row = found.match.candidates[0]
        return f" Say which, as in cutaway.open(path, config={row!r})."
    if found.also:
        return f" Say which, as in cutaway.open(path, config={{'family': '{found.also[0]}', …}})."
    return " Put the network's config.json beside it, or open the module that it was made from."


def _built(match: Match, cls: str, device: str) -> nn.Module:
    import transformers

    row = match.candidates[0] if match.candidates else {}
    with _quiet():
        config = getattr(transformers, match.family.config)(**match.config, **{
            key: value for key, value in row.items() if key not in match.config
        })  # fmt: skip
        padding, words = getattr(config, "pad_token_id", None), getattr(config, "vocab_size", None)
        if padding is not None and words is not None and padding >= words:
            config.pad_token_id = None  # the family's own token, which this vocabulary does not reach
        with torch.device(device):
            module: nn.Module = getattr(transformers, cls)(config)
    return module


def _unseen(match: Match, module: nn.Module) -> dict[str, Any]:
    """The family's defaults for what no shape shows, unless they were given."""
    config: Any = module.config
    rope = getattr(config, "rope_parameters", None) or {}
    values = {name: getattr(config, name, rope.get(name)) for name in match.family.unseen if name not in match.config}
    return {name: value for name, value in values.items() if isinstance(value, (int, float, str, bool))}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the warnings that odd sizes cause in libraries; what matters is compared afterwards."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
