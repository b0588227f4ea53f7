"""Verbs that read weights without running them, and one that writes them: `recover`, `health`, `diff`, `edit`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from .. import organisms
from ..errors import CutawayError, InputError
from ..formats import open_checkpoint
from ..report import weights_text
from ..weights import compare
from ..weights import health as measure
from ..weights import recover as recognise
from . import store
from .looking import NOTHING, Model, Texts
from .progress import report
from .verb import Argument, Result, near, verb

if TYPE_CHECKING:
    from ..run.interventions import Intervention
    from ..run.trace import Trace
    from ..weights.recover import Check

File = Annotated[str, Argument("A checkpoint file, or a folder with one.", positional=True)]
EDITS = ("zero", "scale=FACTOR", "remove")


@verb("recover", show=weights_text.recovered, chapter="Look")
def recover(
    file: File,
    given: Annotated[
        list[str], Argument("A field of the config that is known, as in num_attention_heads=8.", shown="FIELD=VALUE")
    ] = NOTHING,
    names: Annotated[bool, Argument("By names and shapes alone: build nothing, load no torch.")] = False,
) -> Result:
    """What network a checkpoint without a config belongs to: family, sizes, a config, and what is left open."""
    found = recognise(open_checkpoint(file), None if names else _building(), dict(map(_field, given)))
    return {"path": file, **store.plain(found.record())}


def _building() -> Check:
    from ..weights.build import check

    return check


def _field(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InputError(f"'{text}' is no field with a value; write it as in num_attention_heads=8.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value


@verb("health", show=weights_text.healthy, chapter="Look")
def health(
    model: Annotated[str, Argument("A checkpoint file, a folder with one, or an organism.", positional=True)],
    text: Texts = NOTHING,
) -> Result:
    """Spectra, effective ranks, dead units, twins, growth over layers and superposition of every matrix.

    With an organism, or a folder and --text, also what every head copies and which heads compose.
    """
    bundled = Path(organisms.__file__).parent / "weights" / f"{model}.safetensors"
    path = bundled if model in organisms.names() else Path(model)
    found = measure(open_checkpoint(path), report)
    heads = _heads(model, text) if text or path == bundled else None
    result: Result = store.plain({"model": model, **found, "heads": heads})
    return result


def _heads(model: str, text: list[str]) -> dict[str, Any] | None:
    """Copying scores of all heads and the pairs that compose most; None without attention."""
    from ..lift.weights import composition
    from .subject import inputs_of, open_model

    net = open_model(model)
    trace = net.record(inputs_of(net, text))
    blocks = [block for block in trace.lift().blocks if block.kind == "attention"]
    if not blocks:
        return None
    copying = {name: _copying(trace, name) for block in blocks for name in block.slot_names()}
    pairs = {kind: composition(trace, kind).top(5) for kind in ("q", "k", "v")}
    return {"copying": copying, "composition": {kind: [list(row) for row in rows] for kind, rows in pairs.items()}}


def _copying(trace: Trace, head: str) -> float | None:
    """Σ Re λ / Σ |λ| of W_E · OV · W_U (Elhage et al. 2021): 1 where attending to a token raises the same token, −1
    where it lowers it. None where inputs are not embedded by a table of the outputs' size, or no linear path leads
    there.
    """
    import numpy as np

    from ..lift.weights import virtual_weights

    graph = trace.graph
    tables = [
        trace.tape.leaves[value].detach()
        for op in graph.ops if op.name == "embedding" for value in op.inputs
        if graph.values[value].kind == "param" and graph.values[value].shape[0] == trace.logits.shape[-1]
    ]  # fmt: skip
    try:
        reads = virtual_weights(trace, f"{head}.v", "embed", norm="unit").matrix
        writes = virtual_weights(trace, "logits", head, norm="unit").matrix
    except CutawayError:
        return None
    if not tables or writes.shape[-1] != len(tables[0]) or reads.shape[0] != tables[0].shape[1]:
        return None
    values = np.linalg.eigvals((writes @ tables[0] @ reads).double().cpu().numpy())  # those that are not zero
    return float(values.real.sum() / max(np.abs(values).sum(), 1e-30))


@verb("diff", show=weights_text.differing, chapter="Look")
def diff(
    before: File,
    after: Annotated[str, Argument("Another, of any format.", positional=True)],
) -> Result:
    """What changed between two checkpoints, tensor by tensor: where, by how much, of which rank."""
    found: Result = store.plain(compare(open_checkpoint(before), open_checkpoint(after)).record())
    return found


@verb("edit", show=weights_text.edited, chapter="Explain")
def edit(
    model: Model,
    site: Annotated[str, Argument("Where: L1.attn.h2, L0.mlp.act[neuron=3], or resid for the whole residual stream.")],
    edit: Annotated[str, Argument(f"What to do there: {', '.join(EDITS)}.")],
    out: Annotated[str, Argument("The new checkpoint: a file, or a folder where weights lie in several files.")],
    direction: Annotated[str, Argument("A .npy file with the direction [d] that `remove` takes away.")] = "",
    text: Texts = NOTHING,
    project: Annotated[str, Argument("The project that keeps what was changed.")] = "",
) -> Result:
    """Write a checkpoint whose weights do what an intervention does, verified before it is put in place.

    The source is never touched, nor a file that is there already.
    """
    from ..rewrite import edit_file
    from .subject import facts, inputs_of, open_model

    if project:
        store.check(project)
    net = open_model(model)
    trace = net.record(inputs_of(net, text))
    done = edit_file(trace, _interventions(trace, site, edit, direction), out)
    result: Result = store.plain({"model": model, "site": site, "edit": edit, **done.record(), "facts": facts(net)})
    if project:
        result |= store.keep_record(project, result["facts"], "edit", result, {})
    return result


def _interventions(trace: Trace, site: str, edit: str, direction: str) -> list[Intervention]:
    """What a word on the command line means."""
    import torch

    from ..rewrite import removed_everywhere
    from ..run import interventions as make

    kind, equals, factor = edit.partition("=")
    if kind == "remove" and not equals:
        if not direction:
            raise InputError("The edit 'remove' takes a direction away; name its .npy file with --direction.")
        file = open_checkpoint(direction)
        vector = torch.from_numpy(file.numbers(next(iter(file.tensors))).astype("float32"))
        return removed_everywhere(trace, vector) if site == "resid" else [make.project_out(site, vector)]
    if kind == "zero" and not equals:
        return [make.zero(site)]
    if kind != "scale":
        raise InputError(f"There is no edit '{edit}' of weights{near(kind, EDITS)}")
    try:
        return [make.scale(site, float(factor))]
    except ValueError:
        raise InputError(f"'{edit}' has no factor; write a finite number, as in scale=0.5.") from None
