"""The drawings: a layered picture of a circuit, and small charts."""

import re
from xml.etree.ElementTree import Element, fromstring

import pytest
from crafted_claims import CHAIN, NODES, circuit, crowd, edge

from cutaway.drawing import charts
from cutaway.drawing.graph import draw
from cutaway.drawing.layers import Arrow, lay_out, reads, split
from cutaway.drawing.svg import figure, finite, places, ticks, visible


def kind(root: Element, name: str) -> list[Element]:
    """The elements of a class."""
    return [element for element in root.iter() if name in element.get("class", "").split()]


def boxes(root: Element) -> dict[str, tuple[float, float, float, float]]:
    """Each node's box by its full name: left, top, right, bottom."""
    found = {}
    for group in kind(root, "node"):
        rect = kind(group, "box")[0]
        left, top, width, height = (float(rect.get(name, "0")) for name in ("x", "y", "width", "height"))
        title = group.find("title")
        assert title is not None and title.text
        found[title.text.split(", reads")[0]] = (left, top, left + width, top + height)
    return found


def said(element: Element) -> str:
    """What an element says when it is pointed at."""
    return element.findtext("title") or ""


def test_rows_are_in_order_of_execution() -> None:
    root = fromstring(draw(circuit(CHAIN, NODES)).svg)
    heights = {name: box[3] for name, box in boxes(root).items()}
    assert heights["embed"] > heights["L0.attn.h0"] > heights["L1.attn.h1"] > heights["logits"]
    assert [label.text for label in kind(root, "rowname")] == ["sources", "L0.attn", "L1.attn", "output"]


def test_width_is_effect_and_colour_is_sign() -> None:
    root = fromstring(draw(circuit(CHAIN, NODES)).svg)
    widths = {said(group): float(kind(group, "line")[0].get("stroke-width", "0")) for group in kind(root, "edge")}
    ranked = sorted(widths, key=lambda text: -widths[text])
    assert ranked[0] == "embed → L0.attn.h0.v: exact effect +13.460" and ranked[-1].startswith("embed → L1.attn.h1.q")
    assert widths[ranked[0]] == 7 and widths[ranked[-1]] == pytest.approx(0.9)
    (minus,) = (group for group in kind(root, "minus") if group.tag == "g")
    assert said(minus).endswith("−1.250") and kind(minus, "line")[0].get("stroke-dasharray")
    assert {text.text for text in kind(root, "effect")} == {"+13.46", "+12.90", "+13.45", "−1.25"}


@pytest.mark.parametrize("picture", [circuit(CHAIN, NODES), crowd(40), crowd()])
def test_nodes_and_labels_do_not_overlap(picture: dict) -> None:
    root = fromstring(draw(picture).svg)
    _, _, width, height = (float(part) for part in root.get("viewBox", "").split())
    taken = list(boxes(root).values())
    for text in kind(root, "effect"):
        x, y, half = float(text.get("x", "0")), float(text.get("y", "0")) - 4, 3.5 * len(text.text or "")
        taken.append((x - half, y - 6, x + half, y + 6))
    for place, one in enumerate(taken):
        assert 0 <= one[0] < one[2] <= width and 0 <= one[1] < one[3] <= height
        for other in taken[:place]:
            apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
            assert apart, (one, other)


def test_a_crowd_stays_legible() -> None:
    drawing = draw(crowd())
    root = fromstring(drawing.svg)
    assert len(kind(root, "edge")) == 260 and drawing.weak == 0
    assert 6 <= len(kind(root, "effect")) == drawing.labelled <= 12
    assert len(kind(root, "thin")) >= 260 - 12
    assert float(root.get("width", "0")) < 1400
    assert len(drawing.svg) < 250_000


def test_what_is_not_drawn_is_counted() -> None:
    rows = [edge(f"L0.attn.h{n}", "logits", None, float(n + 1)) for n in range(450)]
    drawing = draw(circuit(rows, [row["writer"] for row in rows]))
    assert (drawing.edges, drawing.weak) == (450, 50)
    assert len(kind(fromstring(drawing.svg), "edge")) == 400
    nodes = draw(circuit([*CHAIN, edge("embed", "L0.attn.h3.q", None, 9.0)], NODES, level="node"))
    assert (nodes.outside, nodes.edges) == (1, 4)
    assert "L0.attn.h3" not in boxes(fromstring(nodes.svg))


