"""On every network of the zoo: the components that lifting finds are those that the network has."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import SiteError
from zoo import ZOO, case

lifted = pytest.mark.parametrize("name", [name for name, entry in ZOO.items() if entry.expected])


@lifted
def test_components_are_those_of_the_network(name: str) -> None:
    found = case(name).trace.lift()
    assert {part.name: (part.count, part.calls) for part in found.components()} == ZOO[name].expected
    assert len(found.streams) == ZOO[name].stream


@lifted
def test_every_standard_site_can_be_read_and_edited(name: str) -> None:
    trace = case(name).trace
    logits = trace.lift().sites["logits"].axes
    examples = trace.logits.shape[logits.index("batch") if "batch" in logits else 0]
    for site, place in trace.lift().sites.items():
        value = trace[site]
        assert value.ndim == len(place.axes) or not place.axes, site
        if "batch" in place.axes:
            assert value.shape[place.axes.index("batch")] in (1, examples), site
    assert torch.equal(trace["logits"], trace.logits)


@lifted
def test_a_name_that_matches_nothing_is_refused_with_near_ones(name: str) -> None:
    trace = case(name).trace
    known = list(trace.lift().sites)
    with pytest.raises(SiteError, match="No site"):
        trace["L77.attn.z"]
    with pytest.raises(SiteError, match=r"Near it: .*"):
        trace[known[0] + "x"]


@lifted
def test_the_table_of_components_prints(name: str) -> None:
    text = str(case(name).trace.lift())
    for part in ZOO[name].expected:
        assert f"\n{part} " in text
    assert text.endswith("values")
