"""Faults put into the package's own machinery, one each, as a mistake in it would be.

A fault is a function that breaks something through pytest's monkeypatch. It names the network on which it must be
noticed: an entry of the zoo, or one written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cutaway.attribution import sums
from cutaway.graph import Graph
from cutaway.run import compare, interventions, network, record, replay, tape, trace, watching
from zoo import ZOO

Inputs = tuple[Any, ...]
Patch = pytest.MonkeyPatch


class Difference(nn.Module):
    """Two branches, one subtracted from the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(torch.tanh(self.a(x)) - torch.sigmoid(self.b(x)))


class Deciding(nn.Module):
    """Takes a branch by the first row's first number."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.a(x))
        return self.b(h) if x[0, 0] > 0 else self.b(h * h)


class Residual(nn.Module):
    """A block that is added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.up, self.down, self.out = (
            nn.Linear(6, 8), nn.Linear(8, 12), nn.Linear(12, 8), nn.Linear(8, 4)
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        x = self.into(x)
        return self.out(x + self.down(torch.relu(self.up(x))))


@dataclass(frozen=True)
class Fault:
    """What is broken, on which network, and what the finding says of it (a part of the text)."""

    name: str
    network: str | type[nn.Module]
    inject: Callable[[Patch], None]
    says: str

    def build(self) -> tuple[nn.Module, Inputs, dict[str, Any]]:
        """The network with inputs."""
        if isinstance(self.network, str):
            return ZOO[self.network].make()
        torch.manual_seed(0)
        module = self.network()
        x = torch.randn(3, 6)
        x[:, 0] = torch.tensor([1.0, -1.0, -1.0])
        return module, (x,), {}


FAULTS: list[Fault] = []


def fault(name: str, network: str | type[nn.Module], says: str) -> Callable[[Callable[[Patch], None]], Any]:
    """Add a fault to the list."""

    def declare(inject: Callable[[Patch], None]) -> Callable[[Patch], None]:
        FAULTS.append(Fault(name, network, inject, says))
        return inject

    return declare


def around(patch: Patch, owner: Any, name: str, change: Callable[..., Any]) -> None:
    """Put `change(original, *args, **kwargs)` in the place of a function."""
    original = getattr(owner, name)
    patch.setattr(owner, name, lambda *args, **kwargs: change(original, *args, **kwargs))


# ---- edits


@fault("a live edit is made twice", "mlp", "2 times")
def _(patch: Patch) -> None:
    around(patch, watching, "_through", lambda real, edits, value: real([*edits, *edits], value))


@fault("a replayed edit is made twice", "mlp", "2 times")
def _(patch: Patch) -> None:
    def twice(real: Any, tape: Any, steps: Any, edits: Any = (), *rest: Any, **more: Any) -> Any:
        return real(tape, steps, [lambda v, e=edit: e(e(v)) for edit in edits], *rest, **more)

    around(patch, trace, "execute", twice)


@fault("an edit is dropped", "mlp", "0 times")
def _(patch: Patch) -> None:
    around(patch, trace, "plan", lambda real, tape, places, *rest, **more: real(tape, [], *rest, **more))


@fault("a live edit is dropped", "mlp", "0 times live")
def _(patch: Patch) -> None:
    around(patch, network, "record_tape", lambda real, m, a, k, keep, edits=None, *rest: real(m, a, k, keep, {}, *rest))


@fault("an edit lands one position further", "gpt2", "edits")
def _(patch: Patch) -> None:
    def shifted(real: Any, site: Any, axes: Any, shape: Any) -> Any:
        found = real(site, axes, shape)
        return tuple((i + 1) % n if isinstance(i, int) else i for i, n in zip(found, shape, strict=True))

    around(patch, trace, "indices", shifted)


@fault("an edit lands in another row of the batch", "mlp", "edits")
def _(patch: Patch) -> None:
    def moved(real: Any, value: Tensor, where: Any, part: Tensor) -> Tensor:
        return real(value.roll(1, 0), where, part).roll(-1, 0)

    around(patch, interventions, "put", moved)


@fault("an edit lands at another site", "mlp", "edits")
def _(patch: Patch) -> None:
    def other(real: Any, graph: Graph, name: str) -> Any:
        names = list(graph.exits)
        return real(graph, names[(names.index(name) + 1) % len(names)] if name in names else name)

    original = Graph.find
    patch.setattr(Graph, "find", lambda graph, name: other(original, graph, name))


@fault("a tied weight is edited where it is read first", "tied", "edits")
def _(patch: Patch) -> None:
    def first(place: Any, op: int) -> bool:
        seen.setdefault(place.value, op)
        return op == seen[place.value]

    seen: dict[int, int] = {}
    patch.setattr(replay.Place, "seen_by", first)


@fault("a later call of a module is edited at its first one", "called twice", "edits")
def _(patch: Patch) -> None:
    original = Graph.find
    patch.setattr(Graph, "find", lambda graph, name: original(graph, name.partition("@")[0]))


# ---- values


@fault("inputs are padded on the left", "gpt2", "other inputs than those given")
def _(patch: Patch) -> None:
    def padded(real: Any, net: Any, *given: Any) -> Any:
        args, kwargs = real(net, *given)
        return tuple(torch.cat([torch.zeros_like(ids[:, :1]), ids], 1) for ids in args), kwargs

    original = network.Network._inputs
    patch.setattr(network.Network, "_inputs", lambda net, *given: padded(original, net, *given))


@fault("the rows of a batch are exchanged", "mlp", "other inputs than those given")
def _(patch: Patch) -> None:
    def exchanged(real: Any, net: Any, *given: Any) -> Any:
        args, kwargs = real(net, *given)
        return tuple(rows.flip(0) for rows in args), kwargs

    original = network.Network._inputs
    patch.setattr(network.Network, "_inputs", lambda net, *given: exchanged(original, net, *given))


@fault("a recording keeps the values of the one before it", "mlp", "replay")
def _(patch: Patch) -> None:
    module, args, _ = ZOO["mlp"].make()
    held, _ = record.record_tape(module, (args[0] + 1,), {})

    def stale(real: Any, *args: Any) -> Any:
        found, out = real(*args)
        outputs = found.graph.outputs
        found.kept = {value: held.kept[value] if value not in outputs else kept for value, kept in found.kept.items()}
        return found, out

    around(patch, network, "record_tape", stale)


@fault("the arguments of an op are swapped", Difference, "replay")
def _(patch: Patch) -> None:
    def swapped(real: Any, *args: Any) -> Any:
        found, out = real(*args)
        for op, call in zip(found.graph.ops, found.calls, strict=True):
            if op.name == "sub" and call.slots:
                (one, first), (two, second) = call.slots
                call.slots = [(one, second), (two, first)]
        return found, out

    around(patch, network, "record_tape", swapped)


@fault("a write through a view reaches no other view", "view writes", "replay")
def _(patch: Patch) -> None:
    patch.setattr(tape.Logger, "_sync_aliases", lambda log, written: None)


@fault("a kept value is overwritten by a later write", "lenet", "replay")
def _(patch: Patch) -> None:
    original = tape.Logger.prepare_write

    def careless(log: Any, targets: Any) -> None:
        kept = dict(log.tape.kept)
        original(log, targets)
        log.tape.kept.update(kept)

    patch.setattr(tape.Logger, "prepare_write", careless)


def _forgetting(patch: Patch, field: str) -> None:
    """Make the recording lose what every call was made under."""

    def forgetful(real: Any, *args: Any) -> Any:
        found, out = real(*args)
        for call in found.calls:
            setattr(call, field, None)
        return found, out

    around(patch, network, "record_tape", forgetful)


@fault("dropout draws anew in a replay", "dropout", "edits")
def _(patch: Patch) -> None:
    _forgetting(patch, "rng")


@fault("the precision of a block is lost in a replay", "autocast and no_grad", "replay")
def _(patch: Patch) -> None:
    _forgetting(patch, "autocast")


@fault("the inside of attention has another scale", "gpt2", "replay")
def _(patch: Patch) -> None:
    def scaled(real: Any, tape: Any, indices: Any) -> Any:
        found = real(tape, indices)
        for op, call in zip(found.graph.ops, found.calls, strict=True):
            if "softmax" in op.name and op.inside:
                call.func = lambda *args, f=call.func, **kwargs: f(*args, **kwargs) * 0.9
        return found

    around(patch, trace, "opened", scaled)


@fault("a branch that would differ is not noticed", Deciding, "edits")
def _(patch: Patch) -> None:
    patch.setattr(replay, "_compare", lambda tape, op, out: None)


@fault("a world sees the values of another", "mlp", "edits")
def _(patch: Patch) -> None:
    def mixed(real: Any, run: Any, given: Any) -> Tensor:
        found = real(run, given)
        return found.roll(1, 0) if len(found) > 1 else found

    around(patch, compare, "over", mixed)


@fault("the gradient of a replay is cut", "mlp", "gradient")
def _(patch: Patch) -> None:
    def cut(real: Any, tape: Any, steps: Any, edits: Any = (), *rest: Any, **more: Any) -> Any:
        return real(tape, steps, [lambda v, e=edit: e(v).detach() + 0 * v for edit in edits], *rest, **more)

    around(patch, trace, "execute", cut)


@fault("the recorded output is rounded", "mlp", "output")
def _(patch: Patch) -> None:
    def rounded(real: Any, *args: Any) -> Any:
        found, out = real(*args)
        return found, out.bfloat16().float()

    around(patch, network, "record_tape", rounded)


@fault("an edge is left out", Residual, "edges")
def _(patch: Patch) -> None:
    original = sums.Wiring.divide
    patch.setattr(
        sums.Wiring, "divide", lambda wiring, read, feeds, stops: original(wiring, read, list(feeds)[:1], stops)
    )


# ---- what is left behind


def _leaving(patch: Patch, act: Callable[[nn.Module], Any], failing_only: bool = False) -> None:
    """Make every recording end with `act` on its model."""
    original = record.untouched

    @contextmanager
    def leaky(model: nn.Module, *rest: Any) -> Iterator[None]:
        failed = True
        try:
            with original(model, *rest):
                yield
            failed = False
        finally:
            if failed or not failing_only:
                act(model)

    patch.setattr(record, "untouched", leaky)


@fault("the generator is advanced", "mlp", "random numbers of torch changed")
def _(patch: Patch) -> None:
    _leaving(patch, lambda model: torch.rand(1))


@fault("a hook is left on a module", "mlp", "attributes of '1' changed")
def _(patch: Patch) -> None:
    _leaving(patch, lambda model: model[1].register_forward_hook(lambda mod, args, out: None))


@fault("requires_grad is left off", "mlp", "requires_grad of '0.weight' changed")
def _(patch: Patch) -> None:
    _leaving(patch, lambda model: model[0].weight.requires_grad_(False))


@fault("a gradient is left", "mlp", ".grad of '0.bias' changed")
def _(patch: Patch) -> None:
    _leaving(patch, lambda model: setattr(model[0].bias, "grad", torch.zeros(10)))


@fault("training mode is left on", "encoder norm first", "training")
def _(patch: Patch) -> None:
    _leaving(patch, lambda model: model.train())


@fault("a buffer that the run wrote is not put back", "resnet training", "weights and buffers of")
def _(patch: Patch) -> None:
    patch.setattr(tape.Logger, "undo_writes", lambda log: None)


@fault("an interrupted run leaves its hooks", "mlp", "global module hooks of")
def _(patch: Patch) -> None:
    original, left = record.watching, []

    @contextmanager
    def leaky(mode: Any, model: nn.Module) -> Iterator[None]:
        manager = original(mode, model)
        manager.__enter__()
        left.append(manager)
        yield
        left.pop().__exit__(None, None, None)

    patch.setattr(record, "watching", leaky)


@fault("the default dtype is left changed after an exception", "mlp", "default dtype changed")
def _(patch: Patch) -> None:
    _leaving(patch, lambda model: torch.set_default_dtype(torch.float64), failing_only=True)


@fault("a function of torch stays patched", "mlp", "patched methods changed")
def _(patch: Patch) -> None:
    original = torch.autograd.Function.__dict__["apply"]
    patch.setattr(torch.autograd.Function, "apply", original)  # put back at the end of the test

    def act(model: nn.Module) -> None:
        torch.autograd.Function.apply = classmethod(lambda cls, *args: original.__get__(None, cls)(*args))

    _leaving(patch, act)
