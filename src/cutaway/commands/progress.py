"""Progress of long jobs: verbs report, whoever shows it listens. Without a listener reports go nowhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
_listener: ContextVar[Listener | None] = ContextVar("listener", default=None)


def report(stage: str, done: int, of: int) -> None:
    """Say that `done` of `of` steps of a stage are done."""
    if (listener := _listener.get()) is not None:
        listener(stage, done, of)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Hear the reports made inside the block, in this thread or task only."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
