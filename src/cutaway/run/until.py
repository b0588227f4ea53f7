"""A run that ends where the values that are wanted of it are there: what comes after them is never computed."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from ..graph import Graph
from .keep import Enough, Kept
from .network import Network
from .record import record_tape
from .structure import fresh
from .untouched import Snapshot


class Begun(NamedTuple):
    """A run as far as it went: its graph up to there, and the wanted values by raw address."""

    graph: Graph
    values: dict[str, Tensor]

    def follows(self, whole: Graph) -> bool:
        """Whether it made the same calls on the same values as another run did, as far as it went."""
        mine, theirs = self.graph, whole
        return len(mine.ops) <= len(theirs.ops) and all(
            one.name == two.name and one.inputs == two.inputs and one.outputs == two.outputs
            and mine.modules[one.module].name == theirs.modules[two.module].name
            for one, two in zip(mine.ops, theirs.ops, strict=False)
        )  # fmt: skip


def run_until(net: Network, snapshot: Snapshot, addresses: list[str], *inputs: Any, **kwargs: Any) -> Begun:
    """Run a network until the values at some raw addresses (of ops, none inside others) are there.

    The values are those that `net.record` gives. What does not occur in this run is absent. `snapshot` is of the
    module. Raises what `record` raises.
    """
    args, kwargs = net._inputs(inputs, kwargs)
    net.check_weights()
    try:
        own_args, own_kwargs = fresh((args, kwargs))
        tape, _ = record_tape(net.module, own_args, own_kwargs, Kept(addresses, stop=True), None, snapshot)
        graph, values = tape.graph, tape.kept
    except Enough as enough:
        graph, values = enough.graph, enough.values
    finally:
        net.renew_seals()
    by_address = {graph.site(value): tensor.detach() for value, tensor in values.items()}
    return Begun(graph, {address: by_address[address] for address in addresses if address in by_address})
