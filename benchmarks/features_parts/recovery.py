"""Known features found again: 1,024 directions in 128 dimensions, about 12 on in a row, on two synthetic worlds.

Every method sees the same number of rows of the same world, is given the true number of features and the true L0, and
nothing else. "+ pursuit": the kind's directions, with codes inferred row by row. What an oracle with the true
directions reaches with the same inference is measured too, as is a linear probe that was told the truth.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from rows import Row, row

from cutaway.features.dictionary import Dictionary
from cutaway.features.recovery import infer_codes, recover_dictionary
from cutaway.features.train import train_dictionary
from cutaway.features.truth import compare_with_features
from cutaway.features.worlds import World, make_world

COMMAND = "python benchmarks/features.py recovery"
WORLDS = {"independent": "independent", "hierarchical-exclusive": "hierarchical and exclusive"}
FEATURES, WIDTH, ACTIVE = 1024, 128, 12.0
SAMPLES = 400_000
TRAINED = ("jumprelu", "batchtopk", "topk", "matryoshka")
HELD_TO = "jumprelu + pursuit"  # the goals are for this one way on every world
GOALS = {"mcc": 0.95, "recovered": None, "f1": 0.9, "fvu": None}


def rows(seeds: int, peers: list[str]) -> list[Row]:
    """MCC, share recovered, F1 and FVU of every method on both worlds, with the controls beside them."""
    del peers
    torch.set_num_threads(1)
    found = []
    for kind, title in WORLDS.items():
        scores: dict[str, list[dict[str, Any]]] = {}
        for seed in range(seeds):
            world = make_world(kind, FEATURES, WIDTH, ACTIVE, seed=seed)
            for name, make in methods(world, seed).items():
                start = time.process_time()
                made = make()
                spent = time.process_time() - start
                score = compare_with_features(made, world, seed=seed, controls=name == HELD_TO)
                scores.setdefault(name, []).append(score)
                told = ", ".join(f"{figure} {score[figure]:.3f}" for figure in (*GOALS, "l0", "f1_best_threshold"))
                print(f"{title}, seed {seed}, {name}: {told}, {spent:.0f} CPU seconds", file=sys.stderr, flush=True)
        found += _rows(title, scores)
    return found


def methods(world: World, seed: int) -> dict[str, Callable[[], Dictionary]]:
    """Each makes a dictionary from the rows alone, but for the oracle."""
    made: dict[str, Dictionary] = {}

    def trained(kind: str) -> Dictionary:
        made[kind] = train_dictionary(world, FEATURES, ACTIVE, kind=kind, samples=SAMPLES, seed=seed)
        return made[kind]

    found: dict[str, Callable[[], Dictionary]] = {}
    for kind in TRAINED:
        found[kind] = lambda kind=kind: trained(kind)
        found[f"{kind} + pursuit"] = lambda kind=kind: infer_codes(made[kind], world, ACTIVE, seed=seed)
    found["pursuit"] = lambda: recover_dictionary(world, FEATURES, ACTIVE, samples=SAMPLES, seed=seed)
    found["oracle (true directions, pursuit)"] = lambda: oracle(world)
    return found


def oracle(world: World) -> Dictionary:
    """The true directions with the inference that recovery uses: the most that it could reach."""
    atoms = world.directions
    extra = {"threshold": torch.full((len(atoms),), 0.25)}
    return Dictionary("oracle", "pursuit", {"encoder": atoms, "decoder": atoms}, round(ACTIVE), extra)


def _rows(title: str, scores: dict[str, list[dict[str, Any]]]) -> list[Row]:
    first = scores[HELD_TO][0]["controls"]
    controls = {
        figure: {name: round(one[figure], 3) for name, one in first.items() if figure in one} for figure in GOALS
    }
    controls["f1"]["ridge probe (told the truth)"] = round(first["ridge_probe"]["f1_best_threshold"], 3)
    return [
        row(
            f"{title} world, {name}, {figure}", [score[figure] for score in of], figure,
            goal if name == HELD_TO else None, COMMAND, controls[figure], better=of[0]["better"][figure],
        )
        for name, of in scores.items()
        for figure, goal in GOALS.items()
    ]  # fmt: skip
