"""The page of a claim: whole, self-contained, escaped, and honest about what it leaves out."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from crafted_claims import CHAIN, NODES, Page, circuit, claim, crowd, data, edge

from cutaway.errors import InputError
from cutaway.report.html import page, token
from cutaway.report.repeat import lines

SOURCE = Path(__file__).parents[2] / "src"
EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "</style></svg></title><iframe src=//evil.example>",
    "{{ 7 * 7 }}{% include 'x' %}",
    "]]><!-- &lt;b&gt; &#60;i&#62;",
    "a\x00b\x1b[31m\u202egnp.exe\ud800",
]


def test_page_is_whole() -> None:
    read = Page(page(data()))
    assert read.text("h1") == ["In toy, 4 of 81 edges over 3 nodes carry the logit difference."]
    body = read.text("body")[0]
    for words in (
        "Partly supported",
        "corrupting it removes 41%",
        "After A B … A",
        "13.50 on average",
        "L0.attn.h0 -> L1.attn.h1.k",
        "+12.900",
        "how null p was found",
        "closer to 1",
        "0.910 to 1.040",
        "0.900",
        "pos_embed -> L0.attn.h0.q",
        "37,120",
        "layers.0/matmul.1",
        "embed/embedding.0",
        "⟳ ×16, 2 ops",
        "counterfactual",
        "64, not used in the search",
        "0, 1, 2, 3, 4, 5, 6, 7 … (20 in all)",
        "Made with Cutaway 0.1.0",
        "Tested on 64 pairs",
        "against 5 random circuits",
    ):
        assert words in body, words


def test_page_is_self_contained() -> None:
    text = page(data())
    read = Page(text)
    tags = {tag for tag, _, _ in read.elements}
    assert not tags & {"script", "iframe", "object", "embed", "img", "base", "form", "video", "audio"}
    for tag, given, _ in read.elements:
        assert not [name for name in given if name.startswith("on")], (tag, given)
        for name in ("src", "href", "xlink:href", "action", "srcset"):
            assert given.get(name, "data:,").startswith(("data:", "#")), (tag, given)
    assert "url(" not in text and "@import" not in text
    policy = next(
        given["content"] for _, given, _ in read.elements if given.get("http-equiv") == "Content-Security-Policy"
    )
    assert policy.startswith("default-src 'none'; style-src 'unsafe-inline'; img-src data:;") and "script" not in policy
    head = text[: text.index("<style>")]
    assert head.index("Content-Security-Policy") < head.index("<title>"), "the policy comes before anything it is for"


def test_page_can_be_read_by_all() -> None:
    read = Page(page(data()))
    given = [(tag, attributes) for tag, attributes, _ in read.elements]
    assert ("html", {"lang": "en"}) in given
    ids = [attributes["id"] for _, attributes in given if "id" in attributes]
    assert len(ids) == len(set(ids))
    for tag, attributes in given:
        assert set(attributes.get("aria-labelledby", "").split()) <= set(ids)
        if tag == "svg":
            assert attributes.get("aria-hidden") == "true" or attributes.get("role") == "img"
        if "scroll" in attributes.get("class", ""):
            assert attributes["tabindex"] == "0" and attributes["aria-label"]
    assert sum(tag == "h1" for tag, _ in given) == 1
    assert all(text.strip() for text in read.text("title") + read.text("desc"))


def with_evil(value: Any, evil: str) -> Any:
    """The same data with a hostile text in every text and every open-ended key."""
    if isinstance(value, dict):
        return {key: with_evil(item, evil) for key, item in value.items()}
    if isinstance(value, list):
        return [with_evil(item, evil) for item in value]
    return f"{value}{evil}" if isinstance(value, str) else value


@pytest.mark.parametrize("evil", EVIL)
def test_every_text_is_escaped(evil: str) -> None:
    hostile = with_evil(data(), evil)
    hostile["claim"]["circuit"]["level"] = "edge"
    hostile["claim"]["details"]["needs"] = {evil: 0.5}
    hostile["claim"]["provenance"]["versions"] = {evil: evil}
    hostile["claim"]["provenance"]["metric"][evil] = [evil]
    tame, read = Page(page(data())), Page(page(hostile))
    assert {tag for tag, _, _ in read.elements} <= {tag for tag, _, _ in tame.elements}
    allowed = {name for _, given, _ in tame.elements for name in given}
    assert {name for _, given, _ in read.elements for name in given} <= allowed
    body = read.text("body")[0]
    assert not re.search("[\x00-\x09\x0b-\x1f\u202a-\u202e\u2066-\u2069]", body), (
        "hidden characters are shown, not sent"
    )
    if evil.isprintable():
        assert f"toy{evil}" in body and read.text("h1")[0].endswith(evil)
    else:
        assert "\\u{202e}gnp.exe\\u{d800}" in body


def test_hostile_nodes_are_escaped_in_the_drawing() -> None:
    for evil in EVIL:
        rows = [edge(f"embed{evil}", f"L0.attn.h0{evil}.q", 1.0, 1.0), edge(f"L0.attn.h0{evil}", "logits", 1.0, 1.0)]
        read = Page(page({"claim": claim(circuit(rows, [f"embed{evil}", f"L0.attn.h0{evil}"]))}))
        assert not {tag for tag, _, _ in read.elements} & {"script", "img", "iframe"}


@pytest.mark.parametrize("missing", ["components", "listing", "behaviour", "examples", "model", "version"])
def test_any_key_but_the_claim_may_be_missing(missing: str) -> None:
    given = data()
    del given[missing]
    Page(page(given))


@pytest.mark.parametrize("missing", ["verdict", "reasons", "evidence", "circuit", "details", "provenance"])
def test_a_claim_may_know_less(missing: str) -> None:
    given = claim()
    del given[missing]
    Page(page({"claim": given}))


def test_a_bare_claim_has_no_empty_sections() -> None:
    read = Page(page({"claim": {"statement": "It is so.", "verdict": "not supported"}}))
    assert read.text("h2") == ["Where it comes from, and how to repeat it"]
    assert "None" not in read.text("body")[0] and "Undefined" not in read.text("body")[0]


@pytest.mark.parametrize("given", [{}, {"claim": None}, {"claim": "x"}, {"claim": {"verdict": "supported"}}])
def test_without_a_claim_there_is_no_page(given: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="holds no claim"):
        page(given)


def test_figures_that_are_none_are_dashes() -> None:
    given = claim()
    given["evidence"][0] |= {"value": float("nan"), "low": None, "high": float("inf")}
    given["details"] |= {"null": [float("nan")], "per_example": [None], "clean": float("inf")}
    given["details"]["truth"]["auroc"] = None
    read = Page(page({"claim": given}))
    assert "nan" not in read.text("main")[0] and "inf" not in read.text("main")[0]


def test_tokens_that_differ_are_marked() -> None:
    read = Page(page(data()))
    assert read.text("mark") == ["·b", "·c"]
    assert token("\n\t ") == "⏎⇥·" and token("") == "∅"
    longer = {"clean": ["a", "b", "c"], "corrupted": ["a"], "correct": "x", "wrong": "y"}
    assert Page(page(data(examples=[longer]))).text("mark") == ["b", "c", "", ""]


def test_many_edges_are_listed_and_what_is_left_out_is_said() -> None:
    read = Page(page({"claim": claim(crowd())}))
    rows = [text for text in read.text("td", "name") if "->" in text]
    assert len(rows) == 260
    assert "240 more edges" in read.text("summary")
    rows = [edge(f"L{n}.mlp", "logits", None, float(n + 1)) for n in range(1200)]
    many = Page(page({"claim": claim(circuit(rows, [row["writer"] for row in rows]))}))
    assert "The strongest 1,000 of 1,200 edges are listed." in many.text("section")[1]
    assert "Weaker edges are not drawn (800)." in many.text("figcaption")[0]
    assert len(page({"claim": claim(crowd())})) < 400_000


def test_positions_and_nodes_have_their_own_tables() -> None:
    rows = [edge("embed", "L0.attn.h0.v", 1.5, 1.0, 3), edge("embed", "L0.attn.h0.v", -2.5, 1.0, 9)]
    given = claim(circuit([*rows, edge("L0.attn.h0", "logits", 3.0, 3.0, 17)], NODES[:2]))
    given["details"]["needs"] = {"embed -> L0.attn.h0.v@9": 0.125}
    cells = Page(page({"claim": given})).text("td")
    assert {"17", "9", "3", "0.125"} <= set(cells)
    nodes = claim(circuit([*CHAIN, edge("embed", "L0.attn.h3.q", None, 0.1)], NODES, level="node"))
    nodes["details"]["needs"] = {"embed": 1.0, "L0.attn.h0": 0.875}
    read = Page(page({"claim": nodes}))
    assert "0.875" in read.text("td") and "Nodes" in read.text("h3")
    assert "Edges to nodes outside the circuit are not drawn (1)." in read.text("figcaption")[0]


def test_lines_to_repeat_are_python() -> None:
    stored = claim() | {"id": "ab12"}
    found = lines(stored)
    compile(found["Python"], "repeat", "exec")
    assert "cw.open('toy')" in found["Python"] and "project.claim('ab12')" in found["Python"]
    assert "**options(net, claim, arrays)" in found["Python"]
    assert found["Command line"] == "cutaway verify PROJECT.cutaway ab12\n"
    stored["provenance"]["source"] = "hub:x'); import os; os.system('rm -rf ~'); ('\n"
    compile(lines(stored | {"id": "a; rm -rf ~"})["Python"], "repeat", "exec")
    assert "import os" not in re.sub(r"'[^'\n]*'|\"[^\"\n]*\"", "", lines(stored)["Python"])
    assert "'a; rm -rf ~'" in lines(stored | {"id": "a; rm -rf ~"})["Command line"]
    stored["provenance"]["source"] = "module"
    assert list(lines(stored)) == ["Python"] and "cw.open(module" in lines(stored)["Python"]
    assert list(lines({})) == ["Python"]


def test_the_same_claim_gives_the_same_page() -> None:
    assert page(data()) == page(data())


def test_report_is_light() -> None:
    code = (
        "import sys, cutaway.report.html\nprint(*[n for n in ('torch', 'jinja2', 'numpy', 'rich') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, [], "")


def test_a_real_claim_makes_a_page() -> None:
    import cutaway as cw
    from cutaway import organisms

    organism = organisms.load("induction")
    pairs = organism.pairs(16, 0)
    assert organism.truth is not None and pairs.position is not None
    net = cw.open("induction")
    clean, corrupted = net.record(pairs.clean), net.record(pairs.corrupted)
    metric = cw.logit_difference(pairs.correct, pairs.wrong, pairs.position)
    found = cw.verify(cw.find_circuit(clean, corrupted, metric), truth=organism.truth.edges, random=20)
    read = Page(page({"claim": found.to_dict(), "behaviour": organism.behaviour}))
    assert read.text("h1") == [found.statement]
    for row in found.circuit["edges"]:
        assert row["edge"] in read.text("td", "name")
    assert {"h0", "h1", "embed", "logits"} <= set(read.text("text", "name"))


def test_the_python_lines_repeat_a_kept_claim(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import cutaway as cw
    from cutaway import organisms

    pairs = organisms.load("induction").pairs(8, 0)
    assert pairs.position is not None
    net = cw.open("induction")
    metric = cw.logit_difference(pairs.correct, pairs.wrong, pairs.position)
    found = cw.verify(cw.find_circuit(net.record(pairs.clean), net.record(pairs.corrupted), metric), random=10, seed=3)
    with cw.Project(tmp_path / "kept.cutaway") as project:
        key = project.add_claim(json.loads(json.dumps(found.to_dict())), found.tensors)
        stored = project.claim(key)
    exec(lines(stored)["Python"].replace("PROJECT.cutaway", str(tmp_path / "kept.cutaway")), {})
    assert capsys.readouterr().out.strip() == str(found)
