"""Every error that Cutaway raises on purpose, as one tree.

    CutawayError
    ├── SiteError         an address that matches nothing, or an index that the value does not have
    ├── InputError        inputs that cannot be used: wrong kind, different lengths, empty batch, NaN
    ├── MetricError       a metric that cannot be read from this network's output, or that does not distinguish
    ├── ModelError        a network that cannot be opened, or that fails in its forward pass
    ├── DivergenceError   a replay that would take another branch than the recording, or stale weights
    ├── FormatError       a file that is not what it says, or is unsafe to read
    ├── ProjectError      a project that cannot be opened or changed
    └── ResourceError     disk, memory or time that is not there

Each message is one sentence that says what is wrong, where, and what to do about it. The command line prints the
message alone and ends with exit status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CutawayError(Exception):
    """Root of the tree; catch it to catch every mistake that a caller can mend."""


class SiteError(CutawayError):
    """A site that matches nothing in this run, or an index outside the value's shape."""


class InputError(CutawayError):
    """Inputs that cannot be used as they are."""


class MetricError(CutawayError):
    """A metric that cannot be computed here, or that tells nothing."""


class ModelError(CutawayError):
    """A network that cannot be opened or run."""


class DivergenceError(CutawayError):
    """A replay that is no longer the run that was recorded."""


class FormatError(CutawayError):
    """A file that cannot be read safely."""


class ProjectError(CutawayError):
    """A project that cannot be opened or changed."""


class ResourceError(CutawayError):
    """The machine lacks what the job needs."""


def nearest(wrong: str, known: Iterable[str], count: int = 3) -> str:
    """The known names that come near a wrong one, else the first ones, for the end of a message."""
    names = list(known)
    return ", ".join(difflib.get_close_matches(wrong, names, n=count) or names[:count])
