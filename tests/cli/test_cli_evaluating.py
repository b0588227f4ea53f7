"""`evaluate` through the command line: from collected activations to a table."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from command_line import CommandLine

import cutaway as cw
from cutaway import organisms
from cutaway.errors import InputError
from cutaway.features.classical import fit_dictionary
from cutaway.features.collect import collect
from cutaway.features.files import save_dictionary


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with activations and two dictionaries for them."""
    folder = tmp_path_factory.mktemp("evaluate")
    net, inputs = cw.open("induction"), organisms.load("induction").pairs(40, 0).clean
    rows = collect(net, inputs, "resid.1", folder / "acts", dtype="float32")
    for seed in (0, 1):
        save_dictionary(fit_dictionary(rows, 16, "k-means", seed=seed), folder / f"{seed}.safetensors")
    first = inputs[:, 1] > inputs[:, 1].float().median()
    (folder / "labels.json").write_text(json.dumps({"first": first.tolist()}))
    texts = [" ".join(net.token_text(int(token)) for token in row) for row in inputs[:6]]
    (folder / "texts.json").write_text(json.dumps(texts))
    return folder


def test_all_figures_are_there_and_shown(cutaway: CommandLine, made: Path) -> None:
    arguments = (
        "evaluate", str(made / "0.safetensors"), "--on", str(made / "acts"), "--network", "induction",
        "--labels", str(made / "labels.json"), "--other", str(made / "1.safetensors"),
    )  # fmt: skip
    result = cutaway.json(*arguments)
    figures = {one["name"]: one for one in result["figures"]}
    assert {"L0", "FVU", "loss recovered (zero)", "1-sparse probe F1", "absorption rate", "matched cosine"} <= set(
        figures
    )
    assert figures["FVU"]["value"] < figures["FVU"]["controls"]["random"]
    assert result["facts"]["network"] == "induction" and result["densities"]["latents"]
    shown = cutaway(*arguments).out
    assert "loss recovered (zero)" in shown and "random" in shown and "How often latents fire" in shown


def test_letters_are_those_of_the_tokens(made: Path) -> None:
    from cutaway.features.letters import first_letters
    from cutaway.features.store import open_activations

    net, rows = cw.open("induction"), open_activations(made / "acts")
    found = first_letters(net, rows)
    assert found and all(len(there) == len(rows) for there in found.values())
    for row in (0, 5, len(rows) - 1):
        example, [[position]] = rows.where([row])
        token = net.token_text(int(rows.examples[int(example)].inputs["0"][position])).strip().lower()
        assert [letter for letter, there in found.items() if there[row]] == [
            one for one in found if token.startswith(one)
        ]
    bare = cw.open(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 2)))
    with pytest.raises(InputError, match="no tokenizer"):
        first_letters(bare, rows)


def test_texts_are_those_that_were_collected(cutaway: CommandLine, made: Path) -> None:
    """Given again, they are run; others would tell of other data than the rest of the figures."""
    texts = json.loads((made / "texts.json").read_text())
    collect(cw.open("induction"), texts, "resid.1", made / "spoken", dtype="float32")
    (made / "others.json").write_text(json.dumps(texts[1:]))
    words = ("evaluate", str(made / "0.safetensors"), "--on", str(made / "spoken"), "--network", "induction", "--texts")
    result = cutaway.json(*words, str(made / "texts.json"), "--samples", "24")
    figure = next(one for one in result["figures"] if one["name"] == "added loss")
    assert "6 examples" in figure["how"]
    outcome = cutaway(*words, str(made / "others.json"))
    assert outcome.status == 2 and "other data" in outcome.err


def test_what_cannot_be_evaluated_is_said(cutaway: CommandLine, made: Path) -> None:
    (made / "bad.json").write_text('{"first": ["yes"]}')
    plain = ("evaluate", str(made / "0.safetensors"), "--on", str(made / "acts"))
    for arguments, said in {
        (*plain, "--texts", str(made / "texts.json")): "--network",
        (*plain, "--labels", str(made / "bad.json")): "true or false or of class numbers",
        (*plain, "--labels", str(made / "none.json")): "cannot be opened",
        ("evaluate", str(made / "labels.json"), "--on", str(made / "acts")): "labels.json",
        ("evaluate", str(made / "0.safetensors"), "--on", str(made / "nowhere")): "nowhere",
    }.items():
        outcome = cutaway(*arguments)
        assert outcome.status != 0 and said in outcome.err and "Traceback" not in outcome.err, outcome.err


def test_labels_by_example_are_carried_to_its_rows(made: Path) -> None:
    """A concept of whole examples is found from values that hold it at every position."""
    from cutaway.features.evaluate import evaluate_dictionary
    from cutaway.features.store import open_activations

    torch.manual_seed(0)
    net = cw.open(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 2)))
    there = torch.arange(60) % 3 == 0
    inputs = torch.randn(60, 5, 4) + 8.0 * there[:, None, None] * torch.eye(4)[1]
    rows = collect(net, inputs, "0", made / "own", dtype="float32")
    found = evaluate_dictionary(fit_dictionary(rows, 4, "pca"), open_activations(made / "own"), labels={"it": there})
    assert found.figure("1-sparse probe F1").value > 0.99
