"""`saliency` and `attention` through the command line: what they answer, as JSON and as text."""

from __future__ import annotations

import pytest
from command_line import CommandLine


@pytest.mark.parametrize("method", ["integrated-gradients", "occlusion"])
def test_saliency(cutaway: CommandLine, method: str) -> None:
    result = cutaway.json("saliency", "indirect-object", "--method", method, "--answer", "Mary", "--count", "2")
    assert result["method"] == method and result["how"]["metric"] and "baseline" in result["how"]
    for spots in result["examples"]:
        assert len(spots) == 2 and abs(spots[0]["value"]) >= abs(spots[1]["value"])
        assert set(spots[0]) == {"input", "place", "value", "text"} and spots[0]["text"].endswith(
            f"at {spots[0]['place'][0]}"
        )
    if method == "integrated-gradients":
        assert result["how"]["completeness"]["error"] <= 0.05
    assert result["examples"][0][0]["text"] in cutaway("saliency", "indirect-object", "--method", method,
                                                      "--answer", "Mary").out  # fmt: skip


def test_attention(cutaway: CommandLine) -> None:
    arguments = ("attention", "induction", "--head", "L1.attn.h1", "--against", "mean")
    result = cutaway.json(*arguments, "--count", "3")
    assert len(result["pairs"]) == 3 and set(result["pairs"][0]) == {"query", "key", "value"}
    assert (result["pairs"][0]["query"], result["pairs"][0]["key"]) == ("embed", "L0.attn.h0")
    assert result["error"] <= 1e-4 and result["edges"]["L0.attn.h0 -> L1.attn.h1.k"] > 0
    shown = cutaway(*arguments).out
    assert "key side" in shown and "L0.attn.h0" in shown


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("attention", "induction"), "No head is named"),
        (("attention", "induction", "--head", "L9.attn.h1"), "L9"),
        (("attention", "induction", "--head", "L1.attn.h1", "--key", "most"), "'most'"),
        (("saliency", "induction", "--method", "grad-cam"), "no convolution"),
    ],
)
def test_what_cannot_be_asked_is_said(cutaway: CommandLine, arguments: tuple[str, ...], said: str) -> None:
    outcome = cutaway(*arguments)
    assert outcome.status != 0 and said in outcome.err and "Traceback" not in outcome.err
