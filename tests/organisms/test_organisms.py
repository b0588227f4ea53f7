"""The bundled organisms do what they claim, by the mechanism they claim."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from cutaway import organisms
from cutaway.organisms import training

sys.path.insert(0, str(Path(__file__).parent))
from ablation import all_edges, effects, gap, run

FOLDER = Path(organisms.__file__).parent / "weights"
BEHAVING = tuple(name for name in organisms.names() if name != "superposition")
EDGE = re.compile(r"(embed|pos_embed|input|L\d+\.(mlp(\.n\d+)?|attn\.h\d+|(conv|ssm)\.c\d+|rnn\.u\d+)) -> "
                  r"(logits|L\d+\.(mlp(\.n\d+)?\.in|attn\.h\d+\.[qkv]|conv\.c\d+\.in|rnn\.u\d+\.(r|z|n|carry)|"
                  r"ssm\.(in1|read|c\d+\.(in|decay|gate))))")  # fmt: skip


def recipe(name: str) -> training.Recipe:
    return organisms._recipe(name)


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_importing_organisms_loads_no_torch():
    code = "import sys; from cutaway import organisms; organisms.names(); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_names_and_refusals():
    assert organisms.names() == (
        "induction", "indirect-object", "shapes", "counter", "gates", "marks", "superposition",
    )  # fmt: skip
    with pytest.raises(KeyError, match="the bundled ones are induction"):
        organisms.load("nothing")
    with pytest.raises(ValueError, match="decides nothing"):
        organisms.load("superposition").pairs(3)
    with pytest.raises(ValueError, match="at least one"):
        organisms.load("shapes").pairs(0)


def test_weights_are_small():
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 1_200_000


@pytest.mark.parametrize("name", organisms.names())
def test_loads_as_an_ordinary_module_in_eval_mode(name):
    state = torch.get_rng_state()
    organism, control = organisms.load(name), organisms.load(name, trained=False)
    assert torch.equal(state, torch.get_rng_state())
    assert not any(part.training for part in organism.module.modules())
    assert organism.truth is not None and control.truth is None
    trained, fresh = organism.module.state_dict(), control.module.state_dict()
    assert {k: v.shape for k, v in trained.items()} == {k: v.shape for k, v in fresh.items()}
    assert any(not torch.equal(trained[key], fresh[key]) for key in trained)
    assert organism.truth.mechanism and organism.truth.how_known


@pytest.mark.parametrize("name", organisms.names())
def test_what_masks_forbid_is_exactly_zero(name):
    module = organisms.load(name).module
    parameters = dict(module.named_parameters())
    for key, mask in recipe(name).masks(module).items():
        forbidden = parameters[key][mask.expand_as(parameters[key]) == 0]
        assert torch.all(forbidden == 0), key
        assert torch.any(parameters[key] != 0), key


@pytest.mark.parametrize("seed", [11, 12])
@pytest.mark.parametrize("name", BEHAVING)
def test_the_behaviour_is_strong_on_fresh_pairs(name, seed):
    organism = organisms.load(name)
    found = training.measure(recipe(name), organism.module, seed, 400)
    assert found["accuracy"] >= 0.98
    assert found["distractor_accuracy"] >= 0.98
    assert found["logit_difference"] >= 5
    assert found["corrupted_logit_difference"] <= 0.5
    recorded = organism.truth.figures
    for figure in ("accuracy", "logit_difference"):
        assert found[figure] == pytest.approx(recorded[figure], rel=0.15)


@pytest.mark.parametrize("name", BEHAVING)
def test_an_untrained_control_does_not_have_the_behaviour(name):
    control = organisms.load(name, trained=False)
    found = training.measure(recipe(name), control.module, 5, 200)
    assert found["accuracy"] < 0.5
    assert abs(found["logit_difference"]) < 1


@pytest.mark.parametrize("name", BEHAVING)
def test_pairs_are_seeded_and_differ_in_what_they_should(name):
    organism = organisms.load(name)
    pairs, again, other = organism.pairs(50, 3), organism.pairs(50, 3), organism.pairs(50, 4)
    assert torch.equal(pairs.clean, again.clean) and torch.equal(pairs.corrupted, again.corrupted)
    assert not torch.equal(pairs.clean, other.clean)
    assert pairs.correct.dtype == pairs.wrong.dtype == torch.int64
    assert pairs.correct.shape == pairs.wrong.shape == (50,)
    assert torch.all(pairs.correct != pairs.wrong)
    changed = (pairs.clean != pairs.corrupted).flatten(1).sum(1)
    if name == "shapes":
        assert torch.all(changed > 0)
    elif name == "gates":
        assert torch.all(changed == 1)
    else:
        assert torch.all(changed == 1)
        assert int(pairs.clean.max()) < len(organism.vocabulary)


def test_induction_pairs_hold_one_repetition_and_the_corrupted_none():
    pairs = organisms.load("induction").pairs(200, 1)
    for clean, corrupted, correct, wrong in zip(
        pairs.clean.tolist(), pairs.corrupted.tolist(), pairs.correct.tolist(), pairs.wrong.tolist(), strict=True
    ):
        first = clean.index(clean[-1])
        assert clean[first + 1] == correct and wrong in clean and wrong != clean[-1]
        assert len(set(corrupted)) == len(corrupted) and len(set(clean)) == len(clean) - 1


def test_indirect_object_sentences_read_as_intended():
    organism = organisms.load("indirect-object")
    pairs = organism.pairs(20, 1)
    words = [organism.vocabulary[token] for token in pairs.clean[0].tolist()]
    for needed in ("then", "and", "went", "gave", "."):
        assert needed in words
    names = [w for w in words if w[0].isupper()]
    assert len(names) == 3 and names.count(organism.vocabulary[pairs.wrong[0]]) == 2
    assert organism.vocabulary[pairs.correct[0]] in names


@pytest.mark.parametrize("name", BEHAVING)
def test_truth_is_well_formed(name):
    organism = organisms.load(name)
    truth, known = organism.truth, set(all_edges(organism))
    assert truth.edges and len(set(truth.edges)) == len(truth.edges)
    for edge in truth.edges:
        assert EDGE.fullmatch(edge) and edge in known, edge
        writer, reader = edge.split(" -> ")
        assert writer in truth.nodes
        node = reader.rpartition(".")[0]  # all channels of a scan share the readers of its B and C
        assert reader == "logits" or any(known == node or known.startswith(f"{node}.c") for known in truth.nodes)
    assert {edge.split(" -> ")[0] for edge in truth.edges} == set(truth.nodes)
    assert set(truth.figures["edge_effects"]) == set(truth.edges)


@pytest.mark.parametrize("name", BEHAVING)
def test_the_oracle_computes_what_the_module_computes(name):
    organism = organisms.load(name)
    clean = organism.pairs(10, 2).clean
    with torch.no_grad():
        torch.testing.assert_close(run(organism, clean)[0], organism.module(clean), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", BEHAVING)
def test_every_truth_edge_matters(name):
    organism = organisms.load(name)
    pairs = organism.pairs(40, 21)
    with torch.no_grad():
        least = 0.005 * gap(run(organism, pairs.clean)[0], pairs)
    for edge, effect in effects(organism, pairs, list(organism.truth.edges)):
        assert max(effect.values()) >= least, (edge, effect)


@pytest.mark.parametrize("name", BEHAVING)
def test_truth_nodes_matter_and_the_distractors_do_not(name):
    organism = organisms.load(name)
    pairs = organism.pairs(40, 22)
    with torch.no_grad():
        clean, values = run(organism, pairs.clean)
        whole = gap(clean, pairs)
    # The shared norm of indirect-object lets the distractor's scale through; elsewhere the separation is exact.
    coupled = name == "indirect-object"
    for node, effect in effects(organism, pairs, list(values)):
        if node in organism.truth.nodes:
            assert max(effect.values()) >= 0.02 * whole, (node, effect)
        else:
            assert abs(effect["resample"]) <= (0.02 * whole if coupled else 1e-4), (node, effect)
            assert coupled or max(map(abs, effect.values())) <= 1e-4, (node, effect)


@pytest.mark.parametrize("name", BEHAVING)
def test_the_truth_alone_carries_the_behaviour(name):
    """With every edge outside the truth resampled from the corrupted run, the logit difference stays."""
    organism = organisms.load(name)
    pairs = organism.pairs(40, 23)
    with torch.no_grad():
        clean, _ = run(organism, pairs.clean)
        _, corrupted = run(organism, pairs.corrupted)
        outside = {e: corrupted[e.split(" -> ")[0]] for e in all_edges(organism) if e not in organism.truth.edges}
        inside = {e: corrupted[e.split(" -> ")[0]] for e in organism.truth.edges}
        kept, lost = (gap(run(organism, pairs.clean, replaced)[0], pairs) for replaced in (outside, inside))
        whole, other = gap(clean, pairs), gap(run(organism, pairs.corrupted)[0], pairs)
    assert kept == pytest.approx(whole, rel=0.1)
    assert lost == pytest.approx(other, abs=0.1 * abs(whole - other))


def test_features_in_superposition_form_a_pentagon():
    weight = organisms.load("superposition").module.weight.detach()
    lengths = weight.norm(dim=0)
    assert lengths.min() > 0.95 * lengths.max() and lengths.min() > 1
    angles = torch.atan2(weight[1], weight[0]).sort().values
    gaps = torch.diff(angles, append=angles[:1] + 2 * math.pi)
    assert torch.all((gaps * 180 / math.pi - 72).abs() < 2)
    recorded = torch.tensor(organisms.load("superposition").truth.figures["directions"])
    torch.testing.assert_close(recorded.T, weight, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", organisms.names())
def test_training_is_reproducible_and_keeps_its_masks(name):
    state, seen = torch.get_rng_state(), []
    first, figures = organisms.train(name, seed=3, steps=4)
    second, _ = organisms.train(name, seed=3, steps=4, progress=lambda *step: seen.append(step))
    other, _ = organisms.train(name, seed=4, steps=4)
    assert torch.equal(state, torch.get_rng_state())
    assert math.isfinite(figures["loss"]) and figures["steps"] == 4
    assert not first.training
    pairs = zip(first.parameters(), second.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    parameters = dict(first.named_parameters())
    for key, mask in recipe(name).masks(first).items():
        assert torch.all(parameters[key][mask.expand_as(parameters[key]) == 0] == 0)


def test_progress_is_reported():
    seen: list[tuple[int, int, float]] = []
    organisms.train("superposition", steps=200, progress=lambda step, steps, loss: seen.append((step, steps, loss)))
    assert [step for step, _, _ in seen] == [100, 200]


def test_saved_weights_load_again(tmp_path):
    from safetensors.torch import load_file

    module = organisms.load("counter").module
    path = organisms.save("counter", module, tmp_path)
    again = load_file(path)
    assert path.name == "counter.safetensors"
    assert all(torch.equal(again[key], value) for key, value in module.state_dict().items())


@pytest.mark.parametrize("name", organisms.names())
def test_truth_files_are_plain_json(name):
    stored = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    assert set(stored) == {"nodes", "edges", "mechanism", "how_known", "figures"}
    assert stored["figures"]["seed"] == 0
