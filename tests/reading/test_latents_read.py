"""Latents as directions: what they write and read in words, and who reads what they write."""

from __future__ import annotations

from functools import cache

import torch

import cutaway as cw
from cutaway.basis import Directions
from cutaway.features.attach import attach
from cutaway.reading import build_index, contributed, sites_of, strings, used
from cutaway.run.trace import Trace


@cache
def runs() -> tuple[Trace, Trace, torch.Tensor, torch.Tensor]:
    """The induction organism as it is, and with directions of words to be read and written; and those directions."""
    net = cw.open("induction")
    weights = net.module.state_dict()
    says, means = weights["unembed.weight"][:6], weights["embed.weight"][:5]
    attached = attach(attach(net, Directions(says), "resid.2", name="out"), Directions(means), "resid.0")
    ids = torch.arange(1, 19)[None]
    return net.record(ids), attached.record(ids), says, means


def test_directions_say_the_words_that_they_are() -> None:
    plain, run, _, _ = runs()
    words = {row["site"]: row["top"][0]["entry"] for row in strings(run, side="writes").rows(top=None)}
    assert [words[f"out.f{word}"] for word in range(6)] == list("abcdef")
    words = {row["site"]: row["top"][0]["entry"] for row in strings(run, side="reads").rows(top=None)}
    assert [words[f"resid.0.f{word}.in"] for word in range(5)] == list("abcde")
    before, after = ({row["site"]: row for row in strings(side).rows(top=None)} for side in (plain, run))
    assert all(after[site]["top"] == row["top"] for site, row in before.items())  # all else is as it was


def test_weights_between_latents_and_components_are_products_of_directions() -> None:
    plain, run, says, means = runs()
    index, before = build_index(run), build_index(plain)
    into = {row.name: row.strength for row in index.writers_of("out.f3.in", 30)}
    out = run.net.module.state_dict()["layers.1.out.weight"][:, 16:32]  # of the second of four heads
    want = (torch.linalg.pinv(says).T[3] @ out).norm()
    assert abs(into["L1.attn.h1"] / float(want) - 1) < 1e-3
    direct = {row.name: row.strength for row in index.readers_of("resid.0.f2", 400)}
    assert abs(direct.get("out.f4.in", 0.0) - float(means[2] @ torch.linalg.pinv(says).T[4])) < 1e-3
    others = {row.name: row.strength for row in index.writers_of("L1.attn.h1.v", 60)}
    assert all(abs(others[row.name] - row.strength) < 1e-4 for row in before.writers_of("L1.attn.h1.v", 60))
    assert "out.f1" not in others and "resid.0.f1" in others  # what comes later is read by nobody before it


def test_shares_of_a_run_name_latents() -> None:
    _, run, _, _ = runs()
    assert sites_of(run, "resid.0.f2") == (["resid.0.f2"], ["resid.0.f2"])
    found = contributed(run, "L0.attn.h0.v", 20)
    assert abs(sum(row.share for row in found.rows) + found.constant - 1) < 1e-4
    assert {"resid.0.error", "resid.0.f2"} <= {row.name for row in found.rows}
    assert any(row.name == "L0.attn.h0.v" for row in used(run, "resid.0.f2", 20).rows)


def test_channels_of_an_image_have_latents_too() -> None:
    net = cw.open("shapes")
    images = torch.rand(2, *net.record(cw_images()).args[0].shape[1:])
    width = net.record(images)["L1.conv.out"].shape[1]
    index = build_index(attach(net, Directions(torch.eye(width)), "L1.conv.out").record(images))
    for latent in range(width):
        strengths = [
            {r.name: r.strength for r in index.readers_of(f"L1.conv{kind}{latent}", 40)} for kind in (".out.f", ".c")
        ]
        assert strengths[0] and all(abs(value - strengths[1][name]) < 1e-3 for name, value in strengths[0].items())


def cw_images() -> torch.Tensor:
    """Images of the shapes organism."""
    from cutaway import organisms

    return torch.as_tensor(organisms.load("shapes").pairs(2, 0).clean)
