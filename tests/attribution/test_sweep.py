"""Patching sweeps equal one patch at a time, computed naively."""

import pytest
import torch
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway.attribution.sweep import patch_sweep
from cutaway.errors import SiteError
from cutaway.run.narrow import narrow


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


def test_a_full_patch_restores_everything() -> None:
    clean, corrupted, metric, _ = organism_runs("induction", n=8)
    sweep = patch_sweep(corrupted, clean, metric, ["embed"])
    assert float(sweep.effect.sum()) > 0.5


def test_a_site_without_the_axis_is_refused() -> None:
    clean, corrupted, _ = gpt2_runs()
    with pytest.raises(SiteError, match="has no axis 'head'"):
        patch_sweep(corrupted, clean, cw.logit_difference(3, 4), ["L0.resid_pre"], axis="head")


@pytest.mark.parametrize("position", [-1, 3])
def test_narrowing_an_output_gives_that_position(position: int) -> None:
    clean, _, _ = gpt2_runs()
    tape = clean.tape
    target = tape.graph.outputs[0]
    cut, finish = narrow(tape, target, 1, position)
    assert cut != target
    found = finish(tape.kept[cut])
    assert found.shape[1] == 1
    torch.testing.assert_close(found[:, 0], clean.logits[:, position])
