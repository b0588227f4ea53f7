"""Pages: what they say of a latent is what the dictionary and the network say."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from xml.etree.ElementTree import fromstring

import numpy as np
import pytest
import torch
from looked import WIDTH, directions, shapes, talk
from rich.console import Console

import cutaway as cw
from cutaway.features.index import LatentIndex, build_index
from cutaway.features.intervals import bootstrap, wilson
from cutaway.features.seen import watch
from cutaway.report import features_text


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> LatentIndex:
    net, inputs = talk()
    return build_index(directions("resid.6", WIDTH, 60), watch(net, inputs), tmp_path_factory.mktemp("i") / "index")


def test_examples_are_the_rows_in_context(index: LatentIndex) -> None:
    net, inputs = talk()
    dense = index.dictionary.encode(net.record(inputs).value("resid.6"))
    latent = int(np.argmax(index.fired))
    page = index.page(latent, top=5, context=3)
    for shown in page.top:
        (at,) = shown.position
        assert shown.tokens == tuple(net.token_text(int(one)) for one in inputs[shown.example, max(at - 3, 0) : at + 4])
        around = dense[shown.example, max(at - 3, 0) : at + 4, latent]
        assert np.allclose(shown.activations, around.numpy(), rtol=2e-3, atol=2e-3 * page.about["max"])
        assert shown.activation == pytest.approx(float(dense[shown.example, at, latent]), rel=1e-3)
    assert len({shown.example for shown in page.top}) == len(page.top)
    assert page.top[0].activation == pytest.approx(float(dense[..., latent].max()), rel=1e-6)


def test_intervals_cover_every_firing(index: LatentIndex) -> None:
    page = index.page(int(np.argmax(index.fired)), parts=5, each=3, seed=1)
    assert sum(count for _, _, count, _ in page.intervals) == page.about["fired"] == sum(page.histogram["counts"])
    for low, high, _, shown in page.intervals:
        assert all(low - 1e-3 <= one.activation <= high + 1e-3 for one in shown)
    assert page.to_dict() == index.page(page.latent, parts=5, each=3, seed=1).to_dict()
    assert page.about["low"] < page.about["density"] < page.about["high"]


def test_words_are_the_direct_path_to_the_outputs(index: LatentIndex) -> None:
    """From the last value of the stream the linear path is the final norm, at scale one, and the unembedding."""
    net, _ = talk()
    assert index.words is not None
    decoder = index.dictionary.decoder[5]
    module = net.module
    gain = next(value for name, value in module.named_parameters() if "norm" in name.lower() and "final" in name.lower()
                ) if any("final" in name.lower() for name, _ in module.named_parameters()) else None  # fmt: skip
    unembed = next(value for name, value in module.named_parameters() if name.endswith("unembed.weight"))
    direction = decoder - decoder.mean()  # a layer norm centres
    scores = unembed.detach() @ (direction * gain if gain is not None else direction)
    scores = scores - scores.mean()
    words = index.words.listed(5, "promoted", 3)
    assert [word for word, _ in words] == [net.token_text(int(one)) for one in scores.topk(3).indices]


def test_taking_a_latent_away_lowers_what_it_promotes_at_the_last_site(index: LatentIndex) -> None:
    """At the end of the stream nothing else lies between: the direct path is all there is, up to the norm's scale."""
    net, inputs = talk(8)
    assert index.words is not None
    latent = int(np.argmax(index.fired))
    best = int(index.words.ids["promoted"][latent][0])
    trace = net.record(inputs)
    less = trace.replay(cw.add("resid.6", -index.dictionary.decoder[latent]))

    def ahead(logits: torch.Tensor) -> torch.Tensor:
        return logits[..., best] - logits.mean(-1)

    assert float((ahead(less.logits) - ahead(trace.logits)).mean()) < 0


def test_neighbours(index: LatentIndex) -> None:
    latent = int(np.argmax(index.fired))
    page, decoder = index.page(latent), index.dictionary.decoder
    cosines = torch.nn.functional.cosine_similarity(decoder, decoder[latent : latent + 1])
    cosines[latent] = -2
    assert page.nearest[0] == (int(cosines.argmax()), pytest.approx(float(cosines.max()), abs=1e-5))
    other, share = page.together[0]
    mine, its = set(index.of(latent)[0].tolist()), set(index.of(other)[0].tolist())
    assert share == pytest.approx(len(mine & its) / len(mine | its))


def test_few_outputs_are_either_promoted_or_suppressed(tmp_path: Path) -> None:
    """Of fewer outputs than are kept, each stands on one side alone, by the sign of its effect; no effect, no word."""
    torch.manual_seed(0)
    last = torch.nn.Linear(4, 6)
    net = cw.open(torch.nn.Sequential(torch.nn.Linear(3, 4), last))
    made = directions("0", 4, 5, k=1)
    made = made.but(weights={**made.weights, "decoder": made.decoder * torch.tensor([1, 1, 1, 1, 0.0])[:, None]})
    index = build_index(made, watch(net, torch.randn(9, 3)), tmp_path / "i")
    assert index.words is not None
    for latent in range(5):
        effect = (last.weight @ made.decoder[latent]).detach()
        effect = effect - effect.mean()
        up, down = (index.words.listed(latent, side) for side in ("promoted", "suppressed"))
        assert {word for word, _ in up} == {f"output {j}" for j in range(6) if effect[j] > 0}
        assert {word for word, _ in down} == {f"output {j}" for j in range(6) if effect[j] < 0}
        assert all(value > 0 for _, value in up) and all(value < 0 for _, value in down)
    assert index.words.listed(4, "promoted") == index.words.listed(4, "suppressed") == []


