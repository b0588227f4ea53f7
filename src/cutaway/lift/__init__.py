"""From the op graph to components: one dataflow pattern a file."""

from .blocks import Block, Read, Slots
from .lift import Component, Lifted, lift

__all__ = ["Block", "Component", "Lifted", "Read", "Slots", "lift"]
