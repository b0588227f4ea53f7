"""Curves, areas, stability and the untrained control, against hand-made figures and what they must be by definition."""

import json

import numpy as np
import pytest
import torch
from networks import organism_runs
from torch import nn

import cutaway as cw
from cutaway.attribution.methods import score
from cutaway.attribution.scores import Scores
from cutaway.circuits.loading import metric_from
from cutaway.claims.curves import MIB, area, circuit_curve, spread
from cutaway.claims.stability import stability, weighted
from cutaway.claims.truth import compare_with_truth
from cutaway.claims.untrained import NETWORKS, untrained
from cutaway.errors import InputError


def test_areas_are_those_of_the_benchmark() -> None:
    # A circuit that is perfect at every size: CPR is the width of the axis, CMD is 0.
    assert area(MIB, np.ones(10)) == pytest.approx(0.999)
    assert area(MIB, np.abs(1 - np.ones(10))) == 0
    # One that is faithful from half of the edges on: the trapezoid from 20 % to 50 % and the rectangle above.
    steps = np.array([0.0] * 8 + [1.0, 1.0])
    assert area(MIB, steps) == pytest.approx(0.3 / 2 + 0.5)
    assert area(MIB, np.stack([steps, steps], 1)) == pytest.approx([0.65, 0.65])


@pytest.mark.parametrize(("level", "greedy"), [("edge", False), ("edge", True), ("node", False)])
def test_a_curve_starts_with_nothing_and_ends_with_everything(level: str, greedy: bool) -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=12)
    graph = cw.EdgeGraph(clean, corrupted)
    curve = circuit_curve(score(graph, metric), graph, metric, level=level, greedy=greedy)
    first, last = curve.rows[0], curve.rows[-1]
    assert first["size"] == 0 and first["faithfulness"] == pytest.approx(0, abs=1e-6)
    if not greedy:  # edges that lie on no way to the output are never reached
        assert last["faithfulness"] == pytest.approx(1, abs=1e-5)
        assert last["completeness"] == pytest.approx(1, abs=1e-5)
    assert curve.examples.mean(1) == pytest.approx([row["faithfulness"] for row in curve.rows])
    for row in curve.rows:
        assert row["low"] - 1e-9 <= row["faithfulness"] <= row["high"] + 1e-9
    json.dumps(curve.to_dict(), allow_nan=False)


def test_a_better_ranking_has_better_areas() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=12)
    graph = cw.EdgeGraph(clean, corrupted)
    scores = score(graph, metric)
    assert scores.edges is not None
    worst_first = Scores(1 / (scores.edges.abs() + 1e-9), None, "worst first", 0)
    best, worst = (circuit_curve(table, graph, metric) for table in (scores, worst_first))
    assert best.cpr and best.cmd and worst.cpr and worst.cmd
    assert best.cpr[0] > 0.9 and best.cmd[0] < 0.1
    assert worst.cpr[0] < best.cpr[0] and worst.cmd[0] > best.cmd[0]


def test_what_no_curve_can_be_drawn_of_is_said() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=4)
    circuit = cw.find_circuit(clean, corrupted, metric)
    for sizes in ((), (0.5, 0.1), (0.1, 1.5)):
        with pytest.raises(InputError, match="shares of all edges"):
            circuit_curve(circuit, sizes=sizes)
    with pytest.raises(InputError, match="needs the edge graph"):
        circuit_curve(circuit.scores)


def test_the_spread_of_examples_names_the_worst() -> None:
    found = spread(np.array([1.0, 1.2, 0.1, 0.9, 3.0]))
    assert found["close"] == 0.6 and [place for place, _ in found["worst"]][:2] == [4, 2]
    assert found["quantiles"][2] == 1.0


def test_a_weighted_metric_scores_the_resampled_examples() -> None:
    clean, corrupted, metric, organism = organism_runs("induction", n=6)
    pairs = organism.pairs(6, seed=1)
    drawn = torch.tensor([0, 0, 3, 5, 5, 5])
    net = clean.net
    again = cw.logit_difference(pairs.correct[drawn], pairs.wrong[drawn], position=pairs.position)
    resampled = score(cw.EdgeGraph(net.record(pairs.clean[drawn]), net.record(pairs.corrupted[drawn])), again)
    counted = score(cw.EdgeGraph(clean, corrupted), weighted(metric, torch.bincount(drawn, minlength=6)))
    assert torch.allclose(counted.edges, resampled.edges, atol=1e-4)


