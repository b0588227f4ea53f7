"""Evaluating dictionaries whose figures are known beforehand, on several kinds of networks."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch

import cutaway as cw
from cutaway import organisms
from cutaway.errors import InputError
from cutaway.features import Card, Dictionary, InMemory, Place
from cutaway.features.classical import fit_dictionary
from cutaway.features.controls import identity_dictionary
from cutaway.features.evaluate import evaluate_dictionary
from cutaway.features.figures import Evaluation
from cutaway.features.reconstruction import reconstruction
from cutaway.features.spliced import recovered, rows_at, spliced, steps
from cutaway.features.uncertainty import ratio, resampled, share
from zoo import case

# Networks of several kinds: transformer, convolutional with channels at positions, recurrent, MLP.
SITES = {
    "induction": ("resid.1", ""), "shapes": ("L1.conv.out", "channel"), "counter": ("L0.rnn@7.out", ""),
    "gates": ("L0.mlp.out", ""),
}  # fmt: skip


@cache
def seen(name: str) -> tuple[cw.Network, torch.Tensor, InMemory, Place]:
    """A network, inputs, the rows of a place in their runs, and the place."""
    net, (site, axis) = cw.open(name), SITES[name]
    inputs = organisms.load(name).pairs(48, 0).clean
    trace = net.record(inputs)
    value = trace.value(site)
    width = value.shape[1] if axis else value.shape[-1]
    place = Place(site, width, net.fingerprint, axis)
    rows = rows_at(trace, place)[0]
    return net, inputs, InMemory({site: rows}, {"hash": name}, net.fingerprint), place


def exact(place: Place) -> Dictionary:
    """A sparse dictionary that reconstructs everything: every number and its negative."""
    table = torch.cat([torch.eye(place.width), -torch.eye(place.width)])
    return Dictionary("exact", "relu", {"encoder": table, "decoder": table}, card=Card((place,), (place,)))


def nothing(place: Place) -> Dictionary:
    """A dictionary that writes zeros."""
    table = torch.zeros(3, place.width)
    return Dictionary("nothing", "relu", {"encoder": table, "decoder": table}, card=Card((place,), (place,)))


@pytest.mark.parametrize("name", SITES)
def test_an_exact_dictionary_recovers_all_and_an_empty_one_nothing(name: str) -> None:
    net, inputs, rows, place = seen(name)
    found = evaluate_dictionary(exact(place), rows, net=net, inputs=inputs, controls=False)
    assert found.figure("FVU").value == pytest.approx(0, abs=1e-9)
    assert found.figure("relative bias").value == pytest.approx(1) == found.figure("cosine").value
    none = evaluate_dictionary(nothing(place), rows, net=net, inputs=inputs, controls=False)
    assert none.figure("dead latents").value == 1 and none.figure("L0").value == 0
    for ablation, least in (("zero", 0.0), ("mean", -float("inf"))):
        assert found.figure(f"loss recovered ({ablation})").value == pytest.approx(1, abs=1e-5)
        assert found.figure("added loss").value == pytest.approx(0, abs=1e-5)
        value = none.figure(f"loss recovered ({ablation})").value
        assert value is not None and least - 1e-6 <= value < 1
    assert none.figure("loss recovered (zero)").value == pytest.approx(0, abs=1e-6)
    assert none.figure("added loss").value > 10 * abs(found.figure("added loss").value)


# Other architectures: where, and along which axis.
OTHERS = {
    "resnet": ("resid.1", "channel"), "lstm": ("L0.cell@2.out", ""), "gru": ("L0.rnn@*.out", ""),
    "vit": ("resid.1", ""), "mlp-mixer": ("resid.1", ""), "mamba": ("resid.1", ""), "rwkv": ("resid.1", ""),
    "bert": ("resid.1", ""), "gpt2": ("L0.attn.z[head=1]", ""), "mixtral": ("resid.1", ""),
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_splicing_works_in_any_network(name: str) -> None:
    found, (site, axis) = case(name), OTHERS[name]
    args, kwargs = found.inputs()
    given = {**{str(at): value for at, value in enumerate(args)}, **kwargs}
    tensors = {key: value for key, value in given.items() if isinstance(value, torch.Tensor)}
    inputs = [{key: value[row] for key, value in tensors.items()} for row in range(len(found.plain))]
    axes = found.trace.locate(steps(found.trace, site)[0]).axes
    value = found.trace.value(steps(found.trace, site)[0])
    place = Place(site, value.shape[axes.index(axis) if axis else -1], "", axis)
    losses = spliced(
        found.net, inputs, {"exact": exact(place), "nothing": nothing(place)}, {site: torch.zeros(place.width)}
    ).loss
    assert losses["exact"] == pytest.approx(losses["clean"], abs=1e-6)
    assert losses["nothing"] == pytest.approx(losses["zero"]) == losses["mean"]
    assert np.abs(losses["zero"] - losses["clean"]).max() > 1e-6


def test_the_mean_row_in_every_place_recovers_nothing_of_mean_ablation() -> None:
    net, inputs, rows, place = seen("induction")
    mean = rows.values[place.site].mean(0)
    constant = nothing(place).but(weights={**nothing(place).weights, "decoder_bias": mean})
    losses = spliced(net, inputs, {"own": constant}, {place.site: mean})
    [zero, means, *_] = recovered(losses, "own")
    assert means.value == pytest.approx(0, abs=1e-6) and zero.low is not None and zero.low <= zero.value <= zero.high


def test_what_is_spliced_is_what_a_hook_puts_there() -> None:
    """The same reconstruction by a plain hook in a plain network."""
    net, inputs, _, _ = seen("induction")
    place = Place("layers.0", 64)
    own = fit_dictionary(InMemory({place.site: rows_at(net.record(inputs), place)[0]}), 8, "pca")
    losses = spliced(net, inputs, {"own": own}, {place.site: torch.zeros(place.width)}, batch=7)
    module = organisms.load("induction").module
    handle = module.layers[0].register_forward_hook(lambda *call: own.reconstruct(call[2]))
    with torch.no_grad():
        changed = module(inputs)
    handle.remove()
    with torch.no_grad():
        clean = module(inputs)
    wanted = (clean.softmax(-1) * (clean.log_softmax(-1) - changed.log_softmax(-1))).sum(-1).mean(1)
    assert losses.kl["own"] == pytest.approx(wanted.double().numpy(), abs=1e-4)
    assert losses.loss["own"] == pytest.approx(losses.kl["own"]) and losses.name.startswith("KL")


def test_next_tokens_are_judged_where_they_are_predicted() -> None:
    """A network that copies each token's successor from a table."""
    successor = torch.nn.Embedding.from_pretrained(8.0 * torch.eye(6).roll(-1, 0).T.contiguous().roll(2, 0))

    class Counting(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = successor
            self.out = torch.nn.Identity()

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.out(self.table(ids) * 1.0)

    net = cw.open(Counting())
    step = int(successor.weight[0].argmax())
    inputs = (torch.arange(5)[None] * step + torch.arange(4)[:, None]) % 6
    place = Place("table", 6)
    losses = spliced(net, inputs, {"own": exact(place)}, {"table": torch.zeros(6)})
    assert losses.name == "next-token cross-entropy"
    assert losses.loss["zero"] == pytest.approx(np.log(6)) and losses.loss["clean"].max() < 0.01


def test_a_metric_of_ones_own_decides() -> None:
    net, inputs, rows, place = seen("shapes")
    pairs = organisms.load("shapes").pairs(48, 0)
    metric = cw.logit_difference(pairs.correct, pairs.wrong)
    losses = spliced(net, inputs, {"own": exact(place)}, {place.site: torch.zeros(place.width)}, metric=metric)
    assert losses.name == "minus logit difference"
    assert losses.loss["clean"] == pytest.approx(-metric(net.record(inputs).logits, net).detach().numpy(), abs=1e-4)
    plain = spliced(
        net, inputs, {"own": exact(place)}, {place.site: torch.zeros(place.width)}, metric=lambda out: out[:, 0]
    )
    assert plain.loss["clean"] == pytest.approx(-net.record(inputs).logits[:, 0].detach().numpy(), abs=1e-5)


def test_a_transcoder_writes_where_it_does_not_read() -> None:
    """Layer 1 of the gates from layer 0: an exact linear transcoder exists where the map is linear."""
    torch.manual_seed(0)
    net = cw.open(torch.nn.Sequential(torch.nn.Linear(5, 4), torch.nn.Linear(4, 6), torch.nn.Linear(6, 3)))
    inputs = torch.randn(64, 5)
    trace = net.record(inputs)
    values = {name: trace.value(name).detach() for name in ("0", "1")}
    layer = net.module[1]
    table = torch.cat([torch.eye(4), -torch.eye(4)])
    weights = {"encoder": table, "decoder": table @ layer.weight.detach().T, "decoder_bias": layer.bias.detach()}
    card = Card((Place("0", 4),), (Place("1", 6),))
    found = evaluate_dictionary(
        Dictionary("transcoder", "relu", weights, card=card), InMemory(values), net=net, inputs=inputs
    )
    assert found.figure("FVU").value == pytest.approx(0, abs=1e-9)
    assert found.figure("loss recovered (zero)").value == pytest.approx(1, abs=1e-4)
    assert found.figure("FVU").controls["random"] > 0.01 < found.figure("FVU").controls["PCA"] + 1


def test_a_crosscoder_has_a_figure_for_each_place() -> None:
    generator = torch.Generator().manual_seed(0)
    values = {"a": torch.randn(200, 3, generator=generator), "b": torch.randn(200, 2, generator=generator)}
    table = torch.eye(5)[:3]
    card = Card((Place("a", 3), Place("b", 2)), (Place("a", 3), Place("b", 2)))
    own = Dictionary("crosscoder", "identity", {"encoder": table, "decoder": table}, card=card)
    found = evaluate_dictionary(own, InMemory(values), controls=False)
    assert found.figure("FVU at a").value == pytest.approx(0)
    assert found.figure("FVU at b").value == pytest.approx(1, abs=0.02)


def test_known_densities_shrinkage_and_deadness() -> None:
    """One latent in two fires always, one in 20 rows, one never; half the length is made."""
    count = 2000
    value = torch.zeros(count, 4)
    value[:, 0] = 1 + torch.rand(count, generator=torch.Generator().manual_seed(0))
    value[: count // 20, 1] = 3.0
    value[:, 3] = torch.randn(count, generator=torch.Generator().manual_seed(1))
    table = torch.eye(4)[:3]
    own = Dictionary("own", "relu", {"encoder": table, "decoder": table})
    figures, densities = reconstruction(own, value, value)
    named = {one.name: one for one in figures}
    assert named["L0"].value == pytest.approx(1.05)
    assert named["dead latents"].value == pytest.approx(1 / 3) and "rule of three" in named["dead latents"].how
    assert named["dense latents"].value == pytest.approx(1 / 3)
    assert densities["never"] == 1 and sum(densities["latents"]) == 2
    middle = value.mean(0)
    shrunk = Dictionary(
        "half", "identity",
        {"encoder": torch.eye(4), "decoder": torch.eye(4) / 2, "decoder_bias": middle / 2},
    )  # fmt: skip
    named = {one.name: one for one in reconstruction(shrunk, value, value)[0]}
    assert named["relative bias"].value == pytest.approx(0.5) and named["cosine"].value == pytest.approx(1)
    assert named["FVU"].value == pytest.approx(0.25)
    assert named["explained variance"].value == pytest.approx(0.75)


def test_every_figure_says_how_which_way_is_better_and_what_controls_give() -> None:
    net, inputs, rows, place = seen("induction")
    own = fit_dictionary(rows, 24, "k-means")
    found = evaluate_dictionary(
        own, rows, net=net, inputs=inputs, labels={"one": rows.values[place.site][:, 0] > 0}, seeds=[own]
    )
    for one in found.figures:
        assert one.better in ("higher", "lower", "nearer to 1") and one.how, one.name
        assert "random" in one.controls, one.name
        assert one.low is None or one.value is None or one.low <= one.value <= one.high, one.name
    assert {"PCA", "data", "pursuit", "neurons", "probe"} <= {name for one in found.figures for name in one.controls}
    assert found.figure("FVU").value < found.figure("FVU").controls["random"]
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["figures"]
    assert "loss recovered (zero)" in str(found) and any("made from these rows" in note for note in found.notes)


def test_weights_that_are_not_its_own_are_noted() -> None:
    net, inputs, rows, place = seen("gates")
    foreign = exact(Place(place.site, place.width, "0" * 16))
    found = evaluate_dictionary(foreign, rows, net=net, inputs=inputs, controls=False)
    assert any("other weights" in note for note in found.notes)


def test_an_ablation_that_changes_nothing_is_said() -> None:
    net = cw.open(torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.ReLU(), torch.nn.Linear(3, 2)))
    with torch.no_grad():
        net.module[2].weight.zero_()
    net = cw.open(net.module)
    place = Place("0", 3)
    rows = InMemory({"0": torch.randn(40, 3, generator=torch.Generator().manual_seed(0))})
    found: Evaluation = evaluate_dictionary(identity_dictionary(3, place), rows, net=net, inputs=torch.randn(9, 3))
    zero = found.figure("loss recovered (zero)")
    assert zero.value is None and "nothing to recover" in zero.how


def test_rows_and_inputs_that_do_not_fit_are_refused() -> None:
    net, inputs, rows, place = seen("gates")
    own = exact(place)
    with pytest.raises(InputError, match=f"for '{place.site}', and these are rows of b"):
        evaluate_dictionary(own, InMemory({"b": torch.zeros(9, place.width)}))
    with pytest.raises(InputError, match="has rows of 3 numbers and these have"):
        evaluate_dictionary(identity_dictionary(3), rows)
    with pytest.raises(InputError, match="too few"):
        evaluate_dictionary(own, InMemory({place.site: torch.zeros(2, place.width)}))
    with pytest.raises(InputError, match="give inputs"):
        evaluate_dictionary(own, rows, net=net)
    with pytest.raises(InputError, match="no input"):
        spliced(net, [], {"own": own}, {place.site: torch.zeros(place.width)})
    with pytest.raises(InputError, match="one number for each of"):
        spliced(net, inputs, {"own": own}, {place.site: torch.zeros(place.width)}, metric=lambda out: out.mean())
    many = InMemory({place.site: torch.randn(300, place.width, generator=torch.Generator().manual_seed(0))})
    for labels in (["yes"] * 300, many.values[place.site][:, 0], torch.arange(300)):
        with pytest.raises(InputError, match="no numbers|different labels"):
            evaluate_dictionary(own, many, labels={"odd": labels}, controls=False)
    with pytest.raises(InputError, match="2 labels"):
        evaluate_dictionary(own, rows, labels={"one": [True, False]})


def test_intervals() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        top, bottom = random.exponential(2, 400), random.exponential(1, 400)
        value, low, high = ratio(top, bottom)
        assert low is not None and high is not None and low <= value <= high
        covered += low <= 2 <= high
    assert 0.9 < covered / 200 <= 0.99
    assert share(0, 10)[0] == 0 and share(0, 0)[1] is None
    given = random.normal(3, 1, 100)
    value, low, high = resampled(lambda rows: float(given[rows].mean()), 100)
    assert low is not None and high is not None and high - low == pytest.approx(2 * 1.96 * given.std() / 10, rel=0.2)
    assert resampled(lambda rows: 1.0, 1) == (1.0, None, None)
