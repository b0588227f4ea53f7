"""Attaching: a network whose recorded runs have the latents of dictionaries as sites.

    net = net.attach(dictionary)                     at the place that its card names
    run = net.record(text)
    run["resid.2[latent=12]"]                        its value at every position
    run.replay(cutaway.zero("resid.2[latent=12]"))   without it; what the dictionary leaves unsaid stays

The module is untouched, and so is the network that `attach` is called on.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from typing import Any

from ..basis import Basis
from ..errors import CutawayError, InputError
from ..run.network import Network
from ..run.splice import Attachment
from ..run.trace import Trace
from .dictionary import Dictionary
from .encoding import active_in, attachment_of, parts_of, with_latents
from .fit import Fit, fit_on, reference_inputs, refuse


def attach(
    net: Network,
    basis: Basis,
    site: str | Sequence[str] | None = None,
    *,
    name: str = "",
    axis: str = "",
    latents: Sequence[int] | None = None,
    active: Trace | Sequence[Trace] | None = None,
    most: int = 0,
    inputs: Any = None,
    force: bool = False,
) -> Network:
    """A network in whose runs `SITE[latent=12]` is a site: in `record`, interventions, sweeps, lifting and circuits.

    `site`: where the basis reads and writes, by default the place on a dictionary's card; for a transcoder (what it
    reads, what it writes). `name`: what the latents are called, by default the site that is written. `axis`: the axis
    of the value along which vectors lie, by default its channels or its last.

    Circuits have a node for each of `latents`, or for those that are not zero somewhere in the runs `active`, or for
    all; and one error node for whatever else there is in the value. Give both runs that a circuit is found between;
    `most` bounds how many are chosen, by how much they move the value from one run to the other.

    A dictionary is held against its card (see `check_fit`): on `inputs`, else on those that the card holds, else on the
    first run that is recorded. Figures that are clearly off raise InputError unless `force`; what else differs is told
    in the network's `notes`.
    """
    what = attachment_of(basis, site, name=name, axis=axis)
    parts = parts_of(what)
    names = {what.name, *(part.name for part in parts)}
    if taken := [other.name for other in net.attachments if {other.name, other.group} & names]:
        raise InputError(f"A dictionary is attached at '{taken[0]}' already; give this one another name=.")
    found = copy.copy(net)
    found._guides, found.notes, found.pending = {}, [*net.notes], [*net.pending]
    if active is not None and latents is None:
        latents = active_in(what, [active] if isinstance(active, Trace) else active, most)
    if latents is not None:
        with_latents(what, latents)  # says what is wrong with them
        parts = tuple(with_latents(part, latents) for part in parts)
    found.attachments = (*net.attachments, *parts)
    if isinstance(basis, Dictionary):
        given = inputs if inputs is not None else reference_inputs(basis)
        if given is None:
            found.pending.append(partial(_check, what, force))
        else:
            if note := _check(what, force, _run(net, basis, given)):
                found.notes.append(note)
    return found


def _run(net: Network, dictionary: Dictionary, given: Any) -> Trace:
    """A run on a card's inputs, which another network may not be able to take."""
    made_for = {place.network for place in dictionary.card.reads} - {"", net.fingerprint}
    try:
        return net.record(given)
    except CutawayError as error:
        if not made_for:
            raise
        raise InputError(
            f"The dictionary was made for the network {min(made_for)}, and this is '{net.name}' ({net.fingerprint}), "
            f"which cannot run the inputs that it was measured on: {error}"
        ) from error


def _check(what: Attachment, force: bool, trace: Trace) -> str:
    fit: Fit = fit_on(what, trace)
    if not force:
        refuse(fit)
    return fit.note
