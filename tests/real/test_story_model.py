"""The main job on a real trained language model: a behaviour it has, the circuit behind it, tested on other prompts.

The model is a 260,000-parameter Llama trained on short stories; it lies in the shared test data, not in this package.
"""

from pathlib import Path

import pytest
import torch
from gendered_giving import prompt_pairs

import cutaway as cw

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def net(shared_data: Path) -> cw.Network:
    folder = shared_data / "lm-stories260k" / "hf"
    if not folder.is_dir():
        pytest.skip(f"no story model at {folder}")
    return cw.open(folder, name="stories260K")


@pytest.fixture(scope="module")
def groups(net: cw.Network) -> list[list[tuple[str, str]]]:
    """Prompt pairs of equal length, the two largest groups."""
    found = prompt_pairs(lambda text: len(net.tokens(text)))
    return sorted(found.values(), key=len, reverse=True)[:2]


def runs(net: cw.Network, pairs: list[tuple[str, str]]) -> tuple[cw.Trace, cw.Trace]:
    return net.record([girl for girl, _ in pairs]), net.record([boy for _, boy in pairs])


def test_it_continues_as_it_was_published_to(net: cw.Network) -> None:
    text = "Once upon a time, there was a little girl named"
    ids = net.encode(text)
    for _ in range(2):
        ids = torch.cat([ids, net.record(ids, keep="none").logits[:, -1:].argmax(-1)], 1)
    assert net.tokenizer is not None
    assert f"{text} Lily." in net.tokenizer.decode(ids[0].tolist())


def test_the_model_has_the_behaviour(net: cw.Network, groups: list[list[tuple[str, str]]]) -> None:
    metric = cw.logit_difference(" her", " his")
    for pairs in groups:
        girl, boy = runs(net, pairs)
        after_girl, after_boy = metric(girl.logits, net), metric(boy.logits, net)
        assert float((after_girl > 0).float().mean()) > 0.95
        assert float((after_girl > after_boy).float().mean()) > 0.95


def test_a_circuit_for_it_is_found_and_holds_on_other_prompts(
    net: cw.Network, groups: list[list[tuple[str, str]]]
) -> None:
    metric = cw.logit_difference(" her", " his")
    circuit = cw.find_circuit(*runs(net, groups[0][:24]), metric)
    claim = cw.verify(circuit, *runs(net, groups[1][:24]))
    assert claim.verdict == "supported", str(claim)
    assert len(circuit) < 60 < 1000 < claim.circuit["universe"]["edges"]
    assert claim.figure("null p").value < 0.05
    mover = claim.circuit["edges"][0]
    assert mover["edge"] == "L4.attn.h2 -> logits"


def test_the_strongest_head_is_causal_in_the_untouched_model(
    net: cw.Network, groups: list[list[tuple[str, str]]]
) -> None:
    """The circuit's strongest head, patched by a plain hook in transformers' own module, carries most of the effect."""
    girl, boy = runs(net, groups[0][:24])
    metric = cw.logit_difference(" her", " his")
    source = boy["L4.attn.z[head=2]"]

    def patch(module: object, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
        value = args[0].clone()
        value[..., 16:24] = source
        return (value, *args[1:])

    handle = net.module.model.layers[4].self_attn.o_proj.register_forward_pre_hook(patch)
    with torch.no_grad():
        logits = net.module(net.encode([text for text, _ in groups[0][:24]]), use_cache=False).logits
    handle.remove()
    whole = (metric(girl.logits, net) - metric(boy.logits, net)).mean()
    lost = (metric(girl.logits, net) - metric(logits, net)).mean()
    assert float(lost / whole) > 0.5
    replayed = girl.replay(cw.patch("L4.attn.h2", boy))
    torch.testing.assert_close(replayed.logits, logits, rtol=1e-4, atol=1e-5)


def test_the_command_line_does_the_same(
    net: cw.Network, groups: list[list[tuple[str, str]]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    from cutaway.cli import main

    rows = [{"clean": girl, "corrupted": boy, "correct": " her", "wrong": " his"} for girl, boy in groups[0][:24]]
    (tmp_path / "pairs.json").write_text(json.dumps(rows))
    folder = net.source.removeprefix("folder:")
    arguments = ["circuit", folder, "--pairs-file", str(tmp_path / "pairs.json"), "--project", str(tmp_path / "story")]
    assert main([*arguments, "--json"]) in (0, None)
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "supported" and "L4.attn.h2 -> logits" in found["circuit"]["edges"]
