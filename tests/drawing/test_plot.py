"""Finished drawings: whole, safe on anyone's page, and true to the numbers."""

import re
import sys
from pathlib import Path
from xml.etree.ElementTree import fromstring

import pytest
from crafted_claims import CHAIN, NODES, circuit, claim, crowd, edge

from cutaway.drawing.figures import by_layer, circuit_plot, claim_plot, curve_plot, plot, table_plot
from cutaway.drawing.heat import heat_map, shade
from cutaway.errors import InputError, ResourceError

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>\x00\u202e"


def placed() -> dict:
    """A circuit that tells positions apart: a head moves what stands at 2 to 5."""
    rows = [
        edge("embed", "L0.attn.h0.v", 3.0, 1.0, 2),
        edge("L0.attn.h0", "L1.attn.h1.k", 2.0, 1.0, 2),
        edge("L1.attn.h1", "logits", -1.0, 1.0, 5),
    ]
    return circuit(rows, ["embed", "L0.attn.h0", "L1.attn.h1"])


def middles(svg: str) -> dict[str, float]:
    """The middle of each node's box, by its name with its position."""
    found = {}
    for group in re.findall(r'<g class="node">.*?</g>', svg):
        title = re.search("<title>(.*?)(, reads.*)?</title>", group)
        box = re.search(r'<rect class="box" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', group)
        assert title and box
        found[title[1]] = float(box[1]) + float(box[2]) / 2
    return found


def test_a_position_has_a_column() -> None:
    root = circuit_plot(placed()).svg
    x = middles(root)
    assert x["embed@2"] == pytest.approx(x["L0.attn.h0@2"], abs=1) and x["L1.attn.h1@5"] > x["L0.attn.h0@2"]
    assert x["logits@5"] == pytest.approx(x["L1.attn.h1@5"], abs=1)
    assert re.findall(r'class="spot"[^>]*>([^<]*)<', root) == ["2", "5"]
    told = circuit_plot(placed() | {"inputs": {"examples": 3, "tokens": ["a", "b", "the", "…", "d", "e"]}}).svg
    assert re.findall(r'class="spot"[^>]*>([^<]*)<', told) == ["2 the", "5 e"] and "mean of 3 examples" in told


def test_direction_is_said_when_both_occur() -> None:
    both, one = circuit_plot(placed()).svg, circuit_plot(circuit(CHAIN[:1], NODES)).svg
    assert "below zero" in both and "below zero" not in one and "above zero" in one
    assert "closer to 1 is better" in one


@pytest.mark.parametrize("given", [placed(), circuit(CHAIN, NODES), crowd(40)], ids=["placed", "chain", "crowd"])
def test_a_drawing_stands_alone(given: dict) -> None:
    svg = circuit_plot(given).svg
    root = fromstring(svg)
    own = root.get("id")
    assert own and root.tag.endswith("svg")
    style = re.search(r"<style>(.*?)</style>", svg, re.S)
    assert style and "var(" not in svg and "url(" not in svg and "@import" not in svg
    selectors = [name for rule in re.findall(r"([^{}]+)\{", style[1]) for name in rule.split(",")]
    assert selectors and all(name.strip().startswith(f"#{own} ") for name in selectors), "rules touch nothing else"
    assert root.find("{http://www.w3.org/2000/svg}rect").get("width") == "100%", "it has a background of its own"
    wide, high = float(root.get("width", "0")), float(root.get("height", "0"))
    for x, y in re.findall(r'<text [^>]*x="([\d.]+)" y="([\d.]+)"', svg):
        assert float(x) <= wide and float(y) <= high
    assert circuit_plot(given).svg == svg


def test_hostile_names_stay_text() -> None:
    evil = circuit([edge(f"embed{EVIL}", f"L0.attn.h0{EVIL}.q", 1.0, 1.0)], [f"embed{EVIL}"])
    for drawn in (circuit_plot(evil), table_plot([EVIL], [EVIL], [[1.0]], title=EVIL, across=EVIL, measure=EVIL)):
        tags = {element.tag.rpartition("}")[2] for element in fromstring(drawn.svg).iter()}
        assert not tags & {"script", "img", "foreignObject"} and "\x00" not in drawn.svg and "\u202e" not in drawn.svg