def test_a_planted_mechanism_is_found_again_in_every_resample() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=16)
    circuit = cw.find_circuit(clean, corrupted, metric)
    found = stability(circuit, draws=4)
    assert found.jaccard == 1.0 and set(found.inclusion.values()) == {1.0} and found.chance < 0.1
    assert set(found.inclusion) == set(circuit.edges)
    with pytest.raises(InputError, match="2 or more"):
        stability(circuit, draws=1)


def test_the_untrained_control_holds_its_level_on_random_networks() -> None:
    inputs = torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0))
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        net = cw.open(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
        graph = cw.EdgeGraph(net.record(inputs[0]), net.record(inputs[1]))
        found.append(untrained(graph, cw.logit_difference(0, 1), seed).p)
    assert sum(p <= 0.05 for p in found) <= 5
    assert np.mean(found) == pytest.approx(0.5, abs=0.16)  # three standard errors of a uniform p


def test_the_untrained_control_sees_training_and_leaves_the_network_alone() -> None:
    clean, corrupted, metric, organism = organism_runs("shapes", n=12)
    module, graph = clean.net.module, cw.EdgeGraph(clean, corrupted)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    control = untrained(graph, metric)
    assert control.p == 1 / (1 + NETWORKS) and max(control.values) < control.observed / 2
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())
    clean.net.check_weights()
    own = untrained(graph, cw.output_distance(clean))
    assert own.p is None and "own output" in own.how


def test_answers_that_are_the_networks_own_predictions_are_chosen_again() -> None:
    found = []
    for seed in range(40):
        torch.manual_seed(seed)
        net = cw.open(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 8)))
        inputs = torch.randn(2, 40, 6)
        best = [net.module(side).argmax(-1) for side in inputs]
        kept = best[0] != best[1]
        if int(kept.sum()) < 10:
            continue
        clean, corrupted = (net.record(side[kept]) for side in inputs)
        metric = cw.logit_difference(best[0][kept], best[1][kept])
        control = untrained(cw.EdgeGraph(clean, corrupted), metric, seed)
        assert "correct and wrong answers chosen again" in control.how
        found.append(control.p)
    assert len(found) > 20 and sum(p <= 0.05 for p in found) <= 4
    # Answers of one's own that happen to be right stay a sign of training where random weights do worse.
    clean, corrupted, metric, _ = organism_runs("indirect-object", n=24)
    trained = untrained(cw.EdgeGraph(clean, corrupted), metric)
    assert "chosen again" in trained.how and trained.p <= 0.05


def test_very_few_examples_are_said_not_to_show_training() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=1)
    claim = cw.verify(cw.find_circuit(clean, corrupted, metric), random=20)
    (reason,) = (row for row in claim.reasons if row.check == "trained")
    assert not reason.passed and not reason.counts and "too few examples" in reason.text
    assert claim.verdict == "not supported" and "standard deviations" not in str(claim)


def test_a_known_edge_that_no_network_like_this_has_is_refused() -> None:
    clean, corrupted, metric, organism = organism_runs("induction", n=8)
    circuit = cw.find_circuit(clean, corrupted, metric)
    for wrong, said in (
        ("L0.atn.h0 -> logits", "L0.attn.h0"), ("typo", "writer and a reader"), ("embed -> logit", "logits"),
        ("L1.attn.h0 -> L0.attn.h0.q", "no edge"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=said):
            compare_with_truth(circuit, [*circuit.edges, wrong])
    assert organism.truth is not None
    assert compare_with_truth(circuit, organism.truth.edges)["found"]


def test_areas_are_of_the_whole_axis_or_not_given() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    circuit = cw.find_circuit(clean, corrupted, metric)
    for sizes in ((0.5,), (0.4, 0.5), (0.01, 1.0)):
        curve = circuit_curve(circuit, sizes=sizes)
        assert curve.cpr is None and curve.cmd is None and "CPR" not in str(curve)
        assert json.loads(json.dumps(curve.to_dict()))["cpr"] is None
    assert circuit_curve(circuit).cpr is not None


def test_labels_that_are_stated_to_come_from_the_data_are_kept() -> None:
    clean, corrupted, _, organism = organism_runs("marks", n=16)
    pairs = organism.pairs(16, seed=1)
    graph = cw.EdgeGraph(clean, corrupted)
    chosen = untrained(graph, cw.logit_difference(pairs.correct, pairs.wrong))
    stated = cw.logit_difference(pairs.correct, pairs.wrong, labels=True)
    assert "chosen again" in chosen.how and "chosen again" not in untrained(graph, stated).how
    assert stated.facts["labels"] is True and metric_from(stated.facts, clean).facts == stated.facts
