"""From an intervention to a checkpoint that does the same, verified before it is put in place.

What `responsible` proposes is tried on the network (its parameters exchanged for one call, then put back): the first
proposal under which the output equals the intervention's is written. The file is then opened again, its numbers are put
in the network, and compared once more, so a type too coarse for the edit is noticed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.func import functional_call

from .. import organisms
from ..errors import InputError
from ..formats import Checkpoint, open_checkpoint
from ..run.interventions import Intervention
from ..run.network import Network
from ..run.structure import swap
from ..run.trace import Trace, main_output
from ..weights.copying import write_copy
from ..weights.diff import Difference, compare
from .responsible import Proposal, proposals

TOLERANCE = 1e-5  # of the largest output, or of one
POSITIONAL = ("batch", "pos", "query", "key", "time", "height", "width")


@dataclass(frozen=True)
class Edited:
    """A written edit. `error` is the largest difference of the edited file's outputs from the intervention's, `change`
    what the intervention changed in them; both relative to the largest output, over `inputs` sets of inputs."""

    source: Path
    out: Path
    way: str
    tensors: tuple[str, ...]
    error: float
    change: float
    inputs: int
    difference: Difference

    def record(self) -> dict[str, Any]:
        """Everything as JSON-able data."""
        return {
            "source": str(self.source), "out": str(self.out), "way": self.way, "tensors": list(self.tensors),
            "error": self.error, "change": self.change, "inputs": self.inputs, "difference": self.difference.record(),
        }  # fmt: skip


def edited_weights(trace: Trace, interventions: Sequence[Intervention]) -> tuple[Proposal, float]:
    """New parameters under which the network gives what it gives with the interventions, and the largest error.

    Tried on the recording's inputs and on random ones of the same kind. Raises InputError where none do.
    """
    for what in interventions:
        if place := next((axis for axis, _ in what.site.index if axis in POSITIONAL), None):
            raise InputError(f"'{what.site}' is edited at one '{place}' only, and weights are the same everywhere.")
    worlds = [trace, _other(trace)]
    wanted = [world.replay(*interventions).logits.detach() for world in worlds]
    best = float("inf")
    for proposal in proposals(trace, interventions):
        error = max(_error(world, proposal.parameters, want) for world, want in zip(worlds, wanted, strict=True))
        if error <= TOLERANCE:
            return proposal, error
        best = min(best, error)
    what = interventions[0]
    reason = (
        f"the parameters that come nearest are used elsewhere too and leave an error of {best:.1e}"
        if best < float("inf")
        else "no parameter alone multiplies or makes it"
        if what.kind in ("zero", "scale", "project_out")
        else f"'{what.kind}' depends on other runs; use zero, scale or project_out"
    )
    raise InputError(f"No weights do what '{what.kind}' does at '{what.site}': {reason}.")


def edit_file(trace: Trace, interventions: Sequence[Intervention], out: str | Path) -> Edited:
    """Write the network's checkpoint with the edit in its weights to `out`, a new file, or folder for several files.

    Raises InputError where no weights do it, or the file's number type is too coarse; FormatError, ResourceError.
    """
    proposal, _ = edited_weights(trace, interventions)
    source = open_checkpoint(_file_of(trace.net))
    changed: dict[str, np.ndarray] = {}
    owners: dict[str, str] = {}
    for path, new in proposal.parameters.items():
        for name in _names_in(source, trace.net, path):
            changed[name], owners[name] = new.detach().cpu().numpy(), path
    worlds = [trace, _other(trace)]
    wanted = [world.replay(*interventions).logits.detach() for world in worlds]
    errors: list[float] = []
    found: list[Difference] = []

    def verify(copy: Checkpoint) -> None:
        own = {owners[name]: torch.from_numpy(np.array(copy.numbers(name), np.float32)) for name in changed}
        errors.append(max(_error(world, own, want) for world, want in zip(worlds, wanted, strict=True)))
        if not errors[-1] <= TOLERANCE:
            types = ", ".join(sorted({source.tensors[name].dtype for name in changed}))
            raise InputError(f"The file's {types} cannot hold this edit: it would be off by {errors[-1]:.1e}.")
        found.append(compare(source, copy))
        if strange := [row.name for row in found[0].changes if row.status != "same" and row.name not in changed]:
            raise InputError(f"The copy differs in {strange[0]}, which was not edited; nothing was written.")

    written = write_copy(source, changed, Path(out), verify)
    found[0].paths = (str(source.path), str(written))
    change = max(_relative(world.logits.detach(), want) for world, want in zip(worlds, wanted, strict=True))
    return Edited(
        source.path, written, proposal.way, tuple(changed), errors[0], change, len(worlds), found[0]
    )


def _error(world: Trace, parameters: dict[str, Tensor], want: Tensor) -> float:
    """How far the network with these parameters is from a wanted output; the network is as before afterwards."""
    own = dict(world.net.module.named_parameters(remove_duplicate=False))
    given = {path: new.to(own[path]) for path, new in parameters.items()}
    args, kwargs = (swap(part, Tensor, torch.clone) for part in (world.args, world.kwargs))
    with torch.no_grad():
        return _relative(main_output(functional_call(world.net.module, given, args, kwargs)), want)


def _relative(got: Tensor, want: Tensor) -> float:
    scale = max(float(want.abs().max()), 1.0) if want.numel() else 1.0
    return float((got - want).abs().max()) / scale if want.numel() else 0.0


def _other(trace: Trace) -> Trace:
    """The network on random inputs of the same kind: ids among those seen, or numbers of the same spread."""
    generator = torch.Generator().manual_seed(0)

    def drawn(tensor: Tensor) -> Tensor:
        if tensor.dtype == torch.bool or tensor.numel() < 2:
            return tensor
        if not tensor.is_floating_point():
            low, high = int(tensor.min()), int(tensor.max())
            drawn = torch.randint(low, high + 1, tensor.shape, generator=generator, dtype=tensor.dtype)
            return drawn if low >= 0 and high > 1 else tensor  # a mask of zeros and ones stays
        noise = torch.randn(tensor.shape, generator=generator, dtype=torch.float32)
        return (noise * tensor.std() + tensor.mean()).to(tensor)

    args, kwargs = (swap(part, Tensor, drawn) for part in (trace.args, trace.kwargs))
    return trace.net.record(*args, **kwargs)


def _file_of(net: Network) -> Path:
    """The file or folder that a network was opened from."""
    kind, _, where = net.source.partition(":")
    if kind == "organism":
        return Path(organisms.__file__).parent / "weights" / f"{where}.safetensors"
    if kind not in ("folder", "file"):
        raise InputError(f"'{net.name}' was not opened from a file here; open its folder or checkpoint to edit it.")
    return Path(where)


def _names_in(source: Checkpoint, net: Network, path: str) -> list[str]:
    """The tensors of a file that hold a parameter: of its name, or a part of it, and with its numbers."""
    parameters = dict(net.module.named_parameters(remove_duplicate=False))
    twins = [name for name, other in parameters.items() if other is parameters[path]]
    numbers = parameters[path].detach().cpu().float().numpy()

    def fits(name: str) -> bool:
        near = any(name == twin or name.endswith(f".{twin}") or twin.endswith(f".{name}") for twin in twins)
        return near and source.tensors[name].shape == numbers.shape and np.array_equal(source.numbers(name), numbers)

    found = [name for name in source.tensors if fits(name)]
    if not found:
        raise InputError(f"{source.path.name} holds no tensor with the numbers of '{path}', so it cannot be edited.")
    return found
