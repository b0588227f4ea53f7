"""Every fault in the package's machinery is noticed by the package itself, and by nothing where there is none."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from faults import FAULTS, Fault
from torch.nn.modules import module as hooks

import cutaway as cw


@pytest.fixture(autouse=True)
def torch_put_back() -> Iterator[None]:
    """Faults leave things behind; the next test must not meet them."""
    state, dtype = torch.get_rng_state(), torch.get_default_dtype()
    held = {name: dict(getattr(hooks, name)) for name in dir(hooks) if name.startswith("_global_") and "hooks" in name}
    apply = torch.autograd.Function.__dict__["apply"]
    script = torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__
    yield
    torch.set_rng_state(state)
    torch.set_default_dtype(dtype)
    for name, table in held.items():
        getattr(hooks, name).clear()
        getattr(hooks, name).update(table)
    torch.autograd.Function.apply = apply
    torch._C.ScriptFunction.__call__, torch._C.ScriptMethod.__call__ = script


def test_there_are_enough_kinds_of_fault() -> None:
    assert len({fault.name for fault in FAULTS}) >= 24


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_noticed(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    module, args, kwargs = fault.build()
    sound = cw.check(module, *args, **kwargs)
    assert sound.verified, str(sound)
    module, args, kwargs = fault.build()
    net = cw.open(module)
    fault.inject(monkeypatch)
    found = cw.check(net, *args, **kwargs)
    assert not found.verified
    assert not found.record()["ok"]
    assert fault.says in wrong(found), str(found)


def wrong(found: cw.Check) -> str:
    """The names of the figures that are off, and the problems."""
    off = [name for name, error in found.errors.items() if error is not None and error > 1e-5]
    return "\n".join([*off, *found.problems])
