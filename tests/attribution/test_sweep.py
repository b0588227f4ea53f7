"""Patching sweeps equal one patch at a time, computed naively."""

import pytest
import torch
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway.attribution.passes import passes
from cutaway.attribution.sweep import forecast_sweep, patch_sweep
from cutaway.errors import InputError, ResourceError, SiteError
from zoo import case


def test_each_cell_is_one_patch() -> None:
    clean, corrupted, _ = gpt2_runs()
    metric = cw.logit_difference(3, 4)
    sites = ["L0.resid_pre", "L0.attn_out", "L1.resid_mid", "L1.mlp_out"]
    sweep = patch_sweep(corrupted, clean, metric, sites)
    assert sweep.effect.shape == (4, 7)
    for row, site in enumerate(sites):
        for place in range(7):
            patched = corrupted.replay(cw.patch(f"{site}[pos={place}]", clean))
            expected = metric(patched.logits, clean.net)
            torch.testing.assert_close(sweep.metric[row, place], expected, rtol=1e-5, atol=1e-5)


def test_heads_as_places() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    sweep = patch_sweep(corrupted, clean, metric, ["L0.attn.z", "L1.attn.z"], axis="head")
    assert int(sweep.effect[1].argmax()) == 1 and float(sweep.effect[1, 1]) > 0.9
    assert int(sweep.effect[0].argmax()) == 0


def test_a_sweep_prints_its_largest_effects() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    sweep = patch_sweep(corrupted, clean, metric, ["L0.attn.z", "L1.attn.z"], axis="head")
    top = dict(sweep.top(2))
    assert top == {
        "L0.attn.z[head=0]": float(sweep.effect[0, 0]), "L1.attn.z[head=1]": float(sweep.effect[1, 1])
    }  # fmt: skip
    assert all(site in str(sweep) for site in top)


def test_a_full_patch_restores_everything() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    sweep = patch_sweep(corrupted, clean, metric, ["embed"])
    assert float(sweep.effect.sum()) > 0.5


def test_a_metric_of_ones_own_sees_the_whole_output() -> None:
    clean, corrupted, _ = gpt2_runs()
    shapes = set()

    def read(output: torch.Tensor) -> torch.Tensor:
        shapes.add(output.shape[1])
        return output.log_softmax(-1)[:, :, 3].sum(1) + output[:, 2, 1]

    metric = cw.custom(read)
    sweep = patch_sweep(corrupted, clean, metric, "L0.resid_pre")
    assert shapes == {7}
    for place in range(7):
        patched = corrupted.replay(cw.patch(f"L0.resid_pre[pos={place}]", clean))
        torch.testing.assert_close(sweep.metric[0, place], metric(patched.logits, clean.net), rtol=1e-5, atol=1e-4)


