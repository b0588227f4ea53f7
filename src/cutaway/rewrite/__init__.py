"""Weights rewritten so that a network does by itself what an intervention makes it do."""

from __future__ import annotations

from .edit import Edited, edit_file, edited_weights
from .responsible import removed_everywhere

__all__ = ["Edited", "edit_file", "edited_weights", "removed_everywhere"]
