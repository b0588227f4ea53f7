"""Where the dictionaries attached to a network lie in one of its runs, and that run's tape with them in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..errors import InputError, SiteError
from ..site import Site, read_index
from .laid import laid
from .splice import LATENTS, SLOTS, Attachment, Splice, Spliced, spliced, used_before

if TYPE_CHECKING:
    from .trace import Trace

SEVERAL = "derived:several:"  # how the address of latents of several parts of a dictionary begins
Lift = Callable[[], Any]  # gives the components of the run


def latents_at(trace: Trace, site: Site) -> tuple[str, tuple[str, ...], int, Callable[[Trace], Tensor] | None]:
    """Where latents of a dictionary that is attached at a site lie, by whatever name that is given: the fields of a
    `Found`. Those of several parts of a dictionary are derived: the parts' latents side by side, each at its number.

    Raises SiteError where none is attached.
    """
    known, name = trace.net.attachments, site.name
    what = next((what for what in known if name in (what.name, what.group, *what.sites)), None)
    if what is None and known:
        address = trace.located(name, trace.lift).address
        here = [what for what in known if address in {trace.located(at, trace.lift).address for at in what.sites}]
        what = here[0] if len({what.group or what.name for what in here}) == 1 else None
    if what is None:
        where = ", ".join(what.name for what in known) or "none"
        raise SiteError(
            f"No dictionary is attached at '{name}' (attached: {where}); attach one by net.attach(dictionary)."
        )
    parts = [one for one in known if one.group == what.group] if what.group else [what]
    if len(parts) > 1:
        asked = _numbers(dict(site.index)["latent"], what.count)
        parts = [part for part in parts if not asked.isdisjoint(part.own)] or parts[:1]
    axes = splice_of(trace, parts[0], trace.lift).reads[0].latent_axes
    if len(parts) == 1:
        return f"{LATENTS}{parts[0].name}//latents.0", axes, 0, None
    ones = [f"{part.name}[latent={min(part.own)}]" for part in parts]
    return f"{SEVERAL}{site}<{ones[0]}", axes, 0, lambda run: torch.stack([run.raw(one) for one in ones]).sum(0)


def _numbers(index: str, count: int) -> set[int]:
    """The latents that an index names."""
    found = read_index(index)
    if isinstance(found, slice):
        return set(range(count)[found])
    return {number % count for number in ((found,) if isinstance(found, int) else found)}


def check_edited(trace: Trace, address: str) -> None:
    """Raises SiteError where latents at an address are those of several parts of a dictionary, or are known too late
    for an edit of them to reach all it should."""
    several, _, one = address.removeprefix(SEVERAL).partition("<")
    if address.startswith(SEVERAL):
        raise SiteError(
            f"'{several}' names latents that read different places, which are edited apart: by number, as in '{one}'."
        )
    if not address.startswith(LATENTS):
        return
    name = address.removeprefix(LATENTS).split("//")[0]
    what = next(what for what in trace.net.attachments if what.name == name)
    if early := late(trace, what, trace.lift):
        raise SiteError(f"Latents of '{name}' can be read and not edited: {early}.")


def late(trace: Trace, what: Attachment, lift: Lift) -> str:
    """Why a dictionary's latents cannot be edited, where a value that it writes is used before they are known; else
    ""."""
    site = used_before(trace.tape_with(_inside(trace, [what], lift)).graph, splice_of(trace, what, lift))
    return site and f"the network uses the value at '{site}' before all that the dictionary reads is there"


def with_dictionaries(trace: Trace, outer: Iterable[str], lift: Lift) -> Spliced:
    """The tape with dictionaries put in, those named among `outer`, whose other ops are opened first.

    Raises SiteError, InputError where a dictionary cannot be where it is attached.
    """
    wanted = {where for where in outer if where.startswith((LATENTS, SLOTS))}
    known = trace.net.attachments
    for at, what in enumerate(known):  # what a part leaves unsaid is what those before it do not say either
        if f"{LATENTS}{what.name}" in wanted and what.group:
            wanted |= {f"{LATENTS}{part.name}" for part in known[:at] if part.group == what.group}
    chosen = [(what, mark == SLOTS) for what in known for mark in (LATENTS, SLOTS) if f"{mark}{what.name}" in wanted]
    if strange := wanted - {f"{SLOTS if lifted else LATENTS}{what.name}" for what, lifted in chosen}:
        raise SiteError(f"No dictionary is attached at '{min(strange).partition(':')[2]}'.")
    tape = trace.tape_with(
        {where for where in outer if where not in wanted} | _inside(trace, [what for what, _ in chosen], lift)
    )
    return spliced(tape, [splice_of(trace, what, lift, lifted) for what, lifted in chosen])


def _inside(trace: Trace, chosen: Iterable[Attachment], lift: Lift) -> set[str]:
    """The ops that must be opened for the values of some dictionaries to be there."""
    found = {trace.located(site, lift).address for what in chosen for site in what.sites}
    return {address.split("//")[0] for address in found if "//" in address}


def splice_of(trace: Trace, what: Attachment, lift: Lift, lifted: bool = False) -> Splice:
    """Where the values of a dictionary lie in a run. Raises SiteError, InputError where it cannot be."""
    graph = trace.tape_with(_inside(trace, [what], lift)).graph
    places = []
    for sites in (what.reads, what.writes):
        found = []
        for site in sites:
            where = trace.located(site, lift)
            if where.derive is not None:
                raise SiteError(f"'{site}' is derived and no value of the run; attach the dictionary elsewhere.")
            value = trace.graph.addresses.get(where.address)
            value = graph.find(where.address)[0] if value is None else value
            fold, axes = trace.layout(where, lift)
            found.append(laid(site, graph.values[value], axes, fold, what.axis, what.widths[site]))
        places.append(tuple(found))
    reads, writes = places
    if odd := [place for place in (*reads, *writes) if place.lead != reads[0].lead]:
        raise InputError(
            f"'{what.name}' reads {reads[0].lead} vectors and there are {odd[0].lead} at another of its sites; a "
            "dictionary needs values with as many vectors at the same places."
        )
    return Splice(what, reads, writes, lifted)