def test_a_claim_is_drawn_under_its_verdict() -> None:
    tested = claim(circuit(CHAIN, NODES))
    tested["evidence"] = [*tested["evidence"], {"name": "null faithfulness", "value": 0.1, "low": -0.1, "high": 0.4}]
    svg = claim_plot(tested).svg
    assert "Partly supported: In toy, 4 of 81 edges" in svg and "random circuits of 4 edges: −0.100 to 0.400" in svg
    assert plot(tested | {"schema": "cutaway.claim/1"}).svg == svg
    for wrong in (3, {"schema": "x"}, {}):
        with pytest.raises(InputError, match="has no drawing"):
            plot(wrong)


@pytest.mark.parametrize("level", ["edge", "node"])
def test_a_circuit_without_edges_is_drawn_so(level: str) -> None:
    empty = circuit([], []) | {"level": level, "graph": {"sources": ["embed", "pos_embed"]}}
    for drawn in (circuit_plot(empty), claim_plot(claim(empty)), circuit_plot({"edges": []})):
        texts = [element.text for element in fromstring(drawn.svg).iter() if element.tag.endswith("text")]
        assert "no edges" in texts and "logits" in texts and any("There are no edges." in text for text in texts)
    assert "embed, pos_embed" in circuit_plot(empty).svg


def test_colours_are_centred_on_zero() -> None:
    blue, orange = (tuple(int(shade(s)[at : at + 2], 16) for at in (1, 3, 5)) for s in (1, -1))
    assert shade(0) == "#ffffff" and blue[2] > blue[0] and orange[0] > orange[2]
    svg = heat_map(["a", "b"], ["0", "1"], [[2.0, -2.0], [0.0, float("nan")]], across="head", measure="effect")
    fills = re.findall(r'<g class="cell"><title>([^<]*)</title><rect [^>]*fill="(#\w+)"', svg)
    assert dict(fills) == {
        "a, 0: +2.000": shade(1), "a, 1: −2.000": shade(-1), "b, 0: 0.000": "#ffffff", "b, 1: –": "#f1eee6",
    }  # fmt: skip
    assert re.findall(r'class="number"[^>]*>([^<]*)<', svg) == ["2.00", "−2.00", "0.00"]
    wide = heat_map(["a"], [str(n) for n in range(500)], [[1.0] * 500], across="pos", measure="effect")
    assert "number" not in wide and float(fromstring(wide).get("width", "0")) < 3200
    assert heat_map([], [], [], across="", measure="") == heat_map(["a"], ["b"], [[None]], across="", measure="") == ""


def test_parts_stand_by_layer_and_slot() -> None:
    rows, columns, table = by_layer(["embed", "L0.attn.h0", "L0.attn.h1", "L0.mlp"], [1, 2, 3, 4])
    assert (rows, columns) == (["embed", "L0.attn", "L0.mlp"], ["0", "1"])
    assert table == [[1, None], [2, 3], [4, None]]


def test_saving(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = circuit_plot(placed())
    assert drawn.save(tmp_path / "new" / "a.svg").read_text(encoding="utf-8") == drawn.svg
    with pytest.raises(InputError, match=r"\.svg or \.png"):
        drawn.save(tmp_path / "a.pdf")
    (tmp_path / "file").touch()
    with pytest.raises(ResourceError, match="cannot be written"):
        drawn.save(tmp_path / "file" / "a.svg")
    monkeypatch.setitem(sys.modules, "resvg_py", None)
    with pytest.raises(ResourceError, match=r"install cutaway\[plot\]"):
        drawn.save(tmp_path / "a.png")
    assert not (tmp_path / "a.png").exists()


def test_png_shows_the_drawing(tmp_path: Path) -> None:
    pytest.importorskip("resvg_py", reason="the extra plot is not installed")
    image = circuit_plot(placed()).save(tmp_path / "a.png").read_bytes()
    width = float(fromstring(circuit_plot(placed()).svg).get("width", "0"))
    assert image.startswith(b"\x89PNG") and int.from_bytes(image[16:20], "big") == 2 * width


def test_a_curve_has_a_panel_for_what_is_kept_and_one_for_what_is_lost() -> None:
    rows = [{"size": size, "faithfulness": 0.1 * size, "completeness": 1.0} for size in (0, 1, 5, 10)]
    data = {"schema": "cutaway.curve/1", "rows": rows, "cpr": {"value": 0.9}, "cmd": None, "facts": {"level": "edge"}}
    svg = curve_plot(data).svg
    assert svg.count("polyline") == 2 and "completeness" in svg and "CPR 0.9" in svg and "CMD 0" not in svg
    assert plot(data).svg == svg
    with pytest.raises(InputError, match="nothing to draw"):
        curve_plot({**data, "rows": rows[:1]})
