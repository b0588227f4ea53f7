"""What a run computed: ops, values, module calls, addresses and listings, without torch."""

from .listing import listing
from .op import Graph, ModuleCall, Op, Value

__all__ = ["Graph", "ModuleCall", "Op", "Value", "listing"]
