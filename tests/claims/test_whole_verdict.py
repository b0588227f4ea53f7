"""The whole verdict: every test asked for, kept and repeated; further sets of pairs; too few pairs; chance."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import organism_runs
from torch import nn

import cutaway as cw
from cutaway import organisms
from cutaway.claims import judging
from cutaway.claims.repeat import options, rebuild
from cutaway.errors import CutawayError, InputError


def stored(claim, folder: Path) -> tuple[dict, dict]:
    """A claim after it has been kept in a project."""
    with cw.Project(folder / "kept.cutaway") as project:
        key = project.add_claim(json.loads(json.dumps(claim.to_dict(), allow_nan=False)), claim.tensors)
        return project.claim(key), {name: np.array(array) for name, array in project.tensors(key).items()}


def figures(claim) -> dict[str, float]:
    """Every figure by name."""
    return {item.name: item.value for item in claim.evidence}


def test_everything_that_was_asked_is_told_kept_and_repeated(tmp_path: Path) -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=12)
    fresh, other = organism_runs("induction", n=12, seed=2)[:3], organism_runs("induction", n=8, seed=3)[:3]
    circuit = cw.find_circuit(clean, corrupted, metric)
    claim = cw.verify(circuit, *fresh, other={"others": other}, thorough=True, alternatives=1, random=20)
    told = figures(claim)
    for name in ("behaviour", "untrained p", "faithfulness on others", "CPR", "CMD", "stability", "self-repair"):
        assert name in told
    assert {row["name"] for row in claim.details["tests"]} == {"equivalence", "independence", "minimality"}
    assert claim.verdict == "supported" and len(claim.details["curve"]["rows"]) == 10
    assert claim.details["alternatives"] == []
    body, arrays = stored(claim, tmp_path)
    net = cw.open("induction")
    again = cw.verify(rebuild(net, body, arrays), **options(net, body, arrays))
    assert figures(again) == pytest.approx(told, abs=1e-6)
    assert (again.verdict, again.provenance["held_out"]) == (claim.verdict, True)


@pytest.mark.parametrize("baseline", ["zero", "mean", "resample", "constants"])
def test_every_baseline_is_kept_with_the_claim(baseline: str, tmp_path: Path) -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=8)
    net = clean.net
    blocks = list(cw.EdgeGraph(clean, corrupted).writes.values())
    given = {block.name: torch.tensor(0.1) for block in blocks[1:3]} if baseline == "constants" else baseline
    circuit = cw.find_circuit(clean, corrupted, metric, baseline=given, search="top-n")
    claim = cw.verify(circuit, random=5)
    body, arrays = stored(claim, tmp_path)
    again = cw.verify(rebuild(net, body, arrays), **options(net, body, arrays))
    assert figures(again) == pytest.approx(figures(claim), abs=1e-6, nan_ok=True)
    assert again.provenance["baseline"] == claim.provenance["baseline"]


def test_a_circuit_that_fails_on_other_pairs_is_only_partly_supported() -> None:
    clean, corrupted, metric, organism = organism_runs("induction", n=12)
    circuit = cw.find_circuit(clean, corrupted, metric)
    # Pairs that differ in what is asked for, not in what is found: the circuit has no edge into the query.
    pairs, net = organism.pairs(12, seed=4), clean.net
    asked = pairs.clean.clone()
    asked[:, -1] = asked[:, -1].roll(1)
    changed = (asked != pairs.clean).any(1)
    answers = (pairs.correct[changed], pairs.wrong[changed])
    sides = (net.record(pairs.clean[changed]), net.record(asked[changed]))
    other = (*sides, cw.logit_difference(*answers, position=pairs.position))
    claim = cw.verify(circuit, other=[organism_runs("induction", n=8, seed=5)[:3], other], random=20)
    assert [reason.passed for reason in claim.reasons if reason.check == "elsewhere"] == [True, False]
    assert claim.verdict == "partly supported" and abs(claim.figure("faithfulness on set 3").value) < 0.5
    with pytest.raises(InputError, match="no set of pairs"):
        cw.verify(circuit, other=[(clean, corrupted)])


def test_too_few_pairs_are_said_with_the_number_needed() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=16)
    circuit = cw.find_circuit(clean, corrupted, metric)
    for n, needed in ((1, 5), (4, 5)):
        claim = cw.verify(circuit, *organism_runs("induction", n=n, seed=2)[:3], random=20)
        behaves = next(reason for reason in claim.reasons if reason.check == "behaves")
        assert claim.verdict == "not supported" and f"{needed} or more are needed" in behaves.text
    assert cw.verify(circuit, *organism_runs("induction", n=5, seed=2)[:3], random=20).verdict == "supported"


def test_a_wide_interval_asks_for_more_pairs() -> None:
    random = np.random.default_rng(0)
    good = 1 + random.normal(0, 0.1, 8)
    kept = np.array([0.0, 2.0, 0.1, 1.9, 0.0, 2.0, 0.2, 1.8])
    found = measured(good, kept)
    needed = judging.examples_needed(found)
    assert needed > 8 and f"about {needed} are needed" in judging.faithful(found).reasons[0].text
    wide = measured(np.tile(good, 6), np.tile(kept, 6))
    assert judging.examples_needed(wide) == pytest.approx(needed, rel=0.35)  # widths go with the root


def measured(good: np.ndarray, kept: np.ndarray):
    """A measurement made by hand."""
    from types import SimpleNamespace

    from cutaway.claims.measured import Measured

    graph = SimpleNamespace(baseline={"kind": "counterfactual"})
    return Measured(graph, None, None, good, np.zeros_like(good), kept, np.zeros_like(good), 0)


def test_the_verdict_follows_from_the_reasons_that_count() -> None:
    passed = [judging.Reason(check, True, "") for check in (*judging.REQUIRED, "complete", "minimal")]
    note = judging.Reason("self-repair", False, "", False)
    assert judging.verdict([*passed, note]) == "supported"
    for place, reason in enumerate(passed):
        failed = [*passed[:place], dataclasses.replace(reason, passed=False), *passed[place + 1 :]]
        wanted = "not supported" if reason.check in judging.REQUIRED else "partly supported"
        assert judging.verdict(failed) == wanted


def test_a_distance_from_its_own_output_says_that_it_is_no_sign_of_training() -> None:
    torch.manual_seed(0)
    net = cw.open(nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
    inputs = torch.randn(2, 8, 4)
    clean, corrupted = net.record(inputs[0]), net.record(inputs[1])
    claim = cw.verify(cw.find_circuit(clean, corrupted, cw.output_distance(clean)), random=5)
    reason = next(reason for reason in claim.reasons if reason.check == "trained")
    assert not reason.passed and not reason.counts and "! not shown to come from training" in str(claim)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["untrained", "shuffled"])
def test_chance_is_not_supported(what: str) -> None:
    wrong = []
    for number in range(20):
        organism = organisms.load(("induction", "shapes", "counter", "marks")[number % 4])
        if what == "untrained":
            torch.manual_seed(number)
            for part in organism.module.modules():
                if hasattr(part, "reset_parameters"):
                    part.reset_parameters()
        net = cw.open(organism.module.eval(), name="subject")
        sides = [runs(net, organism.pairs(24, seed), what == "shuffled", seed) for seed in (2 * number, 2 * number + 1)]
        try:
            circuit = cw.find_circuit(*sides[0])
            verdicts = [cw.verify(circuit, random=20).verdict, cw.verify(circuit, *sides[1], random=20).verdict]
        except CutawayError:  # no behaviour that a circuit could be searched for
            continue
        wrong += [number] if set(verdicts) != {"not supported"} else []
    assert len(wrong) <= 1, wrong


def runs(net, pairs, shuffled: bool, seed: int):
    """Both runs and the metric; `shuffled`: with each other's answers."""
    order = torch.arange(len(pairs.clean))
    if shuffled:
        order = torch.randperm(len(order), generator=torch.Generator().manual_seed(1000 + seed))
    position = -1 if pairs.position is None else pairs.position
    metric = cw.logit_difference(pairs.correct[order], pairs.wrong[order], position=position)
    return net.record(pairs.clean), net.record(pairs.corrupted), metric
