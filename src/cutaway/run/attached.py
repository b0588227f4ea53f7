"""Where the dictionaries attached to a network lie in one of its runs, and that run's tape with them in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from ..errors import InputError, SiteError
from .laid import laid
from .splice import LATENTS, SLOTS, Attachment, Splice, Spliced, spliced

if TYPE_CHECKING:
    from .trace import Trace

Lift = Callable[[], Any]  # gives the components of the run


def latents_at(trace: Trace, name: str) -> tuple[str, tuple[str, ...]]:
    """The address and axes of the latents of a dictionary that is attached at a site, by whatever name that is given.

    Raises SiteError where none is.
    """
    known = trace.net.attachments
    what = next((what for what in known if name in (what.name, *what.sites)), None)
    if what is None and known:
        address = trace.located(name, trace.lift).address
        here = [what for what in known if address in {trace.located(at, trace.lift).address for at in what.sites}]
        what = here[0] if len(here) == 1 else None
    if what is None:
        where = ", ".join(what.name for what in known) or "none"
        raise SiteError(
            f"No dictionary is attached at '{name}' (attached: {where}); attach one by net.attach(dictionary)."
        )
    return f"{LATENTS}{what.name}//latents.0", splice_of(trace, what, trace.lift).reads[0].latent_axes


def with_dictionaries(trace: Trace, outer: Iterable[str], lift: Lift) -> Spliced:
    """The tape with dictionaries put in, those named among `outer`, whose other ops are opened first.

    Raises SiteError, InputError where a dictionary cannot be where it is attached.
    """
    wanted = {where for where in outer if where.startswith((LATENTS, SLOTS))}
    chosen = [
        (what, mark == SLOTS)
        for what in trace.net.attachments
        for mark in (LATENTS, SLOTS)
        if f"{mark}{what.name}" in wanted
    ]
    if strange := wanted - {f"{SLOTS if lifted else LATENTS}{what.name}" for what, lifted in chosen}:
        raise SiteError(f"No dictionary is attached at '{min(strange).partition(':')[2]}'.")
    tape = trace.tape_with(set(outer) - wanted | _inside(trace, [what for what, _ in chosen], lift))
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
            found.append(laid(site, graph.values[value], where.axes, where.fold, what.axis, what.widths[site]))
        places.append(tuple(found))
    reads, writes = places
    if odd := [place for place in (*reads, *writes) if place.lead != reads[0].lead]:
        raise InputError(
            f"'{what.name}' reads {reads[0].lead} vectors and there are {odd[0].lead} at another of its sites; a "
            "dictionary needs values with as many vectors at the same places."
        )
    return Splice(what, reads, writes, lifted)