def test_positions_are_drawn_once() -> None:
    rows = [
        edge("embed", "L0.mlp.in", 1.0, 1.0, 4),
        edge("embed", "L0.mlp.in", -3.0, 1.0, 7),
        edge("L0.mlp", "logits", 2.0, 1.0, 7),
    ]
    root = fromstring(draw(circuit(rows, ["embed", "L0.mlp"])).svg)
    told = [said(group) for group in kind(root, "edge")]
    assert "embed → L0.mlp.in: exact effect −3.000 at position 7; in the circuit at 7, 4" in told and len(told) == 2


def test_recurrences_are_drawn() -> None:
    rows = [
        edge("embed", "L0.rnn.u0.n", 5.0, 1.0),
        edge("L0.rnn.u0", "L0.rnn.u0.carry", 4.0, 1.0),
        edge("L0.rnn.u0", "L0.rnn.u0.n", 3.0, 1.0),
        edge("L0.rnn.u0", "L0.rnn.u1.n", 2.0, 1.0),
        edge("L0.rnn.u1", "L0.rnn.u0.z", -2.0, 1.0),
        edge("L0.rnn.u1", "L1.rnn.u0.n", 2.0, 1.0),
        edge("L1.rnn.u0", "L0.rnn.u0.n", 1.0, 1.0),
        edge("L1.rnn.u0", "logits", 5.0, 1.0),
    ]
    root = fromstring(draw(circuit(rows, ["embed", "L0.rnn.u0", "L0.rnn.u1", "L1.rnn.u0"])).svg)
    assert len(kind(root, "edge")) == 8
    found = boxes(root)
    assert found["L0.rnn.u0"][3] == found["L0.rnn.u1"][3] > found["L1.rnn.u0"][3]
    paths = [kind(group, "line")[0].get("d") for group in kind(root, "edge")]
    assert len(set(paths)) == 8, "no edge hides another"
    assert not re.search("nan|inf", " ".join(filter(None, paths)))


def test_shared_keys_are_explained() -> None:
    drawing = draw(
        circuit(
            [edge("embed", "L0.attn.kv0.k", 1.0, 1.0), edge("L0.attn.h1", "logits", 1.0, 1.0)], ["embed", "L0.attn.h1"]
        )
    )
    assert drawing.grouped
    found = boxes(fromstring(drawing.svg))
    assert found["L0.attn.kv0"][3] == found["L0.attn.h1"][3]


def test_readers_the_circuit_does_not_list_find_their_row() -> None:
    arrows = [
        Arrow("embed", "L0.mlp", "in", 1.0),
        Arrow("L0.mlp", "L2.mlp", "in", 1.0),
        Arrow("embed", "L1.mlp", "in", 1.0),
    ]
    assert lay_out(arrows, ["embed", "L0.mlp"]).labels == ("sources", "L0.mlp", "L1.mlp", "L2.mlp")


def test_an_empty_circuit_has_no_drawing() -> None:
    assert draw(circuit([], [])).svg == "" and draw({}).svg == ""


def test_drawing_is_deterministic() -> None:
    assert draw(crowd()).svg == draw(crowd()).svg


def test_names_are_read() -> None:
    assert (
        split("L0.attn.h3") == ("L0.attn", "h3")
        and split("L2.mlp") == ("L2.mlp", "mlp")
        and split("embed") == ("embed", "embed")
    )
    assert reads("L1.attn.h2.k", NODES) == ("L1.attn.h2", "k")
    assert reads("logits", NODES) == ("logits", "") and reads("L2.mlp", ["L2.mlp"]) == ("L2.mlp", "")


def null(values: list, observed: float = 0.9) -> str:
    return charts.histogram(values, name="n", title="t", axis="a", counted="circuits", marks=[("this", observed)])


