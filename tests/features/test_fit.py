"""A dictionary knows its place: put elsewhere it is refused or told, with both numbers."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import cutaway as cw
from cutaway import organisms
from cutaway.errors import InputError
from cutaway.features.attach import attach
from cutaway.features.card import Card, Place
from cutaway.features.dictionary import Dictionary
from cutaway.features.fit import ENOUGH, check_fit, measure
from cutaway.run.network import Network
from cutaway.run.trace import Trace

SITE = "resid.1"


def inputs(count: int = 16, seed: int = 0) -> torch.Tensor:
    return torch.as_tensor(organisms.load("induction").pairs(count, seed).clean)


def trained(net: Network, site: str = SITE, keep_inputs: bool = False, factor: float = 1.0) -> Dictionary:
    """The directions that explain most of a site's values, with a threshold, and a card with what it did there."""
    run = net.record(inputs())
    rows = run[site].flatten(0, 1).detach() * factor
    center = rows.mean(0)
    axes = torch.linalg.svd(rows - center, full_matrices=False).Vh[:24]
    both = torch.cat([axes, -axes])
    weights = {"encoder": both, "decoder": both.clone(), "center": center, "decoder_bias": center}
    found = Dictionary("planted", "relu", weights)
    place = Place(site, rows.shape[1], net.fingerprint)
    reference = measure(found, rows, rows) | ({"inputs": inputs().tolist()} if keep_inputs else {})
    return found.but(card=Card((place,), (place,), net.name, reference))


def induction() -> Network:
    return cw.open("induction")


def test_at_its_place_nothing_is_said() -> None:
    net = induction()
    basis = trained(net)
    fit = check_fit(basis, net.record(inputs(16, 5)))
    assert fit.verdict == "fits" and fit.note == "" and fit.reasons == ()
    assert fit.measured["fvu"] < 0.2 and fit.measured["rows"] == 16 * 18
    attached = attach(net, basis)
    assert len(attached.pending) == 1
    attached.record(inputs())
    assert attached.notes == [] and attached.pending == [] and net.notes == []
    assert attach(net, trained(net, keep_inputs=True)).pending == []  # its card holds what to run
    assert attach(net, basis, "L0.resid_post").record(inputs()) and attach(net, basis, inputs=inputs()).notes == []


@pytest.mark.parametrize("elsewhere", ["resid.0", "resid.2", "L1.attn_out"])
def test_another_layer_is_refused_with_both_numbers(elsewhere: str) -> None:
    net = induction()
    basis = trained(net)
    fit = check_fit(basis, net.record(inputs()), elsewhere)
    assert fit.verdict == "refused"
    off = fit.reasons[0]
    number = {"mean length": "norm", "L0": "l0", "FVU": "fvu"}[off.split(" is ")[0]]
    assert f"{fit.measured[number]:.3g} here and {fit.reference[number]:.3g} by its card" in off
    with pytest.raises(InputError, match=f"does not belong at '{elsewhere}': .* here and .* by its card"):
        attach(net, basis, elsewhere, inputs=inputs())
    late = attach(net, basis, elsewhere)
    for _ in range(2):  # at the first run, and as long as it is attached
        with pytest.raises(InputError, match="does not belong"):
            late.record(inputs())
    forced = attach(net, basis, elsewhere, inputs=inputs(), force=True)
    assert "by its card" in forced.notes[0] and f"it was made for '{SITE}'" in forced.notes[0]
    assert forced.record(inputs())[f"{elsewhere}[latent=1]"].shape == (16, 18)


