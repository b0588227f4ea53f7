"""Evaluating a dictionary: every figure with its interval, its better direction, and the same of dictionaries that
learned nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..run.network import Network
from .absorption import absorption
from .card import Place
from .controls import SAMPLES, identity_dictionary, matched
from .dictionary import Dictionary, concatenated
from .figures import Evaluation, Figure, beside
from .probing import Concepts, probes_of, sparse_probing, whole_probe
from .reconstruction import reconstruction
from .rows import Rows
from .spliced import Metric, recovered, spliced
from .stability import stability

Progress = Callable[[str, int, int], None]
OWN = "dictionary"
CONTROLS = {
    "random": "as many random directions, TopK (or pursuit, as its own) with the same L0, scale and bias fitted",
    "data": "the same with rows drawn at random as directions",
    "PCA": "principal components, of which each row keeps as many as the L0, scale and bias fitted",
    "pursuit": "rows drawn at random as directions, codes by orthogonal matching pursuit",
    "neurons": "the numbers of a row themselves",
    "probe": "a logistic regression on all numbers of a row",
}
EXAMPLES = 64  # inputs that a reconstruction is spliced into when none are given


def evaluate_dictionary(
    dictionary: Dictionary,
    rows: Rows,
    *,
    net: Network | None = None,
    inputs: Any = None,
    metric: Metric | None = None,
    labels: Mapping[str, Any] | None = None,
    seeds: Sequence[Dictionary] = (),
    controls: bool = True,
    samples: int = SAMPLES,
    examples: int = EXAMPLES,
    seed: int = 0,
    progress: Progress = lambda stage, done, of: None,
) -> Evaluation:
    """Figures of a dictionary on rows that it was not trained on, beside controls of its size and L0: random
    directions, random rows as directions, and the largest principal components of each row (see controls).

    With a `net` the reconstruction is spliced into its runs of `inputs` (so many of the `examples` that rows were
    collected from, when left out) and judged by `metric` (see `spliced`). With `labels`, true or false or a class for
    each row or each example by concept: k-sparse probes, absorption and splitting. With `seeds`, dictionaries made by
    other seeds: stability. Up to `samples` rows are used, and as many others to fit controls.

    Raises InputError for rows or labels that do not belong to the dictionary, ResourceError when a probe needs
    scikit-learn or a matching SciPy and it is missing.
    """
    reads, writes = _ends(dictionary, rows)
    dictionary = dictionary.to("cpu").but(card=dictionary.card.but(reads=reads, writes=writes))
    values = rows.sample(2 * samples, seed=seed)
    read, written = (concatenated(values, tuple(place.site for place in places)) for places in (reads, writes))
    written = read if reads == writes else written
    half = len(read) // 2
    if half < 2:
        raise InputError(f"{len(read)} rows are too few to evaluate a dictionary on; give at least four.")
    progress("reconstruction", 0, 1)
    figures, densities = reconstruction(dictionary, read[half:], written[half:])
    others: dict[str, Dictionary] = {}
    if controls:
        fitting = read[:half]
        others = matched(
            dictionary, fitting, fitting if written is read else written[:half], figures[0].value or 1.0, seed
        )
    figures = beside(
        figures, {name: reconstruction(one, read[half:], written[half:])[0] for name, one in others.items()}
    )
    progress("reconstruction", 1, 1)
    if net is not None:
        given = inputs if inputs is not None else _examples(rows, examples, seed)
        means = {place.site: values[place.site].mean(0) for place in writes}
        losses = spliced(net, given, {OWN: dictionary, **others}, means, metric=metric, progress=progress)
        figures += beside(recovered(losses, OWN), {name: recovered(losses, name) for name in others})
    if labels:
        figures += _labelled(dictionary, others, rows, labels, samples, seed, progress)
    if seeds:
        progress("stability", 0, 1)
        figures += stability(dictionary, seeds, seed)
    beside_it = {name for one in figures for name in one.controls}
    facts = {
        "dictionary": repr(dictionary), "kind": dictionary.kind, "latents": dictionary.latents,
        "rows": len(read) - half, "rows_for_controls": half if controls else 0, "seed": seed,
        "network": net.name if net is not None else "", "data": dict(rows.manifest),
        "controls": {name: told for name, told in CONTROLS.items() if name in beside_it},
        "card": dictionary.card.to_dict(),
    }  # fmt: skip
    return Evaluation(facts, tuple(figures), densities, _notes(dictionary, rows, net))


def _ends(dictionary: Dictionary, rows: Rows) -> tuple[tuple[Place, ...], tuple[Place, ...]]:
    """The places that a dictionary reads and writes: its card's, or where that is silent all that the rows are of."""
    there = {place.site: place for place in rows.places}
    ends = []
    for places, width in ((dictionary.card.reads, dictionary.width), (dictionary.card.writes, dictionary.out_width)):
        found = tuple(places or rows.places)
        if missing := [place.site for place in found if place.site not in there]:
            raise InputError(
                f"The dictionary is for '{missing[0]}', and these are rows of {', '.join(there)}; collect its place."
            )
        wide = sum(there[place.site].width for place in found)
        if wide != width:
            raise InputError(
                f"The dictionary has rows of {width} numbers and these have {wide}; give those of its place."
            )
        ends.append(found)
    return ends[0], ends[1]


