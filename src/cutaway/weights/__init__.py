"""Reading weights without running them: whose they are, how sound they are, what changed between two files.

Only `build` loads torch, and only when it is asked for.
"""

from __future__ import annotations

from cutaway.weights.diff import compare
from cutaway.weights.health import health
from cutaway.weights.recover import recover

__all__ = ["compare", "health", "recover"]
