"""Every search is held to one contract: known mechanisms found, connected, of the size asked for, repeatable."""

import pytest
import torch
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway import organisms
from cutaway.circuits.circuit import trimmed
from cutaway.circuits.searches import search_named
from cutaway.errors import InputError, MetricError, ResourceError

# Options that make a search short.
QUICK = {"edge-pruning": {"steps": 30}, "acdc": {"tau": 0.05}}
SEARCHES = tuple(cw.searches())
SIZED = tuple(name for name in SEARCHES if name != "threshold")


@pytest.fixture(scope="module")
def induction():
    return organism_runs("induction", n=12)


def known_edges(organism) -> set[str]:
    """The edges of the mechanism that clean against corrupted values can show."""
    return set(organism.truth.edges) - set(organism.truth.unseen)


@pytest.mark.parametrize("search", SEARCHES)
def test_the_known_circuit_is_found_exactly_and_again(search: str, induction) -> None:
    clean, corrupted, metric, organism = induction
    found, again = (cw.find_circuit(clean, corrupted, metric, search=search, **QUICK.get(search, {})) for _ in range(2))
    assert set(found.edges) == known_edges(organism)
    assert found.edges == again.edges and found.faithfulness == again.faithfulness
    assert found.settings["search"]["name"] == search
    assert found.settings["forwards"] >= found.settings["evaluations"] > 0


@pytest.mark.parametrize("search", SIZED)
def test_a_circuit_has_at_most_the_size_asked_for_and_no_dead_ends(search: str) -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=6)
    options = {"edge-pruning": {"steps": 10}, "acdc": {"tau": 0.1}}.get(search, {})
    size = {"acdc": 40}.get(search, 12)  # one tau gives what it gives
    found = cw.find_circuit(clean, corrupted, metric, search=search, size=size, **options)
    assert 0 < len(found) <= size
    assert torch.equal(found.mask, trimmed(found.graph, found.mask))


@pytest.mark.parametrize("search", [name for name in SEARCHES if "node" in cw.searches()[name].levels])
def test_nodes_are_found(search: str, induction) -> None:
    clean, corrupted, metric, _ = induction
    options = {"edge-pruning": {"steps": 40, "size": 3}}.get(search, QUICK.get(search, {}))
    found = cw.find_circuit(clean, corrupted, metric, search=search, level="node", **options)
    assert {"embed", "L0.attn.h0", "L1.attn.h1"} <= set(found.nodes) and len(found.nodes) <= 4
    assert abs(1 - found.faithfulness) <= 0.1


@pytest.mark.parametrize("size", [4, 11, 22])
def test_at_every_size_refine_is_at_least_as_close_as_the_others(size: int) -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=12)
    apart = {
        search: abs(1 - cw.find_circuit(clean, corrupted, metric, search=search, size=size).faithfulness)
        for search in ("refine", "top-n", "greedy")
    }
    assert apart["refine"] <= min(apart.values()) + 1e-6


@pytest.mark.parametrize("limit", [12, 20, 60])
def test_a_bound_on_forward_passes_is_kept(limit: int) -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=12)
    found = cw.find_circuit(clean, corrupted, metric, size=20, max_forwards=limit)
    assert found.settings["forwards"] <= limit and found.settings["stopped_by_limit"]
    assert 0 < len(found) <= 20


def test_more_passes_are_never_worse() -> None:
    clean, corrupted, metric, _ = organism_runs("shapes", n=12)
    sizes = [len(cw.find_circuit(clean, corrupted, metric, max_forwards=limit)) for limit in (12, 40, 400)]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] < sizes[0]


@pytest.mark.parametrize("search", ["refine", "greedy", "edge-pruning"])
def test_a_forecast_is_kept_to(search: str, induction) -> None:
    clean, corrupted, metric, _ = induction
    options = {"steps": 20} if search == "edge-pruning" else {}
    forecast = cw.forecast_circuit(clean, corrupted, metric, search=search, **options)
    found = cw.find_circuit(clean, corrupted, metric, search=search, **options)
    assert found.settings["forwards"] <= forecast.forwards
    assert forecast.edges == int(found.graph.valid.sum()) and forecast.nodes == len(found.graph.writers)
    assert forecast.seconds > 0 and forecast.bytes > 0
    assert f"{forecast.edges:,} edges" in str(forecast)
    bounded = cw.forecast_circuit(clean, corrupted, metric, search="refine", max_forwards=30)
    assert bounded.forwards <= 30


def test_an_interrupted_search_leaves_nothing_behind(induction) -> None:
    clean, corrupted, metric, _ = induction
    before = cw.find_circuit(clean, corrupted, metric)

    def interrupt(stage: str, done: int, of: int) -> None:
        if stage == "minimality":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cw.find_circuit(clean, corrupted, metric, progress=interrupt)
    again = cw.find_circuit(clean, corrupted, metric)
    assert again.edges == before.edges and again.settings == before.settings


def test_settings_say_what_was_done(induction) -> None:
    clean, corrupted, metric, _ = induction
    found = cw.find_circuit(
        clean, corrupted, metric, refine=50, method_options={"steps": 2}, baseline="resample", seed=3, faithfulness=0.8
    )
    told = found.settings
    assert told["search"] == {"name": "refine", "refine": 50}
    assert told["method"] == {"name": "eap-ig", "steps": 2, "magnitudes": False}
    assert told["baseline"] == {"kind": "resample", "from": "corrupted run", "seed": 3}
    assert told["seed"] == 3 and told["target_faithfulness"] == pytest.approx(0.8)