def _notes(dictionary: Dictionary, rows: Rows, net: Network | None) -> tuple[str, ...]:
    """What to mind when reading the figures."""
    found = []
    made_from = dictionary.card.data.get("hash")
    if made_from and made_from == rows.manifest.get("hash"):
        found.append("The dictionary was made from these rows: on others it does worse.")
    known = {place.network for place in dictionary.card.writes} - {""}
    if net is not None and known and net.fingerprint not in known:
        found.append(f"The dictionary was made for other weights than those of '{net.name}'.")
    return tuple(found)


def _examples(rows: Rows, most: int, seed: int) -> list[Any]:
    """Inputs of some examples that rows were collected from."""
    where, examples = getattr(rows, "where", None), getattr(rows, "examples", None)
    if where is None or examples is None:
        raise InputError("There is nothing to run the network on; give inputs=….")
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[: 8 * most]
    numbers = list(dict.fromkeys(where(picked)[0].tolist()))[:most]
    found = [examples[number].inputs for number in numbers]
    if not all(found):
        raise InputError("The inputs were not kept with these rows; give inputs=….")
    return found


# ---- labelled rows


def _labelled(
    dictionary: Dictionary,
    others: Mapping[str, Dictionary],
    rows: Rows,
    labels: Mapping[str, Any],
    samples: int,
    seed: int,
    progress: Progress,
) -> list[Figure]:
    """Sparse probes, absorption and splitting, of the dictionary, the controls, the neurons and all raw values."""
    picked = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:samples].sort().values
    examples = _example_of(rows, picked)
    given = {name: _by_row(name, label, rows, picked, examples) for name, label in labels.items()}
    concepts = Concepts.of(given, seed=seed, groups=examples)
    read, written = (_numbered(rows, places, picked) for places in (dictionary.card.reads, dictionary.card.writes))
    table = {OWN: dictionary, **others, "neurons": identity_dictionary(dictionary.width)}
    found: dict[str, list[Figure]] = {}
    probes = probes_of(written, concepts)
    for done, (name, one) in enumerate(table.items()):
        progress("probes", done, len(table))
        codes = one.codes(read)
        found[name] = sparse_probing(codes, concepts)
        if name != "neurons":
            found[name] += absorption(codes, one.decoder, written, concepts, probes)
    whole = {one.name.split()[-1]: one.value for one in whole_probe(written, concepts, probes)}
    progress("probes", len(table), len(table))
    made = beside(found.pop(OWN), found)
    return [
        replace(one, controls={**one.controls, "probe": whole[kind]}) if (kind := one.name.split()[-1]) in whole
        else one for one in made
    ]  # fmt: skip


def _numbered(rows: Rows, places: Sequence[Place], picked: Tensor) -> Float[Tensor, "rows d"]:
    """Rows by number, for which labels are."""
    by_number = getattr(rows, "rows", None)
    if by_number is None:
        raise InputError(
            "These rows have no numbers, so labels cannot be put on them; give collected rows or InMemory."
        )
    return concatenated({p.site: by_number(p.site, picked).float() for p in places}, tuple(p.site for p in places))


def _example_of(rows: Rows, picked: Tensor) -> Tensor | None:
    """The example that each row comes from, where that is known."""
    where = getattr(rows, "where", None)
    found: Tensor | None = None if where is None else where(picked)[0]
    return found


def _by_row(name: str, given: Any, rows: Rows, picked: Tensor, examples: Tensor | None) -> Tensor:
    """Labels of the picked rows, from labels of all rows or of all examples."""
    try:
        label = torch.as_tensor(given)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"The labels of '{name}' are no numbers; give true and false or classes.") from error
    if len(label) == len(rows):
        return label[picked]
    if examples is not None and len(label) > int(examples.max()):
        return label[examples]
    what = "" if examples is None else f", or one for each example up to number {int(examples.max()):,}"
    raise InputError(f"'{name}' has {len(label):,} labels, and there are {len(rows):,} rows; give one each{what}.")
