"""Sites parse, print, sort, hash and store."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.errors import SiteError
from cutaway.site import Site, read_index, unknown

NAMES = st.from_regex(r"[a-zA-Z_~][a-zA-Z0-9_./@:<~]{0,24}", fullmatch=True)
AXES = st.sampled_from("batch pos query key head neuron channel height width time state vocab 0 -1".split())
NUMBERS = st.integers(-99, 999)
INDICES = st.one_of(
    NUMBERS.map(str),
    st.tuples(st.none() | NUMBERS, st.none() | NUMBERS).map(lambda p: ":".join("" if n is None else str(n) for n in p)),
    st.lists(NUMBERS, min_size=2, max_size=4).map(lambda numbers: "|".join(map(str, numbers))),
)
SITES = st.builds(
    lambda name, index: name + (f"[{', '.join(f'{a}={v}' for a, v in index.items())}]" if index else ""),
    NAMES,
    st.dictionaries(AXES, INDICES, max_size=3),
)


def parsed(text: str) -> Site | None:
    try:
        return Site.parse(text)
    except SiteError:
        return None


@given(SITES)
def test_what_is_printed_parses_to_the_same_site(text: str) -> None:
    site = parsed(text)
    if site is not None:  # "L0.attn.h3[head=4]" contradicts itself
        assert Site.parse(str(site)) == site
        assert str(Site.parse(str(site))) == str(site)
        assert hash(Site.parse(str(site))) == hash(site)
        assert pickle.loads(pickle.dumps(site)) == site
        assert Site.parse(site) is site


@given(st.lists(SITES, max_size=6))
def test_sites_have_an_order(texts: list[str]) -> None:
    sites = [site for text in texts if (site := parsed(text)) is not None]
    ordered = sorted(sites)
    ordered.reverse()
    assert sorted(sites) == sorted(ordered)
    ordered.reverse()
    assert all(a <= b for a, b in zip(ordered, ordered[1:], strict=False))


@given(SITES, st.integers(0, 50))
def test_at_adds_an_index(text: str, number: int) -> None:
    site = parsed(text)
    if site is not None:
        assert dict(site.at(width=number).index)["width"] == str(number)
        assert site.at(width=number).at(width=number) == site.at(width=number)


@given(st.text(max_size=30))
def test_any_text_is_a_site_or_a_site_error(text: str) -> None:
    site = parsed(text)
    assert site is None or Site.parse(str(site)) == site


@pytest.mark.parametrize(
    ("text", "name", "index"),
    [
        ("L3.attn.h5", "L3.attn.z", {"head": "5"}),
        ("L3.attn.h5.q[pos=-1]", "L3.attn.q", {"head": "5", "pos": "-1"}),
        ("L0.mlp.n812", "L0.mlp.out", {"neuron": "812"}),
        ("L1.conv.c3.in", "L1.conv.in", {"channel": "3"}),
        ("L0.rnn@4.u2", "L0.rnn@4.out", {"state": "2"}),
        ("model.attn.h3", "model.attn.h3", {}),
        ("cell@4/lstm_cell.0:1", "cell@4/lstm_cell.0:1", {}),
        (" a[ head = 07 , pos = 2 : 5 ] ", "a", {"head": "7", "pos": "2:5"}),
        ("a[pos=1|3]", "a", {"pos": "1|3"}),
        ("a[]", "a", {}),
    ],
)
def test_reading(text: str, name: str, index: dict[str, str]) -> None:
    site = Site.parse(text)
    assert (site.name, dict(site.index)) == (name, index)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "a[head]",
        "a[=3]",
        "a[head=x]",
        "a[head=1:2:3]",
        "a[head=1",
        "a]",
        "a[head=1][pos=2]",
        "a[head=1.5]",
    ],
)
def test_what_is_no_site(text: str) -> None:
    with pytest.raises(SiteError):
        Site.parse(text)


def test_an_axis_given_twice_is_refused() -> None:
    with pytest.raises(SiteError, match="twice, as 2 and as 3"):
        Site.parse("L0.attn.h3[head=2]")
    with pytest.raises(SiteError, match="twice"):
        Site.parse("a[pos=1, pos=2]")
    assert Site.parse("L0.attn.h3[head=3]") == Site.parse("L0.attn.h3")


def test_indices() -> None:
    assert read_index(" -1") == -1
    assert read_index("2:") == slice(2, None)
    assert read_index(":") == slice(None)
    assert read_index("1|4|7") == (1, 4, 7)


def test_near_names() -> None:
    assert "L0.attn.z" in str(unknown("L0.atn.z", ["L0.attn.z", "logits"]))
    assert "listing()" in str(unknown("zzz", ["L0.attn.z"]))