def test_searches_that_do_not_exist_get_the_near_names() -> None:
    with pytest.raises(InputError, match="no search 'refin'; choose refine"):
        search_named("refin", "edge")
    with pytest.raises(InputError, match="'greedy' finds no circuits of nodes; choose acdc"):
        search_named("greedy", "node")


BAD = {
    "unknown option": ({"refin": 3}, InputError, "no option 'refin'; did you mean 'refine'"),
    "unknown method": ({"method": "eap-ih"}, InputError, "no scoring method 'eap-ih'; choose eap-ig"),
    "no edges": ({"size": 0}, InputError, "whole number of edges, 1 or more"),
    "half an edge": ({"size": 2.5}, InputError, "whole number of edges"),
    "too many edges": ({"size": 5000}, InputError, r"5,000 edges is wanted and \d+ differ"),
    "too many nodes": ({"size": 500, "level": "node"}, InputError, r"500 nodes is wanted and \d+ differ"),
    "more than faithful": ({"faithfulness": 1.5}, InputError, "0 < faithfulness <= 1, and it is 1.5"),
    "a threshold of a size": ({"search": "threshold", "size": 3}, InputError, "top-n"),
    "no tau": ({"search": "acdc", "tau": -1.0}, InputError, "tau above 0"),
    "no steps": ({"search": "edge-pruning", "steps": 0}, InputError, "at least 1"),
    "no number of passes": ({"max_forwards": float("nan")}, InputError, "number of passes, and nan"),
    "no options": ({"method_options": 3}, InputError, "dict of names and values, and 3"),
    "options of another type": ({"method_options": {"steps": 2.5}}, InputError, "steps is a whole number"),
    "no such option": ({"method_options": {"stepz": 2}}, InputError, "has no option 'stepz'"),
    "no baseline": ({"baseline": 3}, InputError, "A baseline is counterfactual, .* not 3"),
    "few passes": ({"max_forwards": 5}, ResourceError, r"at least 12 .* limit is 5"),
    "few passes to learn": ({"search": "edge-pruning", "max_forwards": 50}, ResourceError, "at least 460 .* is 50"),
    "little memory": ({"memory": 1000}, ResourceError, r"about [\d,]+ bytes and the limit is 1,000"),
}


@pytest.mark.parametrize("case", BAD)
def test_questions_that_make_no_sense_get_one_sentence(case: str, induction) -> None:
    clean, corrupted, metric, _ = induction
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        cw.find_circuit(clean, corrupted, metric, **options)


def test_runs_and_metrics_that_tell_nothing_get_one_sentence() -> None:
    clean, corrupted, _ = gpt2_runs()
    metric = cw.logit_difference(3, 4)
    with pytest.raises(InputError, match="corrupted inputs are the clean ones"):
        cw.find_circuit(clean, clean, metric)
    with pytest.raises(InputError, match="needs the corrupted run"):
        cw.find_circuit(clean, None, metric)
    with pytest.raises(MetricError, match=r"is 0\.5 for every example, clean or corrupted"):
        cw.find_circuit(clean, corrupted, cw.custom(lambda logits: logits[:, 0, 0] * 0 + 0.5, name="constant"))
    with pytest.raises(InputError, match="'resample' needs other examples and there is one"):
        alone = clean.net.record(clean.args[0][:1])
        cw.find_circuit(alone, None, metric, baseline="resample")


def test_too_few_examples_are_told_how_many_it_takes() -> None:
    clean, corrupted, _ = gpt2_runs(n=6)
    with pytest.raises(MetricError, match=r"give about \d+ pairs"):
        weak = cw.custom(lambda logits: logits[:, -1, 5] * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]))
        cw.find_circuit(clean, corrupted, weak)


def test_activations_that_never_differ_are_named() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2)).eval()
    module[0].weight.data[:, 3] = 0
    net = cw.open(module)
    inputs = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    other = inputs.clone()
    other[:, 3] += 1
    with pytest.raises((InputError, MetricError), match=r"differs|distinguish"):
        cw.find_circuit(net.record(inputs), net.record(other), lambda output: output[:, 0])


def compiled(name: str):
    """(clean, corrupted, metric, true edges) of a compiled program."""
    organism = organisms.load(name)
    pairs, net = organism.pairs(24, seed=1), cw.open(name)
    clean = net.record(pairs.clean)
    return clean, net.record(pairs.corrupted), cw.output_distance(clean), set(organism.truth.edges)


QUICKLY = ("rasp:reverse", "rasp:proportion", "rasp:sort")
PROGRAMS = [name if name in QUICKLY else pytest.param(name, marks=pytest.mark.slow) for name in organisms.programs()]


@pytest.mark.parametrize("name", PROGRAMS)
def test_of_a_compiled_program_the_exact_circuit_is_recovered(name: str) -> None:
    clean, corrupted, metric, truth = compiled(name)
    found = cw.find_circuit(clean, corrupted, metric, baseline="zero", faithfulness=0.9999)
    assert set(found.edges) == truth