class Letters:
    """A tokenizer of letters, with a newline as a token of its byte."""

    letters = ["<0x0A>", *"abcdefg "]

    def encode(self, text: str) -> list[int]:
        return [self.letters.index("<0x0A>" if one == "\n" else one) for one in text]

    token = encode

    def decode(self, ids: Sequence[int]) -> str:
        whole = "".join(self.letters[one] for one in ids)
        return whole if len(ids) == 1 else whole.replace("<0x0A>", "\n")


def test_contexts_are_joined_as_the_tokenizer_joins_them(index: LatentIndex, tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = cw.open(torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Linear(8, 9)), tokenizer=Letters())
    lettered = build_index(directions("0", 8, 3, k=1), watch(net, ["bad\ncab", "dad\nfad"]), tmp_path / "i")
    page = lettered.page(int(np.argmax(lettered.fired)))
    assert lettered.gap == page.about["gap"] == "" and index.gap == " "
    for facts, gap in (({"vocabulary": ["a", "b", None]}, ""), ({"vocabulary": ["a", " the"]}, ""),
                       ({"vocabulary": ["the", "a"]}, " "), ({"vocabulary": None}, " ")):  # fmt: skip
        assert LatentIndex(tmp_path, facts, {}).gap == gap  # of an index that was made before it was kept
    texts = {"".join(shown.tokens) for shown in page.top}
    assert texts <= {"bad\ncab", "dad\nfad"}
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(features_text.page({**page.to_dict(), "seconds": 0.0, "plot": "", "tried": []}))
    told = console.export_text()
    said = told.replace("«", "").replace("»", "")
    assert ("bad↵cab" in said or "dad↵fad" in said) and "<0x0A>" not in told + str(page) + page.plot().svg
    assert (
        {row["latent"] for row in lettered.on_token("\n")} == {row["latent"] for row in lettered.on_token("↵")} != set()
    )


def test_an_example_without_positions_has_none_shown(tmp_path: Path) -> None:
    net = cw.open(torch.nn.Sequential(torch.nn.Identity(), torch.nn.Linear(4, 2)))
    index = build_index(directions("0", 4, 3, k=1), watch(net, torch.randn(1, 4)), tmp_path / "i")
    page = index.page(int(np.argmax(index.fired)))
    assert "example 0\n" in f"{page}\n" and "1 of 1 row " in str(page)


def test_a_page_can_be_kept_and_shown(index: LatentIndex, tmp_path: Path) -> None:
    latent = int(np.argmax(index.fired))
    page = index.page(latent)
    assert json.loads(json.dumps(page.to_dict()))["latent"] == latent
    assert f"latent {latent}" in str(page) and "fires on" in str(page)
    drawn = page.plot()
    assert drawn.save(tmp_path / "page.svg").read_text().startswith("<svg")
    texts = " ".join(element.text or "" for element in fromstring(drawn.svg).iter())
    assert f"Latent {latent}" in texts and page.top[0].tokens[0] in texts
    assert "<svg" in page._repr_html_()


def test_a_latent_that_never_fires_has_a_page(index: LatentIndex) -> None:
    silent = int(np.argmin(index.fired))
    if index.fired[silent]:
        pytest.skip("every latent of this dictionary fires")
    page = index.page(silent)
    assert page.top == () and page.about["density"] == 0 and "<svg" in page._repr_html_() and str(page)


def test_pages_of_images_and_series(tmp_path: Path) -> None:
    net, images, classes = shapes()
    width = net.record(images[:1]).value("L1.conv").shape[1]
    index = build_index(directions("L1.conv", width, 16, k=2), watch(net, images), tmp_path / "i",
                        classes=(classes, [f"kind {one}" for one in range(7)]))  # fmt: skip
    page = index.page(int(np.argmax(index.fired)))
    shown = page.top[0]
    assert shown.shape == (12, 12) and len(shown.activations) == 144 and shown.kind.startswith("kind ")
    assert shown.values_shape == (3, 24, 24) and max(shown.activations) == pytest.approx(shown.activation, rel=1e-3)
    assert page.plot().svg.count("<rect") > 144
    series = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.ReLU(), torch.nn.Linear(6, 2))
    opened = cw.open(series, name="series")
    waves = torch.sin(torch.linspace(0, 9, 40))[None, :, None].repeat(5, 1, 2)
    index = build_index(directions("1/relu.0", 6, 8, k=2), watch(opened, waves), tmp_path / "s")
    page = index.page(int(np.argmax(index.fired)))
    assert index.facts["kind"] == "series" and page.top[0].shape == (40,) and "<svg" in page._repr_html_()


def test_intervals_of_shares_and_means() -> None:
    """Wilson's published example (10 of 100 gives .055 to .174), edges, and a bootstrap that holds the mean."""
    low, high = wilson(10, 100)
    assert low == pytest.approx(0.0552, abs=1e-3) and high == pytest.approx(0.1744, abs=1e-3)
    assert wilson(0, 0) == (0.0, 1.0) and wilson(5, 5)[1] == 1.0
    values = np.random.default_rng(0).normal(3, 1, 200)
    low, high = bootstrap(values)
    assert low < values.mean() < high and high - low == pytest.approx(2 * 1.96 / np.sqrt(200), rel=0.2)
