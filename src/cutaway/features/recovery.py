"""Dictionaries whose codes are inferred row by row: alternating sparse inference and least squares, online.

Where features overlap, one product and a rule cannot give their codes. Here codes come from non-negative pursuit (see
pursuit), and the directions from the least squares that those codes make (MOD, Engan et al. 1999; online as Mairal et
al. 2009), with a constant beside them. Pursuit begins with few atoms a row, so that what is strongest is found first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ..errors import InputError
from .architectures import placed
from .card import Card
from .dictionary import Dictionary, concatenated, fvu
from .pursuit import pursue
from .rows import Rows
from .solvers import reach

Progress = Callable[[str, int, int], None]
FIRST = 0.5  # atoms a row at first, as a share of k
GROWN = 0.5  # share of the steps after which a row may have as many as it needs
STEPS = 200  # by default
KEEP = 0.95  # of the statistics after a step
TWINS = 0.9  # cosine from which on two atoms are one
RENEWED = 20  # steps between looks for dead atoms and twins
APART = (0.3, 0.4, 0.5, 0.6, 0.7)  # shares of the steps after which atoms that hold others are looked for
NEAR = 4.0  # spreads of a random cosine from which on the rarer of two atoms is taken to hold the other
HELD = 6  # others that an atom is kept apart from, at most


@dataclass
class _State:
    """Atoms [latents, d], the constant [d], and running means over rows: products of codes (the constant, 1, is the
    last code), and how often each fires. `floor` is the running threshold above which k codes a row are; `held` are the
    atoms that each is kept apart from, with zeros in `holds` where there are fewer."""

    atoms: Tensor
    constant: Tensor
    gram: Tensor
    usage: Tensor
    held: Tensor
    holds: Tensor
    floor: float = 0.0


def recover_dictionary(
    rows: Rows, latents: int, k: float, *, reads: Sequence[str] | None = None, samples: int | None = None,
    seed: int = 0, batch: int | None = None, rate: float = 0.5, apart: bool = True,
    start: Dictionary | None = None, progress: Progress | None = None,
) -> Dictionary:  # fmt: skip
    """A dictionary of `latents` directions, `k` of which are on in a row on average, found by alternating pursuit and
    least squares. It sees `samples` rows, by default 200 batches. `start` gives the first directions, else they are
    random.

    Where a feature comes only with another, the sparsest code is one atom for both, and the two are never told apart by
    what is reconstructed. With `apart`, an atom that overlaps with more frequent ones is kept orthogonal to them; it
    costs reconstruction where directions truly overlap.

    A row costs more time than in a sparse autoencoder; a step takes time for latents³ and memory for latents² numbers.
    Where features come only with others, an autoencoder's directions are nearer to the truth: see `infer_codes`.

    Raises InputError for settings that cannot be and for fewer rows than latents.
    """
    places, _ = placed("batchtopk", rows.places, reads, reads)
    batch = min(batch or max(min((samples or 4096 * STEPS) // STEPS, 4096), 256), max(len(rows) // 2, 1))
    if not (latents > 0 and 0 < k <= latents):
        raise InputError(f"A dictionary needs latents and 0 < k <= latents; these are {latents} and {k:g}.")
    if len(rows) < latents:
        raise InputError(f"There are {len(rows):,} rows for {latents:,} latents; give at least as many.")
    if start is not None and start.decoder.shape != (latents, sum(place.width for place in places)):
        raise InputError(f"The dictionary to start from is a table of {tuple(start.decoder.shape)}, not as asked for.")
    sites = tuple(place.site for place in places)
    steps = max((samples or STEPS * batch) // batch, 1)
    started = time.perf_counter()
    state = None
    for number, x in enumerate(_stream(rows, sites, batch, seed, steps)):
        if state is None:
            state = _first(x, latents, seed, start)
        error = _step(state, x, k, number / steps, rate)
        if apart and number in [int(share * steps) for share in APART]:
            _find_held(state)
        if number % RENEWED == RENEWED // 2 and number < 0.8 * steps:
            _renew(state, x, error)
        if progress is not None:
            progress(f"FVU {fvu(x, x - error):.3f}", number + 1, steps)
    assert state is not None
    told = {
        "kind": "pursuit", "k": k, "latents": latents, "seed": seed, "samples": steps * batch, "steps": steps,
        "batch": batch, "rate": rate, "apart": apart, "seconds": round(time.perf_counter() - started, 3),
    }  # fmt: skip
    made = _made(state, next(_stream(rows, sites, batch, seed + 1, 1)), k)
    probe = concatenated(rows.sample(batch, seed=seed + 2), sites)
    reference: dict[str, Any] = {
        "l0": made.codes(probe).l0, "fvu": fvu(probe, made.reconstruct(probe)),
        "norm": float(probe.norm(dim=1).mean()), "rows": len(probe),
    }  # fmt: skip
    network = str(rows.manifest.get("network", ""))
    return made.but(card=Card(places, places, network, reference, dict(rows.manifest), told))


def infer_codes(dictionary: Dictionary, rows: Rows, k: float, *, count: int = 4096, seed: int = 0) -> Dictionary:
    """A dictionary with the directions of another (a trained autoencoder, say), whose codes are inferred row by row by
    non-negative pursuit; from `count` rows comes the threshold above which `k` latents a row fire on average.

    An encoder that is one product and a rule cannot tell overlapping features apart; this can, for the price of k
    products. Raises InputError as `recover_dictionary` does.
    """
    reads = [place.site for place in dictionary.card.reads] or None
    made = recover_dictionary(
        rows, dictionary.latents, k, reads=reads, samples=count, seed=seed, batch=max(count // 2, 1), rate=0.0,
        apart=False, start=dictionary,
    )  # fmt: skip
    told = {**dictionary.card.training, "codes": "pursuit", "k": k}
    return made.but(kind=dictionary.kind, card=made.card.but(training=told))


def _stream(rows: Rows, sites: tuple[str, ...], batch: int, seed: int, steps: int) -> Iterator[Tensor]:
    done, turn = 0, 0
    while True:
        for values in rows.batches(batch, seed=seed + turn):
            if done == steps:
                return
            yield concatenated(values, sites)
            done += 1
        turn += 1_000


def _first(x: Tensor, latents: int, seed: int, start: Dictionary | None) -> _State:
    """Random directions with the rows' spread, or those of a dictionary and its constant."""
    mean = x.mean(0)
    mix = torch.randn(latents, len(x), generator=torch.Generator().manual_seed(seed)) @ (x - mean)
    held = torch.zeros(latents, min(HELD, latents), dtype=torch.long)
    atoms = functional.normalize(mix, dim=1)
    if start is not None:
        atoms, mean = functional.normalize(start.decoder.float(), dim=1), start.decode(torch.zeros(latents))
    return _State(atoms, mean, torch.zeros(0), torch.zeros(latents), held, torch.zeros(held.shape))


