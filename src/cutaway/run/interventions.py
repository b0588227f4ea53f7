"""Interventions: a site and an edit, as data.

`zero`, `mean`, `resample`, `patch`, `add`, `scale`, `project_out` and `apply` make one. An edit acts on the part of the
value that the site's indices name, in a basis if one is given; the rest of the value is left alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from ..basis import Basis, edit_in
from ..errors import CutawayError, InputError, SiteError
from ..site import Index, Site, read_index


@dataclass(frozen=True, eq=False)
class Intervention:
    """An edit at a site. `arg` is what the kind needs: a source run, a vector, a factor or a function."""

    site: Site
    kind: str
    arg: Any = None
    basis: Basis | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """What the intervention does, JSON-able; tensors and runs by their shape or name."""
        return {"site": str(self.site), "kind": self.kind, "arg": _describe(self.arg), **self.settings}


def zero(site: str | Site, basis: Basis | None = None) -> Intervention:
    """Zero ablation."""
    return Intervention(Site.parse(site), "zero", basis=basis)


def mean(site: str | Site, over: Any = None, basis: Basis | None = None) -> Intervention:
    """Mean ablation: the mean over the batch of `over` (a trace), or of the run itself."""
    return Intervention(Site.parse(site), "mean", over, basis)


def resample(site: str | Site, source: Any = None, seed: int = 0, basis: Basis | None = None) -> Intervention:
    """Resample ablation: the value of another, randomly drawn row of `source` (a trace), or of the run itself."""
    return Intervention(Site.parse(site), "resample", source, basis, {"seed": seed})


def patch(site: str | Site, source: Any, basis: Basis | None = None) -> Intervention:
    """Activation patching: the value from `source`, a trace or a tensor of the part's shape."""
    return Intervention(Site.parse(site), "patch", source, basis)


def add(site: str | Site, vector: Tensor, factor: float = 1.0, basis: Basis | None = None) -> Intervention:
    """Steering: add `factor * vector`, broadcast over the part's leading axes."""
    return Intervention(Site.parse(site), "add", vector, basis, {"factor": factor})


def scale(site: str | Site, factor: float | Tensor, basis: Basis | None = None) -> Intervention:
    """Multiply by a factor. Raises InputError for NaN, which would spread to all that follows."""
    given = torch.as_tensor(factor) if isinstance(factor, (int, float, Tensor)) else torch.zeros(())
    if not torch._C._functorch.is_batchedtensor(given) and bool(given.isnan().any()):
        raise InputError(f"The factor for '{site}' is NaN; give a number.")
    return Intervention(Site.parse(site), "scale", factor, basis)


def project_out(site: str | Site, direction: Tensor, basis: Basis | None = None) -> Intervention:
    """Remove the component along `direction` [d] or the span of its rows [k, d] on the last axis."""
    return Intervention(Site.parse(site), "project_out", direction, basis)


def apply(site: str | Site, function: Callable[[Tensor], Tensor], basis: Basis | None = None) -> Intervention:
    """Any function of the part (indexed axes are kept with length one)."""
    return Intervention(Site.parse(site), "apply", function, basis)


# Each edit: (part of the value, the same part of the source run or None, intervention) to the new part.
def _resample(part: Tensor, source: Tensor | None, what: Intervention) -> Tensor:
    pool = part if source is None else source
    if source is None and len(pool) == 1:
        raise InputError(f"A batch of one has no other row to resample '{what.site}' from; give a source run.")
    generator = torch.Generator().manual_seed(what.settings["seed"])
    if len(pool) != len(part) or len(pool) == 1:
        return pool[torch.randint(0, len(pool), (len(part),), generator=generator).to(pool.device)]
    rows = torch.randint(0, len(pool) - 1, (len(part),), generator=generator)
    return pool[(rows + (rows >= torch.arange(len(part))).long()).to(pool.device)]


def _project_out(part: Tensor, source: Tensor | None, what: Intervention) -> Tensor:
    rows = torch.atleast_2d(what.arg.to(part))
    if rows.shape[-1] != part.shape[-1]:
        raise InputError(
            f"'{what.site}' has {part.shape[-1]} numbers on its last axis and the direction {rows.shape[-1]}; "
            "give one of the same length."
        )
    _, sizes, axes = torch.linalg.svd(rows.to(torch.promote_types(rows.dtype, torch.float32)), full_matrices=False)
    span = axes[sizes > sizes.max() * 1e-6].to(part)  # orthonormal rows; dependent directions add none
    if not sizes.max() > 0:
        raise InputError(f"The direction to project out of '{what.site}' is zero; give one that points somewhere.")
    return part - (part @ span.T) @ span


def _fitted(part: Tensor, what: Intervention, dropped: tuple[int, ...]) -> Tensor:
    """A tensor argument broadcast to the part: given with the indexed axes dropped, kept, or left to broadcasting."""
    given = torch.as_tensor(what.arg).to(part)
    short = tuple(size for axis, size in enumerate(part.shape) if axis not in dropped)
    if dropped and tuple(given.shape) == short:
        return given.reshape(part.shape)
    try:
        return given.expand(part.shape)
    except RuntimeError:
        raise InputError(
            f"A tensor of shape {tuple(given.shape)} does not fit '{what.site}', which has shape {short}; "
            "give one of that shape."
        ) from None


def _mean(part: Tensor, source: Tensor | None, what: Intervention) -> Tensor:
    """A tensor argument is the mean itself, measured elsewhere."""
    if isinstance(what.arg, Tensor):
        return what.arg.expand_as(part)
    return (part if source is None else source).mean(0, keepdim=True).expand_as(part)