def test_histogram_counts_everything() -> None:
    values = [0.0] * 90 + [0.5] * 7 + [1.0, 1.6, -0.4]
    root = fromstring(null(values))
    told = [int(said(bar).rsplit(": ", 1)[1].split()[0]) for bar in kind(root, "bar")]
    assert sum(told) == 100 and max(told) == 90
    line = kind(root, "mark")[0]
    assert charts.LEFT < float(line.get("x1", "0")) < charts.WIDTH - charts.RIGHT
    assert kind(root, "flag")[0].text == "this 0.90"


@pytest.mark.parametrize("values", [[0.0], [1e9, 2.0], [-5.0, -5.0], [1e-12], [0.3, None, float("nan"), "x", True]])
def test_histogram_of_odd_values(values: list) -> None:
    text = null(values)
    fromstring(text)
    assert "nan" not in text and "inf" not in text


def test_nothing_to_draw_is_no_drawing() -> None:
    assert null([]) == null([None, float("inf")]) == ""
    assert charts.curve([], chosen=(3, 1.0), target=0.9) == "" and charts.levels([("clean run", None)], axis="a") == ""
    assert charts.interval(None, 0, 1, name="i", what="w", bounds=(0, 1)) == ""


def test_curve_marks_the_circuit() -> None:
    root = fromstring(charts.curve([[1, 0.0], [2, 0.5], [4, 1.0]], chosen=(3, 0.9), target=0.9))
    assert len(kind(root, "dot")) == 3
    ring, dots = kind(root, "chosen")[0], kind(root, "dot")
    assert float(dots[1].get("cx", "0")) < float(ring.get("cx", "0")) < float(dots[2].get("cx", "0"))
    assert said(ring) == "this circuit, 3 edges: 0.900"
    wide = fromstring(charts.curve([[4**n, n / 10] for n in range(10)], chosen=(300, 0.9), target=None, unit="nodes"))
    steps = [float(dot.get("cx", "0")) for dot in kind(wide, "dot")]
    gaps = [after - before for before, after in zip(steps, steps[1:], strict=False)]
    assert max(gaps) - min(gaps) < 0.1, "sizes over decades stand on a logarithmic axis"
    assert not kind(wide, "band")
    fromstring(charts.curve([[5, 0.5]], chosen=(5, 0.5), target=0.9))


def test_levels_are_to_scale() -> None:
    root = fromstring(charts.levels([("clean run", 8.0), ("circuit alone", 4.0), ("corrupted run", -4.0)], axis="m"))
    clean, alone, corrupted = (float(dot.get("cx", "0")) for dot in kind(root, "end"))
    assert clean - alone == pytest.approx((alone - corrupted) / 2, abs=0.1)
    assert [text.text for text in kind(root, "value") if text.tag == "text"] == ["8.00", "4.00", "−4.00"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (13.4631, "13.463"),
        (-0.5, "−0.500"),
        (37120.0, "37,120.000"),
        (-1e-12, "0.000"),
        (0.0003, "0.0003"),
        (4e-5, "0.000"),
        (None, "–"),
        (float("nan"), "–"),
        ("1", "–"),
        (True, "–"),
        (1.5e9, "1.50e+09"),
        (10**400, "–"),
    ],
)
def test_figures(value: object, text: str) -> None:
    assert figure(value) == text


def test_signs_and_digits() -> None:
    assert (
        figure(2.0, 1, signed=True) == "+2.0"
        and figure(1e-12, signed=True) == "0.000"
        and figure(-2, 0, signed=True) == "−2"
    )
    assert (places(13.0), places(0.02), places(0.0), places(1e-30)) == (2, 4, 2, 9)
    assert finite(float("inf")) is None and finite(3) == 3.0


def test_ticks_are_round() -> None:
    assert ticks(0, 1, 5) == [0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(-16.5, 15.8, 6) == [-10, 0, 10]
    assert ticks(3, 3) == [3] and ticks(0, 1e-320) == [0]


def test_hidden_characters_are_shown() -> None:
    assert visible("a\u202eb\x00c\nd é 漢") == "a\\u{202e}b\\u{0}c\nd é 漢"