def _dense(chosen: Tensor, found: Tensor, latents: int) -> Tensor:
    return found.new_zeros(len(found), latents).scatter_(1, chosen, found)


def _step(state: _State, x: Tensor, k: float, done: float, rate: float) -> Tensor:
    """One step: codes of the rows, then a step of Newton's method towards the directions that fit them best. Gives what
    was left unexplained before it."""
    latents = len(state.atoms)
    most = k * FIRST + (reach(k) - k * FIRST) * min(done / GROWN, 1.0)
    centred = x - state.constant
    chosen, found = pursue(centred @ state.atoms.T, state.atoms, max(round(most), 1))
    state.floor = 0.9 * state.floor + 0.1 * _threshold(found, k)
    codes = _dense(chosen, found * (found > state.floor), latents)
    left = centred - codes @ state.atoms
    known = torch.cat([codes, codes.new_ones(len(codes), 1)], 1)
    gram = known.T @ known / len(x)
    state.gram = gram if not len(state.gram) else state.gram.mul_(KEEP).add_(gram, alpha=1 - KEEP)
    state.usage.mul_(KEEP).add_((codes > 0).float().mean(0), alpha=1 - KEEP)
    sizes = state.gram.diagonal()
    damped = state.gram + torch.diag(0.1 * sizes + 0.01 * sizes[:-1].mean() + 1e-8)
    move = torch.linalg.solve(damped, known.T @ left / len(x), left=True)
    rate *= min((1 - done) / 0.3, 1.0)
    state.atoms = functional.normalize(state.atoms + rate * move[:-1], dim=1)
    if bool(state.holds.any()):
        _keep_apart(state)
    state.constant = state.constant + rate * move[-1]
    return left


def _threshold(found: Tensor, k: float) -> float:
    """Above it there are k coordinates a row on average; 0 where there are fewer."""
    values, count = found[found > 0], round(k * len(found))
    return float(values.topk(count + 1).values[-1]) if len(values) > count else 0.0


def _find_held(state: _State) -> None:
    """Which more frequent atoms each overlaps with: now, or when it was last found and since kept apart from."""
    cosines = state.atoms @ state.atoms.T
    rarer = state.usage > state.usage[:, None]
    near = torch.where(cosines > NEAR / state.atoms.shape[1] ** 0.5, cosines, 0.0)
    before = torch.zeros_like(near).scatter_(1, state.held, (state.holds > 0).float())
    best = (torch.maximum(near, before) * rarer).topk(state.held.shape[1], dim=1)
    state.held, state.holds = best.indices, best.values


def _keep_apart(state: _State) -> None:
    """Take out of each atom what lies along those that it is kept apart from."""
    others = state.atoms[state.held] * (state.holds > 0)[..., None]
    gram = others @ others.mT + 1e-3 * torch.eye(others.shape[1])
    share = torch.linalg.solve(gram, others @ state.atoms[..., None])
    state.atoms = functional.normalize(state.atoms - (others.mT @ share)[..., 0], dim=1)


def _renew(state: _State, x: Tensor, left: Tensor) -> None:
    """Atoms that are hardly used, or are like a more used one, start anew from what was explained worst."""
    like = (state.atoms @ state.atoms.T > TWINS) & (state.usage > state.usage[:, None])
    dead = ((state.usage < 0.02 * state.usage.mean()) | like.any(1)).nonzero()[:, 0][: len(x)]
    if not len(dead):
        return
    worst = left.norm(dim=1).topk(len(dead)).indices
    state.atoms[dead] = functional.normalize(left[worst], dim=1)
    state.usage[dead] = state.usage.mean()
    state.holds[dead] = 0
    size = state.gram.diagonal()[:-1].mean()
    state.gram[dead], state.gram[:, dead] = 0, 0
    state.gram[dead, dead] = size


def _made(state: _State, x: Tensor, k: float) -> Dictionary:
    """The dictionary, with the threshold above which k coordinates a row are on average."""
    _, found = pursue((x - state.constant) @ state.atoms.T, state.atoms, reach(k))
    threshold = _threshold(found, k)
    weights = {
        "encoder": state.atoms, "decoder": state.atoms.clone(), "center": state.constant,
        "decoder_bias": state.constant.clone(),
    }  # fmt: skip
    extra = {"threshold": torch.full((len(state.atoms),), threshold)}
    return Dictionary("pursuit", "pursuit", weights, max(round(k), 1), extra)