EDITS: dict[str, Callable[[Tensor, Tensor | None, Intervention], Tensor]] = {
    "zero": lambda part, source, what: torch.zeros_like(part),
    "mean": lambda part, source, what: _mean(part, source, what),
    "resample": _resample,
    "patch": lambda part, source, what: (what.arg if source is None else source).expand_as(part),
    "add": lambda part, source, what: part + what.settings["factor"] * what.arg,
    "scale": lambda part, source, what: part * what.arg,
    "project_out": _project_out,
    "apply": lambda part, source, what: what.arg(part.clone()),  # the recording must survive a function that writes
}


def indices(site: Site, axes: tuple[str, ...], shape: tuple[int, ...]) -> tuple[Index, ...]:
    """The site's indices as one index an axis; raises SiteError for an axis or a place that the value lacks."""
    found: list[Index] = [slice(None)] * len(shape)
    for axis, text in site.index:
        if axis in axes:
            place = axes.index(axis)
        elif axis.lstrip("-").isdigit() and -len(shape) <= int(axis) < len(shape):
            place = int(axis)
        else:
            raise SiteError(f"'{site.name}' has no axis '{axis}'; its axes are {', '.join(axes) or 'none'}.")
        index = read_index(text)
        for number in index if isinstance(index, tuple) else [index] if isinstance(index, int) else []:
            if not -shape[place] <= number < shape[place]:
                raise SiteError(f"'{site.name}' has {shape[place]} places on axis '{axis}', so there is no {number}.")
        if isinstance(index, slice) and len(range(*index.indices(shape[place]))) == 0:
            raise SiteError(f"'{site.name}' has {shape[place]} places on axis '{axis}', so {text} names none of them.")
        found[place] = index
    return tuple(found)


def take(value: Tensor, where: tuple[Index, ...], keep: bool = False) -> Tensor:
    """The part of a value that indices name; single indices drop their axis unless `keep`."""
    dropped = []
    for axis, index in enumerate(where):
        if isinstance(index, int):
            index = index % value.shape[axis]
            value = value.narrow(axis, index, 1)
            dropped.append(axis)
        elif isinstance(index, tuple):
            value = value.index_select(axis, torch.tensor(index, device=value.device) % value.shape[axis])
        elif index != slice(None):
            low, high, _ = index.indices(value.shape[axis])
            value = value.narrow(axis, low, max(high - low, 0))
    return value if keep else value.squeeze(dropped) if dropped else value


def put(value: Tensor, where: tuple[Index, ...], part: Tensor) -> Tensor:
    """A copy of `value` with `part` (indexed axes kept) at the indices."""
    if all(index == slice(None) for index in where):
        return part
    grid = torch.arange(value.numel(), device=value.device).view(value.shape)
    places = take(grid, where, keep=True)
    return (
        value.flatten().index_put((places.flatten(),), part.expand(places.shape).flatten().to(value)).view(value.shape)
    )


def editor(
    what: Intervention, where: tuple[Index, ...], source: Tensor | None, batch: int = 0
) -> Callable[[Tensor], Tensor]:
    """The function of a whole value that an intervention is. `source` is the whole value in the source run; `mean` and
    `resample` act along the axis `batch`."""

    edit = EDITS[what.kind]
    dropped = tuple(axis for axis, index in enumerate(where) if isinstance(index, int))

    def made(part: Tensor, other: Tensor | None) -> Tensor:
        if what.kind in ("mean", "resample") and batch and not isinstance(what.arg, Tensor):
            moved = None if other is None else other.movedim(batch, 0)
            return edit(part.movedim(batch, 0), moved, what).movedim(0, batch)
        if what.kind not in ("patch", "add", "scale", "mean") or not isinstance(what.arg, Tensor):
            return edit(part, other, what)
        return edit(part, other, replace(what, arg=_fitted(part, what, dropped)))

    def in_basis(part: Tensor, other: Tensor | None) -> Tensor:
        if what.basis is None:
            return made(part, other)
        inside = None if other is None else what.basis.encode(other)
        return edit_in(what.basis, part, lambda coordinates: made(coordinates, inside))

    def change(value: Tensor) -> Tensor:
        part = take(value, where, keep=True)
        other = None if source is None else take(source, where, keep=True)
        try:
            new = in_basis(part, other)
        except CutawayError:
            raise
        except Exception as error:  # a function of the caller's own may raise anything
            first = (str(error).strip() or "no message").splitlines()[0]
            reason = f"the function given raised {type(error).__name__}: {first}" if what.kind == "apply" else first
            raise InputError(f"The edit '{what.kind}' at '{what.site}' cannot be made: {reason}") from error
        if not isinstance(new, Tensor):
            raise InputError(f"The edit at '{what.site}' gave a {type(new).__name__}; return a tensor.")
        if new.dtype != part.dtype:
            if new.is_floating_point() != part.is_floating_point():
                raise InputError(
                    f"'{what.site}' holds {str(part.dtype)[6:]} and the edit gave {str(new.dtype)[6:]}; "
                    "edit ids as ids, or edit the embedding."
                )
            new = new.to(part.dtype)
        if new.shape != part.shape:
            raise InputError(
                f"The edit at '{what.site}' gave a value of shape {tuple(new.shape)} where {tuple(part.shape)} was; "
                "return the same shape."
            )
        return put(value, where, new)

    return change


def _describe(arg: Any) -> Any:
    if isinstance(arg, Tensor):
        return f"tensor {tuple(arg.shape)}"
    if isinstance(arg, (int, float, str, type(None))):
        return arg
    return getattr(arg, "__name__", type(arg).__name__)
