"""Training that can stop at any moment and go on exactly: a safetensors file, written whole, with its plan as JSON."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from safetensors.torch import save
from torch import Tensor

from ..errors import CutawayError, FormatError, InputError
from ..formats import open_checkpoint
from ..formats.writing import write_whole
from .files import tensor_of

NAME, SCHEMA, VERSION = "training.safetensors", "cutaway.training", 1


def keep(folder: Path, tensors: Mapping[str, Tensor], plan: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write the state of a training; the state before it stays until this one is whole. Raises ResourceError."""
    told = msgspec.json.encode({"version": VERSION, "plan": plan, "facts": facts}).decode()
    apart = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    return write_whole(folder / NAME, save(apart, {SCHEMA: told}))


def kept(folder: Path, plan: Mapping[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """The state that a folder holds, if any: tensors, and facts such as the step.

    Raises InputError if it is of a training with another plan, FormatError if it is damaged.
    """
    path = folder / NAME
    if not path.exists():
        return None
    try:
        checkpoint = open_checkpoint(path)
        told = msgspec.json.decode(checkpoint.metadata["metadata"][SCHEMA])
        there, facts = dict(told["plan"]), dict(told["facts"])
        tensors = {name: tensor_of(checkpoint.numbers(name)) for name in checkpoint.tensors}
    except (KeyError, TypeError, ValueError, CutawayError, msgspec.MsgspecError) as error:
        raise FormatError(f"{str(path)!r} is a damaged checkpoint ({error}); remove it to train anew.") from error
    wanted = msgspec.json.decode(msgspec.json.encode(plan))
    if other := [name for name in {**wanted, **there} if wanted.get(name) != there.get(name)]:
        raise InputError(
            f"{str(folder)!r} holds a training with {other[0]} = {there.get(other[0])!r}, and this one has "
            f"{wanted.get(other[0])!r}; give the same settings to go on with it, or another folder to train anew."
        )
    return tensors, facts


@contextmanager
def interruptions() -> Iterator[list[int]]:
    """Signals to interrupt (Ctrl-C) that arrive inside the block, as they come: a step is never left half made.

    Outside the main thread, where Python delivers no signals, the list stays empty.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def hear(number: int, frame: FrameType | None) -> None:
        heard.append(number)

    before = signal.signal(signal.SIGINT, hear)
    try:
        yield heard
    finally:
        signal.signal(signal.SIGINT, before)
