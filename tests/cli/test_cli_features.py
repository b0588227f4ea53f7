"""`features …` on a command line: an index from collected activations, its latents, a page, labels, and bad input."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from cutaway.cli import main
from cutaway.commands.subject import open_model, own_inputs
from cutaway.features import Card, Dictionary, Place, cutting, save_dictionary
from cutaway.features.collect import collect
from cutaway.features.index import open_index
from cutaway.report import features_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Collected activations of an organism, and a dictionary of random directions for them."""
    import torch

    place = tmp_path_factory.mktemp("features")
    net = open_model("indirect-object")
    collect(net, own_inputs(net, 80), ["resid.4"], place / "acts")
    rows = torch.randn(40, 84, generator=torch.Generator().manual_seed(0))
    read = Place("resid.4", 84, net.fingerprint)
    made = Dictionary("random", "topk", {"encoder": rows, "decoder": rows}, 4, card=Card((read,), (read,), net.name))
    save_dictionary(made, place / "random.safetensors")
    assert (
        main(["features", "index", str(place / "random.safetensors"), str(place / "acts"), "--out", str(place / "i")])
        == 0
    )
    return place


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    status = main(words)
    return status, capsys.readouterr().out


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    status, out = run(capsys, *words, "--json")
    assert status == 0, out
    return json.loads(out)


def test_index_and_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = answer(
        capsys,
        "features",
        "index",
        str(folder / "random.safetensors"),
        str(folder / "acts"),
        "--out",
        str(folder / "j"),
    )
    assert made["latents"] == 40 and made["rows"] == 80 * 16 and made["l0"] == pytest.approx(4, abs=0.2)
    listed = answer(capsys, "features", "list", str(folder / "i"), "--top", "3")["latent_rows"]
    assert [row["fired"] for row in listed] == sorted((row["fired"] for row in listed), reverse=True) and len(
        listed
    ) == 3
    assert listed[0]["promotes"]
    told = answer(capsys, "features", "list", str(folder / "i"), "--token", "gave", "--top", "2")["latent_rows"]
    assert told[0]["share"] >= told[1]["share"] - 0.2
    assert answer(capsys, "features", "list", str(folder / "i"), "--example", "0")["latent_rows"]
    assert "latents of resid.4 in indirect-object" in run(capsys, "features", "list", str(folder / "i"))[1]


