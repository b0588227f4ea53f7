"""Dictionaries in a run: nothing changes until a latent is edited, and that is an edit in its coordinates."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from dictionaries import dictionary, place
from torch import Tensor

import cutaway as cw
from cutaway.attribution.sums import edge_errors
from cutaway.basis import Directions, edit_in
from cutaway.errors import InputError, SiteError
from cutaway.features.attach import attach
from cutaway.features.card import Card, Place
from cutaway.features.codes import RULES
from cutaway.features.dictionary import Dictionary
from cutaway.features.spliced import rows_at
from zoo import Case, case, error

# A site of every kind: stream, heads, neurons, channels, states, a scan, folded positions, norms on the skip path.
SITES = [
    ("gpt2", "resid.2"), ("gpt2", "L1.attn.z"), ("gpt2", "L0.attn.q"), ("llama", "L1.mlp.out"), ("bert", "resid.4"),
    ("lenet", "L1.conv.out"), ("resnet", "resid.2"), ("gru", "L0.rnn@2.out"), ("gru", "L0.rnn.n"),
    ("lstm", "L0.cell@4.out"), ("mamba", "L1.ssm.out"), ("vit", "L1.mlp_out"), ("swin", "L1.attn.z"),
    ("attention folded", "resid.1"), ("mixtral", "L1.moe.out"), ("mlp", "L0.mlp.pre"), ("t5", "L3.attn_out"),
]  # fmt: skip


def vectors(found: Case, site: str) -> tuple[Tensor, int]:
    """The value at a site, and the axis along which its vectors lie."""
    value, axes = found.trace[site], found.trace.locate(site).axes
    named = next((name for name in ("channel", "neuron") if name in axes), "")
    return value, axes.index(named) if named else value.ndim - 1


@pytest.mark.parametrize("name, site", SITES)
def test_every_kind_of_value_of_every_kind_of_network(name: str, site: str) -> None:
    found = case(name)
    value, axis = vectors(found, site)
    basis = dictionary(value.shape[axis], 11, "topk")
    args, kwargs = found.inputs()
    run = attach(found.net, basis, site).record(*args, **kwargs)

    def edited(coordinates: Tensor) -> Tensor:
        mask = torch.zeros(11)
        mask[3] = 1
        return coordinates * (1 + 2 * mask)

    assert error(run.logits, found.plain) <= (1e-6 if found.entry.fused else 0.0)
    assert error(run[f"{site}[latent=3]"], basis.encode(value.movedim(axis, -1))[..., 3]) <= 1e-5
    same = run.replay(cw.apply(f"{site}[latent=3]", lambda part: part))
    assert error(same.logits, run.logits) <= 1e-6
    got = run.replay(cw.scale(f"{site}[latent=3]", 3.0))
    by_hand = cw.apply(site, lambda whole: edit_in(basis, whole.movedim(axis, -1), edited).movedim(-1, axis))
    assert error(got.logits, found.trace.replay(by_hand).logits) <= 1e-5
    lifted = run.lift()
    lifted.tape.graph.check()
    names = list(found.trace.lift().sites)
    assert list(lifted.sites)[: len(names)] == names
    assert all(off <= 1e-5 for off in edge_errors(run).values())


def gpt2() -> tuple[Case, Tensor, Tensor]:
    """The tiny GPT-2, inputs, and others."""
    found = case("gpt2")
    (ids,), _ = found.inputs()
    (other,), _ = found.other()
    return found, ids, other


def test_an_edit_that_changes_nothing_changes_no_bit_in_any_precision() -> None:
    found, ids, _ = gpt2()
    width = found.trace["resid.2"].shape[-1]
    for net in (found.net, cw.open(copy.deepcopy(found.module).bfloat16())):
        run = attach(net, dictionary(width, 30), "resid.2").record(ids)
        assert torch.equal(run.replay(cw.scale("resid.2[latent=4]", 1.0)).logits, run.logits)
        assert not torch.equal(run.replay(cw.add("resid.2[latent=4]", torch.tensor(3.0))).logits, run.logits)
        assert run.replay(cw.zero("resid.2[latent=4]"))["resid.2[latent=4]"].abs().max() == 0


def test_gradients_through_a_dictionary_are_those_without_it_and_reach_its_latents() -> None:
    found, ids, _ = gpt2()
    basis = dictionary(found.trace["resid.2"].shape[-1], 30)
    run = attach(found.net, basis, "resid.2").record(ids)
    weight = torch.randn(run.logits.shape, generator=torch.Generator().manual_seed(0))

    def gradient(logits: Tensor, at: Tensor) -> Tensor:
        return torch.autograd.grad((logits * weight).sum(), at)[0]

    here = torch.zeros_like(found.trace["resid.2"], requires_grad=True)
    plain = gradient(found.trace.replay(cw.apply("resid.2", lambda value: value + here)).logits, here)
    edits = (cw.apply("resid.2", lambda value: value + here), cw.scale("resid.2[latent=5]", 1.0))
    assert error(gradient(run.replay(*edits).logits, here), plain) <= 1e-6
    more = torch.zeros(*plain.shape[:-1], requires_grad=True)
    moved = run.replay(cw.apply("resid.2[latent=5]", lambda part: part + more[..., None]))
    assert error(gradient(moved.logits, more), plain @ basis.decoder[5]) <= 1e-5


def test_interventions_of_all_kinds_act_on_latents() -> None:
    found, ids, other = gpt2()
    basis = dictionary(found.trace["resid.2"].shape[-1], 30)
    net = attach(found.net, basis, "L0.resid_post", name="middle")
    run, source = net.record(ids), net.record(other)
    site = "middle[latent=7]"
    for name in ("middle", "resid.2", "L0.resid_post", "blocks.0.hook_resid_post"):  # one value by all of its names
        assert torch.equal(run[f"{name}[latent=7]"], run[site])
    codes, given = basis.encode(run["resid.2"])[..., 7], basis.encode(source["resid.2"])[..., 7]
    for edit, want in (
        (cw.patch(f"{site[:-1]}, pos=-1]", source), torch.cat([codes[:, :-1], given[:, -1:]], 1)),
        (cw.mean(site, source), given.mean(0, keepdim=True).expand_as(codes)),
        (cw.scale(site, 2.0), codes * 2),
        (cw.add(site, torch.tensor(0.5)), codes + 0.5),
    ):
        replayed, recorded = run.replay(edit), net.record(ids, interventions=[edit])
        assert torch.allclose(replayed[site], want, atol=1e-5)
        assert torch.equal(replayed.logits, recorded.logits)
        change = (want - codes)[..., None] * basis.decoder[7]
        by_hand = found.trace.replay(cw.apply("resid.2", lambda value, change=change: value + change))
        assert error(replayed.logits, by_hand.logits) <= 1e-5
    # An edit before the dictionary reaches its latents, and so does one of the module that gives the value.
    before = run.replay(cw.scale("transformer.h.0", 2.0))
    assert torch.allclose(before["middle[latent=:]"], basis.encode(run["resid.2"] * 2), atol=1e-4)


@pytest.mark.parametrize("activation", RULES)
def test_every_rule_and_rows_normalised_one_by_one(activation: str) -> None:
    found, ids, _ = gpt2()
    for per_row in ("", "standard"):
        basis = dictionary(found.trace["resid.1"].shape[-1], 12, activation, per_row)
        run = attach(found.net, basis, "resid.1", latents=[1, 4, 5]).record(ids)
        assert torch.allclose(run["resid.1[latent=:]"], basis.encode(found.trace["resid.1"]), atol=1e-5)
        rest = found.trace["resid.1"] - basis.decode(basis.encode(found.trace["resid.1"]))
        assert torch.allclose(run["resid.1.error"], rest, atol=1e-5)
        errors = edge_errors(run)
        assert all(off <= 1e-5 for port, off in errors.items() if not per_row or "resid.1" not in port)


def test_transcoders_crosscoders_and_heads_side_by_side() -> None:
    found, ids, _ = gpt2()
    plain = found.trace
    one, two = place(plain, "L0.resid_mid"), place(plain, "L0.mlp_out")
    transcoder = dictionary(one.width, 9, skip=True).but(card=Card((one,), (two,)))
    run = attach(found.net, transcoder).record(ids)
    codes = transcoder.encode(plain["L0.resid_mid"])
    assert torch.equal(run["L0.mlp_out[latent=2]"], codes[..., 2])
    assert torch.allclose(run["L0.mlp_out.error"], plain["L0.mlp_out"] - transcoder.decode(codes), atol=1e-5)
    without = run.replay(cw.zero("L0.mlp_out[latent=2]"))
    gone = codes[..., 2:3] * transcoder.decoder[2]
    assert torch.allclose(without["L0.resid_post"], plain["L0.resid_post"] - gone, atol=1e-5)
    error_block = next(block for block in run.lift().blocks if block.name == "L0.mlp_out.error")
    assert [read.port for read in error_block.reads] == ["in", "out"]
    assert all(off <= 1e-5 for off in edge_errors(run).values())

    ends = (place(plain, "resid.1"), place(plain, "resid.3"))
    crosscoder = dictionary(2 * ends[0].width, 9).but(card=Card(ends, ends))
    crossed = attach(found.net, crosscoder, name="cross")
    run, other = crossed.record(ids), crossed.record(*found.other()[0])
    rows = torch.cat([plain["resid.1"], plain["resid.3"]], -1)
    assert torch.allclose(run["cross[latent=:]"], crosscoder.encode(rows), atol=1e-5)
    late = "the network uses the value at 'resid.1' before all that the dictionary reads is there"
    for edit in (cw.scale("cross[latent=2]", 2.0), cw.zero("resid.3[latent=:]")):
        with pytest.raises(SiteError, match=f"Latents of 'cross' can be read and not edited: {late}"):
            run.replay(edit)
    with pytest.raises(SiteError, match=late):
        cw.patch_sweep(run, other, cw.logit(3), "cross", axis="latent")
    with pytest.raises(InputError, match=f"cannot be nodes of a circuit: {late}"):
        cw.find_circuit(run, other, cw.logit(3))
    # What is written last alone is written in time.
    last = dictionary(2 * ends[0].width, 9)
    last = last.but(
        weights={
            **last.weights,
            "decoder": last.decoder[:, : ends[0].width],
            "decoder_bias": torch.zeros(ends[0].width),
        }
    )
    run = attach(found.net, last.but(card=Card(ends, ends[1:])), name="cross").record(ids)
    assert not torch.equal(run.replay(cw.scale("cross[latent=:]", 2.0)).logits, run.logits)
    assert all(off <= 1e-5 for off in edge_errors(run).values())

    heads = plain["L1.attn.z"]  # [batch, head, pos, d_head]
    beside = dictionary(heads.shape[1] * heads.shape[3], 9)
    run = attach(found.net, beside, "L1.attn.z").record(ids)
    assert torch.allclose(run["L1.attn.z[latent=:]"], beside.encode(heads.transpose(1, 2).flatten(2)), atol=1e-5)
    assert run.locate("L1.attn.z[latent=:]").axes == ("batch", "pos", "latent")
    assert all(off <= 1e-5 for off in edge_errors(run).values())


READS, WRITES = [[f"L{layer}.{name}" for layer in range(3)] for name in ("resid_mid", "mlp_out")]


def across() -> tuple[cw.Network, torch.nn.Module, Tensor, Dictionary]:
    """A GPT-2 of three layers, ids, and a cross-layer transcoder whose latents are not in the order of their layers."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=16, n_layer=3, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    module = transformers.GPT2LMHeadModel(config).eval()
    net, ids = cw.open(module), torch.randint(0, 40, (3, 7))
    run = net.record(ids)
    basis = dictionary(48, 12)
    layer = torch.arange(12)[:, None] % 3
    place_of = torch.arange(48) // 16
    weights = {**basis.weights, "encoder": 9 * basis.weights["encoder"] * (layer == place_of)}
    weights["decoder"] = basis.decoder * (layer <= place_of)
    ends = [tuple(place(run, site) for site in side) for side in (READS, WRITES)]
    return net, module, ids, basis.but(weights=weights, card=Card(*ends))