def test_a_patch_that_changes_the_path_runs_live() -> None:
    class Looped(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = x * 2
            while y.abs().max() > 1:
                y = y / 2
            return y

    net = cw.open(Looped())
    run, source = net.record(torch.tensor([[0.3, 0.2, 0.1]])), net.record(torch.tensor([[0.4, 5.0, 0.2]]))
    metric = cw.custom(lambda output: output.sum(1))
    sweep = patch_sweep(run, source, metric, ["/mul.0"], axis="1")
    for place in range(3):
        patched = run.replay(cw.patch(f"/mul.0[1={place}]", source))
        torch.testing.assert_close(sweep.metric[0, place], metric(patched.logits, net))


def test_odd_arguments_are_told_in_a_sentence() -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(InputError, match="no site to patch"):
        patch_sweep(corrupted, clean, cw.logit_difference(3, 4), [])


def test_a_site_without_the_axis_is_refused() -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(SiteError, match="has no axis 'head'"):
        patch_sweep(corrupted, clean, cw.logit_difference(3, 4), ["L0.resid_pre"], axis="head")


@pytest.mark.parametrize("name", ["gpt2", "llama", "bert", "vit", "rnn", "lenet", "unet", "encoder norm last"])
def test_on_every_kind_of_network_a_sweep_is_its_patches(name: str) -> None:
    found = case(name)
    run, (args, kwargs) = found.trace, found.other()
    source = found.net.record(*args, **kwargs)
    metric = cw.custom(lambda output: output.flatten(1)[:, 1])
    axes = {"channel", "pos", "head", "neuron"}
    named = [site for site, place in run.lift().sites.items() if place.derive is None]
    sites = [(site, axis) for site in named for axis in run.locate(site).axes if axis in axes]
    for site, axis in sites[:: max(len(sites) // 4, 1)]:
        sweep = patch_sweep(run, source, metric, [site], axis=axis)
        for place in range(0, sweep.effect.shape[1], max(sweep.effect.shape[1] // 3, 1)):
            patched = run.replay(cw.patch(f"{site}[{axis}={place}]", source))
            torch.testing.assert_close(sweep.metric[0, place], metric(patched.logits, found.net), rtol=1e-4, atol=1e-5)


def test_only_patches_that_change_something_run() -> None:
    clean, corrupted, _ = gpt2_runs()
    differ = (clean.args[0] != corrupted.args[0]).any(0).nonzero()[:, 0].tolist()
    metric = cw.logit_difference(3, 4)
    sweep = patch_sweep(corrupted, clean, metric, ["L0.resid_pre", "L1.resid_pre"])
    assert sweep.forecast.patches == 14
    assert sweep.forecast.run == len(differ) + 7 - differ[0]
    assert sweep.forecast.together
    untouched = [place for place in range(7) if place not in differ]
    assert not sweep.effect[0, untouched].any()


def test_a_forecast_is_what_the_sweep_then_takes() -> None:
    clean, corrupted, _ = gpt2_runs()
    asked = (corrupted, clean, cw.logit_difference(3, 4), ["L0.mlp_out", "L1.mlp_out"])
    forecast, sweep = forecast_sweep(*asked), patch_sweep(*asked)
    assert forecast.seconds is not None and forecast.seconds > 0
    assert (forecast.patches, forecast.run, forecast.passes, forecast.bytes) == (
        sweep.forecast.patches, sweep.forecast.run, sweep.forecast.passes, sweep.forecast.bytes,
    )  # fmt: skip
    assert 0 < forecast.forwards < forecast.run
    assert "passes" in str(forecast)


def test_a_limit_of_memory_makes_more_passes_and_the_same_numbers() -> None:
    clean, corrupted, _ = gpt2_runs()
    asked = (corrupted, clean, cw.logit_difference(3, 4), ["L0.resid_pre", "L1.resid_pre"])
    free = patch_sweep(*asked)
    tight = patch_sweep(*asked, memory=free.forecast.bytes // free.forecast.run + 20_000)
    assert tight.forecast.passes > free.forecast.passes
    assert tight.forecast.bytes < free.forecast.bytes
    torch.testing.assert_close(tight.metric, free.metric, rtol=1e-5, atol=1e-5)
    with pytest.raises(ResourceError, match="One patch takes .* use fewer"):
        patch_sweep(*asked, memory=100)


def test_a_plan_serves_the_next_runs_of_the_same_form() -> None:
    found = case("gpt2")
    one, two = found.net.record(*found.args, **found.kwargs), found.net.record(*found.args, **found.kwargs)
    args, kwargs = found.other()
    source = found.net.record(*args, **kwargs)
    metric = cw.logit_difference(3, 4)
    first = patch_sweep(one, source, metric, ["L0.mlp_out"])
    known = len(found.net.plans(two.graph))
    assert known
    again = patch_sweep(two, source, metric, ["L0.mlp_out"])
    assert len(found.net.plans(two.graph)) == known
    torch.testing.assert_close(again.metric, first.metric)


def test_neighbouring_starts_share_a_pass_when_that_is_cheaper() -> None:
    worlds = [(0, place) for place in range(8)]
    some = passes(worlds, list(range(8)), [1.0] * 8, 8, 1, lambda start: 10, 1 << 20)
    assert [world for one in some for world in one.worlds] == worlds
    assert len(some) == 1
    apart = passes([(0, 0), (0, 900)] * 300, [0, 900] * 300, [1.0] * 600, 1000, 1, lambda start: 10, 1 << 20)
    assert [one.start for one in apart] == [0, 900]
    tight = passes(worlds, [0] * 8, [1.0] * 8, 8, 1, lambda start: 10, 80)
    assert [len(one.worlds) for one in tight] == [2, 2, 2, 2] and max(one.bytes for one in tight) <= 80