def test_show(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    index = open_index(folder / "i")
    latent = str(int(index.fired.argmax()))
    text = "then Mary and Tom went to the park . Mary gave the ball to"
    page = answer(
        capsys, "features", "show", str(folder / "i"), latent, "--plot", str(tmp_path / "p.svg"), "--text", text
    )
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    assert page["about"]["fired"] == int(index.fired.max()) and len(page["tried"][0]["tokens"]) == len(text.split())
    status, out = run(capsys, "features", "show", str(folder / "i"), latent)
    assert status == 0 and "Strongest" in out and "promotes" in out and "«" in out


def test_label_and_what_it_is_put_to(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = answer(capsys, "features", "label", str(folder / "i"), "--top", "3")
    assert len(made["labels"]) == 3 and all("other latents" in row["controls"] for row in made["labels"])
    kept = answer(capsys, "features", "list", str(folder / "i"), "--sort", "label", "--top", "3")["latent_rows"]
    assert {row["latent"] for row in kept} == {row["latent"] for row in made["labels"]}
    busy = str(made["labels"][0]["latent"])
    tested = answer(capsys, "features", "label", str(folder / "i"), busy, "--hunt", "--causal")["labels"][0]
    assert 0 <= tested["hunted"]["precision"] <= 1 and "contrast" in tested["causal"]
    status, out = run(capsys, "features", "label", str(folder / "i"), busy)
    assert status == 0 and "held-out examples" in out
    low, high = sorted(row["score"]["f1"] for row in made["labels"])[:2]
    assert f"median F1 {(low + high) / 2:.2f} of 2 labels" in _told(made, low, high)


def _told(made: Any, *scores: float) -> str:
    """What is printed of the labels with these scores."""
    console = Console(width=100, record=True, file=io.StringIO())
    rows = [row for row in made["labels"] if row["score"]["f1"] in scores][:2]
    console.print(features_text.labelled(made | {"labels": rows}))
    return console.export_text()


def test_inputs_that_were_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An organism's own are made again; of others the message names the option, and other data are refused."""
    import torch

    monkeypatch.setattr(cutting, "SMALL", 0)  # bytes of inputs that are kept in any case
    net = open_model("shapes")
    rows = torch.randn(9, 7, generator=torch.Generator().manual_seed(0))
    read, file = Place("L1.conv.out", 7, net.fingerprint), str(tmp_path / "d.safetensors")
    save_dictionary(
        Dictionary("random", "topk", {"encoder": rows, "decoder": rows}, 2, card=Card((read,), (read,), net.name)), file
    )
    own, strange = own_inputs(net, 30), torch.rand(30, 3, 24, 24)
    collect(net, own, ["L1.conv.out"], tmp_path / "own")
    collect(net, strange, ["L1.conv.out"], tmp_path / "strange")
    collect(net, own_inputs(net, 1024), ["L1.conv.out"], tmp_path / "cut", limit=20)
    np.save(tmp_path / "strange.npy", strange.numpy())
    np.save(tmp_path / "other.npy", strange.numpy() + 1)
    (tmp_path / "t.txt").write_text("an apple")
    index = ("features", "index", file)
    for name, count in (("own", 30), ("cut", 20)):
        assert answer(capsys, *index, str(tmp_path / name), "--out", str(tmp_path / "i"))["examples"] == count
    evaluate = ("evaluate", file, "--network", "shapes", "--samples", "400", "--examples", "8", "--on")
    found = answer(capsys, *evaluate, str(tmp_path / "own"))
    assert any("8 examples" in one["how"] for one in found["figures"] if one["name"] == "added loss")
    given = ("--inputs", str(tmp_path / "strange.npy"))
    assert answer(capsys, *index, str(tmp_path / "strange"), *given, "--out", str(tmp_path / "i"))["examples"] == 30
    assert np.array_equal(open_index(tmp_path / "i").example(4), strange[4].numpy())
    assert answer(capsys, *evaluate, str(tmp_path / "strange"), *given)["figures"]
    for words in (
        (*index, str(tmp_path / "strange"), "--out", str(tmp_path / "j")),
        (*evaluate, str(tmp_path / "strange")),
    ):
        for more, said in {
            (): "--inputs FILE",
            ("--inputs", str(tmp_path / "other.npy")): "other data",
            ("--texts", str(tmp_path / "t.txt")): "other data",
            (*given, "--texts", str(tmp_path / "t.txt")): "Both",
        }.items():
            assert main([*words, *more]) == 2
            err = capsys.readouterr().err
            assert said in err and "Traceback" not in err, err
    assert not (tmp_path / "j").exists()


@pytest.fixture
def liar() -> Iterator[str]:
    """An endpoint that says what nobody asked."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            body = b"<html>please log in</html>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *given: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()


def test_an_endpoint_that_lies_spoils_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], liar: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cutaway.features.endpoint._WAIT", 0.01)
    before = dict(open_index(folder / "i").labels)
    made = answer(capsys, "features", "label", str(folder / "i"), "--top", "2", "--endpoint", liar)
    assert made["labels"] == [] and all("chat completion" in why for why in made["refused"].values())
    assert open_index(folder / "i").labels == before
    latent = str(int(open_index(folder / "i").fired.argmax()))
    assert main(["features", "label", str(folder / "i"), latent, "--endpoint", liar]) == 2
    assert "no usable answer" in capsys.readouterr().err


@pytest.mark.parametrize(
    "words",
    [
        ("show", "{i}", "9999"), ("show", "{i}", "-1"), ("label", "{i}", "x"), ("label", "{i}", "9999"),
        ("list", "{acts}"), ("list", "{i}", "--token", "zebra"), ("list", "{i}", "--example", "5000"),
        ("index", "{acts}", "{acts}", "--out", "{new}"), ("index", "{random.safetensors}", "{none}", "--out", "{new}"),
        ("label", "{i}", "--threshold", "2"), ("label", "{i}", "0", "--endpoint", "ftp://x"),
        ("show", "{i}", "0", "--plot", "{none}/x.svg"), ("show", "{i}", "0", "--text", "x", "--network", "induction"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    placed = [
        str(folder / word[1 : word.index("}")]) + word[word.index("}") + 1 :] if word[0] == "{" else word
        for word in words
    ]
    assert main(["features", *placed]) == 2
    err = capsys.readouterr().err
    assert "Traceback" not in err and err.strip()
    assert not (folder / "new").exists()


def test_train_and_attribute(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = open_model("indirect-object")
    sites = ["L0.resid_mid", "L0.mlp_out"]
    collect(net, own_inputs(net, 64), sites, tmp_path / "acts")
    words = ("--kind", "transcoder", "--reads", sites[0], "--writes", sites[1], "--samples", "2000")
    file = str(tmp_path / "t.safetensors")
    made = answer(capsys, "train", str(tmp_path / "acts"), "--latents", "32", "--k", "4", *words, "--out", file)
    assert made["training"]["kind"] == "transcoder" and made["reference"]["l0"] == pytest.approx(4, rel=0.25)
    graph = answer(capsys, "attribute", "indirect-object", "--dictionary", file)
    assert graph["error"] < 1e-4 and 0 <= graph["scores"]["completeness"] <= 1