def hooked(module: torch.nn.Module, ids: Tensor, basis: Dictionary, edit: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits where each layer's latents are edited as soon as they are known and each MLP's output moved by what they
    then stand for, less what they stood for: with plain hooks on the module."""
    known: list[Tensor] = []
    changes: list[Tensor] = []

    def before(layer: int) -> Callable[..., None]:
        def hook(norm: torch.nn.Module, given: tuple[Tensor, ...]) -> None:
            known.append(given[0])
            rows = torch.cat([*known, *[torch.zeros_like(given[0])] * (2 - layer)], -1)
            codes = basis.encode(rows) * (torch.arange(12) % 3 == layer)
            changes.append((edit(codes) * (torch.arange(12) % 3 == layer) - codes) @ basis.decoder)

        return hook

    def behind(layer: int) -> Callable[..., Tensor]:
        return lambda mlp, given, made: made + sum(changes)[..., 16 * layer : 16 * layer + 16]

    handles = []
    for layer, block in enumerate(module.transformer.h):
        handles += [block.ln_2.register_forward_pre_hook(before(layer)), block.mlp.register_forward_hook(behind(layer))]
    with torch.no_grad():
        made: Tensor = module(ids).logits
    for handle in handles:
        handle.remove()
    return made


@pytest.mark.parametrize("latent", range(6))
def test_latents_of_a_cross_layer_transcoder_act_at_all_the_places_that_they_write(latent: int) -> None:
    net, module, ids, basis = across()
    run = attach(net, basis, force=True).record(ids)

    def edited(codes: Tensor) -> Tensor:
        return torch.where(torch.arange(12) == latent, codes * 3 + 1, codes)

    want = hooked(module, ids, basis, edited)
    for name in (WRITES[0], WRITES[latent % 3], WRITES[2]):  # by any of its sites, the number is the dictionary's
        got = run.replay(cw.apply(f"{name}[latent={latent}]", lambda part: part * 3 + 1))
        assert error(got.logits, want) <= 1e-5
    assert error(run.logits, want) > 1e-2
    both = run.replay(cw.zero("L0.mlp_out[latent=3]"), cw.zero(f"L1.mlp_out[latent={latent}]"))
    keep = (torch.arange(12) != latent) & (torch.arange(12) != 3)
    assert error(both.logits, hooked(module, ids, basis, lambda codes: codes * keep)) <= 1e-5


def test_a_cross_layer_transcoder_is_attached_in_parts_with_one_numbering() -> None:
    net, _, ids, basis = across()
    watched = attach(net, basis, force=True)
    run = watched.record(ids)
    rows = torch.cat([run[site] for site in READS], -1)
    codes = basis.encode(rows)
    assert [part.name for part in watched.attachments] == WRITES
    assert [part.writes for part in watched.attachments] == [tuple(WRITES[layer:]) for layer in range(3)]
    assert torch.allclose(run["L0.mlp_out[latent=:]"], codes, atol=1e-5)
    assert torch.allclose(run["L2.mlp_out[latent=3:8, pos=1]"], codes[:, 1, 3:8], atol=1e-5)
    rest = run["L2.mlp_out"] - basis.decode(codes)[..., 32:]
    assert torch.allclose(run["L2.mlp_out.error"], rest, atol=1e-5)
    assert all(off <= 1e-5 for off in edge_errors(run).values())
    blocks = {block.name: block for block in run.lift().blocks}
    assert blocks["L1.mlp_out"].slots.labels == (1, 4, 7, 10)
    with pytest.raises(SiteError, match=r"names latents that read different places, .* as in 'L0.mlp_out\[latent=0\]'"):
        run.replay(cw.zero("L0.mlp_out[latent=:]"))
    with pytest.raises(SiteError, match="12 places on axis 'latent', so there is no 12"):
        run.value("L0.mlp_out[latent=12]")
    with pytest.raises(InputError, match="attached at 'L0.mlp_out' already"):
        attach(watched, basis, force=True)
    named = attach(net, basis, name="clt", latents=[2, 4], force=True).record(ids)
    assert torch.equal(named["clt[latent=4]"], named["clt.1[latent=4]"])
    assert [part.latents for part in named.net.attachments] == [(), (4,), (2,)]
    assert all(off <= 1e-5 for off in edge_errors(named).values())
    # A rule by which latents compete needs all that is read.
    top = attach(net, basis.but(activation="topk"), force=True).record(ids)
    with pytest.raises(SiteError, match="uses the value at 'L0.mlp_out' before"):
        top.replay(cw.zero("L0.mlp_out[latent=1]"))


def test_a_site_reads_as_its_readers_see_it_after_an_edit_of_latents() -> None:
    found, ids, _ = gpt2()
    basis = dictionary(found.trace["resid.2"].shape[-1], 30)
    run = attach(found.net, basis, "resid.2").record(ids)
    edit = cw.add("resid.2[latent=4]", torch.tensor(3.0))
    pushed = run.replay(edit)
    want = run["resid.2"] + 3 * basis.decoder[4]
    for name in ("resid.2", "L1.resid_pre", "transformer.h.0"):
        assert torch.allclose(pushed[name], want, atol=1e-5)
        assert torch.equal(run.replay(edit, until=[name]).output[0], pushed[name])
    assert torch.equal(found.trace.replay(cw.patch("resid.2", pushed)).logits, pushed.logits)
    assert torch.equal(run["resid.2"], found.trace["resid.2"])
    assert torch.equal(pushed["resid.1"], run["resid.1"])


@pytest.mark.parametrize("site", ["0", "1", "L0.conv.out"])
def test_vectors_of_images_lie_along_channels_by_every_name_of_a_site(site: str) -> None:
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1)]
    module = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()).eval()
    net, images = cw.open(module), torch.randn(2, 3, 8, 8)  # as many channels as rows and columns
    value = module[:1](images) if site == "0" else module[:2](images)
    basis = dictionary(8, 12)
    want = basis.encode(value.detach().movedim(1, -1))
    carded = basis.but(card=Card(*[(Place(site, 8, net.fingerprint, "channel"),)] * 2))
    for run in (attach(net, basis, site).record(images), attach(net, carded, force=True).record(images)):
        assert torch.allclose(run[f"{site}[latent=3]"], want[..., 3], atol=1e-5)
        assert run.locate(f"{site}[latent=:]").axes == ("batch", "latent", "height", "width")
        moved = run.replay(cw.add(f"{site}[latent=3]", torch.tensor(2.0)))
        by_hand = net.record(images).replay(cw.add(site, 2 * basis.decoder[3].view(8, 1, 1)))
        assert error(moved.logits, by_hand.logits) <= 1e-5
    rows, lay = rows_at(net.record(images), Place(site, 8))
    assert torch.allclose(rows, value.detach().movedim(1, -1).reshape(-1, 8))
    assert torch.equal(lay(rows)[site], net.record(images)[site])


def test_several_dictionaries_and_other_bases_together() -> None:
    found, ids, _ = gpt2()
    width = found.trace["resid.0"].shape[-1]
    net = found.net
    for number, site in enumerate(("resid.0", "resid.2", "L1.mlp.out")):
        size = found.trace[site].shape[-1]
        net = attach(net, Directions(torch.randn(5, size, generator=torch.Generator().manual_seed(number))), site)
    net = attach(net, dictionary(width, 8), "resid.2", name="again")  # a second one of the same value, behind the first
    run = net.record(ids)
    assert found.net.attachments == () and len(net.attachments) == 4
    edits = [cw.scale(f"{site}[latent=1]", 1.0) for site in ("resid.0", "resid.2", "L1.mlp.out", "again")]
    assert torch.equal(run.replay(*edits).logits, run.logits)
    kinds = [block.kind for block in run.lift().blocks]
    assert kinds.count("dictionary") == kinds.count("error") == 4
    assert all(off <= 1e-5 for off in edge_errors(run).values())
    # What the first changes is what the second reads.
    pushed = run.replay(cw.add("resid.2[latent=1]", torch.tensor(5.0)), cw.scale("again[latent=0]", 1.0))
    assert not torch.allclose(pushed["again[latent=:]"], run["again[latent=:]"])


def test_a_sweep_over_latents_is_the_patches_one_by_one() -> None:
    found, ids, other = gpt2()
    net = attach(found.net, dictionary(found.trace["resid.2"].shape[-1], 6), "resid.2")
    run, source = net.record(ids), net.record(other)
    metric = cw.logit(3)
    sweep = cw.patch_sweep(run, source, metric, "resid.2", axis="latent")
    assert sweep.effect.shape == (1, 6)
    for latent in range(6):
        alone = metric(run.replay(cw.patch(f"resid.2[latent={latent}]", source)).logits, net)
        assert torch.allclose(sweep.metric[0, latent], alone, atol=1e-5)
    # A site with an index is patched there alone.
    sweep = cw.patch_sweep(run, source, metric, "resid.2[latent=2]", axis="pos")
    alone = metric(run.replay(cw.patch("resid.2[latent=2, pos=3]", source)).logits, net)
    assert torch.allclose(sweep.metric[0, 3], alone, atol=1e-5)
    assert sweep.top(1)[0][0].startswith("resid.2[latent=2, pos=")


def test_kept_values_checkpoints_and_the_next_run() -> None:
    found, ids, other = gpt2()
    net = attach(found.net, dictionary(found.trace["resid.2"].shape[-1], 6), "resid.2")
    whole = net.record(ids)
    for keep in ("none", "checkpoints", ["resid.2"]):
        lean = net.record(ids, keep=keep)
        assert torch.allclose(lean["resid.2[latent=2]"], whole["resid.2[latent=2]"], atol=1e-6)
        assert (
            error(lean.replay(cw.zero("resid.2[latent=2]")).logits, whole.replay(cw.zero("resid.2.f2")).logits) < 1e-6
        )
    assert not torch.equal(net.record(other)["resid.2[latent=2]"], whole["resid.2[latent=2]"])


def test_what_cannot_be_says_why() -> None:
    found, ids, _ = gpt2()
    basis = dictionary(found.trace["resid.2"].shape[-1], 6)
    net = attach(found.net, basis, "resid.2")
    run = net.record(ids)
    for site, reason in (
        ("resid.1[latent=1]", "No dictionary is attached at 'resid.1'.*resid.2"),
        ("resid.2[latent=6]", "has 6 places on axis 'latent'"),
        ("nowhere[latent=1]", "No site 'nowhere'"),
    ):
        with pytest.raises(SiteError, match=reason):
            run.value(site)
    with pytest.raises(SiteError, match="attached: none"):
        found.trace.value("resid.2[latent=1]")
    with pytest.raises(SiteError, match="only a replay"):
        net.run_live(run, [cw.zero("resid.2[latent=1]")])
    with pytest.raises(InputError, match="attached at 'resid.2' already"):
        attach(net, basis, "resid.2")
    with pytest.raises(InputError, match="Nothing says where"):
        attach(found.net, basis)
    with pytest.raises(InputError, match=r"has vectors of .* numbers \(along its axis 'neuron'\) and .* is for 32"):
        attach(found.net, basis, "L0.mlp.out").record(ids)
    with pytest.raises(SiteError, match="derived"):
        attach(found.net, basis, "L0.attn.result").record(ids)
    with pytest.raises(InputError, match=r"each step is attached apart: attach\(dictionary, 'L0.rnn@3.out'\)"):
        attach(found.net, basis.but(card=Card(*[(Place("L0.rnn@*.out", 32),)] * 2)))
    with pytest.raises(InputError, match="there is no 7"):
        attach(found.net, basis, "resid.2", latents=[1, 7])
    with pytest.raises(InputError, match="cannot be attached"):
        attach(found.net, object(), "resid.2")  # type: ignore[arg-type]