class Normed(nn.Module):
    """A linear map, a norm, and a linear map behind it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.last = nn.Linear(6, 12), nn.LayerNorm(12), nn.Linear(12, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.norm(self.first(x) * 3).relu())


def test_before_and_after_a_norm_differ() -> None:
    net = cw.open(Normed())
    rows = torch.randn(64, 6, generator=torch.Generator().manual_seed(1))
    value = net.record(rows)["norm"]
    weights = {"encoder": torch.eye(12), "decoder": torch.eye(12)}
    place = Place("norm", 12, net.fingerprint)
    basis = Dictionary("identity", "identity", weights, card=Card((place,), (place,), "", measure(
        Dictionary("identity", "identity", weights), value, value)))  # fmt: skip
    assert check_fit(basis, net, inputs=rows).verdict == "fits"
    before = check_fit(basis, net, "/mul.0", rows)
    assert before.verdict == "refused" and before.reasons[0].startswith("mean length is")


def test_another_scale_is_refused() -> None:
    net = induction()
    with pytest.raises(InputError, match="mean length is .* here and .* by its card"):
        attach(net, trained(net, factor=10.0), inputs=inputs())


def changed(net: Network, share: float) -> Network:
    """The network with noise on its weights, or with each tensor's in random order."""
    module = copy.deepcopy(net.module)
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in module.parameters():
            if share < 1:
                weight.add_(share * weight.std() * torch.randn(weight.shape, generator=draw))
            else:
                weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=draw)].view(weight.shape))
    return cw.open(module)


def test_another_checkpoint_is_told_and_one_that_differs_refused() -> None:
    net = induction()
    basis = trained(net)
    near = changed(net, 0.01)
    told = attach(near, basis, inputs=inputs())
    assert net.fingerprint in told.notes[0] and near.fingerprint in told.notes[0] and "FVU" in told.notes[0]
    with pytest.raises(InputError, match="FVU is .* here and .* by its card"):
        attach(changed(net, 1.0), basis, inputs=inputs())


def test_other_inputs_at_its_own_place_are_told_and_not_refused() -> None:
    net = induction()
    basis = trained(net)
    odd = torch.randint(21, 25, (4, 18), generator=torch.Generator().manual_seed(0))  # suits, which are no letters
    fit = check_fit(basis, net.record(odd))
    assert fit.verdict == "note" and "by its card" in fit.note and "the inputs differ" in fit.note
    assert fit.measured["fvu"] > fit.reference["fvu"]
    assert attach(net, basis).record(odd) is not None
    elsewhere = basis.but(
        card=basis.card.but(reads=(Place(SITE, 64, "another"),), writes=(Place(SITE, 64, "another"),))
    )
    with pytest.raises(InputError, match="does not belong"):
        attach(net, elsewhere).record(odd)


def test_few_rows_refuse_nothing_and_an_unknown_card_is_measured() -> None:
    net = induction()
    few = attach(net, trained(net, factor=10.0))
    assert few.record(inputs(1)[:, :18]).logits.shape[1] == 18 < ENOUGH
    assert "mean length" in few.notes[0]
    bare = trained(net).but(card=Card())
    run: Trace = net.record(inputs())
    fit = check_fit(bare, run, SITE)
    assert fit.verdict == "unknown" and "no figures" in fit.note and f"L0 {fit.measured['l0']:.3g}" in fit.note
    assert fit.record()["measured"]["fvu"] == fit.measured["fvu"]
    with pytest.raises(InputError, match="nothing to measure"):
        check_fit(bare, net, SITE)
    with pytest.raises(InputError, match="for 64; it belongs elsewhere"):
        check_fit(trained(net), cw.open(Normed()).record(torch.randn(40, 6)), "norm")


def test_inputs_that_this_network_cannot_run_tell_of_the_other_network() -> None:
    place = Place("resid.1", 64, "elsewhere")
    card = Card((place,), (place,), "elsewhere", {"l0": 3.0, "fvu": 0.2, "norm": 8.0, "inputs": [[100_000, 3]]})
    with pytest.raises(InputError, match="made for the network elsewhere, and this is 'induction'"):
        cw.open("induction").attach(
            Dictionary("any", "relu", dict.fromkeys(("encoder", "decoder"), torch.eye(64)), card=card)
        )
