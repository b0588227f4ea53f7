"""Kinds of dictionaries: what each may read and write, and where its weights may be."""

from __future__ import annotations

import pytest
import torch

from cutaway.errors import InputError
from cutaway.features.architectures import KINDS, ROUTES, kind_named, masks, placed, sizes, spans
from cutaway.features.card import Place
from cutaway.features.codes import RULES as ACTIVATIONS
from cutaway.features.objectives import RULES

THERE = (Place("a", 2), Place("b", 3), Place("c", 4))


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_has_a_rule_a_route_and_a_paper(name: str) -> None:
    kind = kind_named(name)
    assert kind.rule in RULES and kind.route in ROUTES and any(c.isdigit() for c in kind.paper)
    assert RULES[kind.rule].activation in ACTIVATIONS


def test_places_follow_from_the_kind() -> None:
    a, b, c = THERE
    assert placed("topk", THERE[:1], None, None) == ((a,), (a,))
    assert placed("topk", THERE, ["b"], None) == ((b,), (b,))
    assert placed("transcoder", THERE, ["b"], ["c"]) == ((b,), (c,))
    assert placed("crosscoder", THERE, None, None) == (THERE, THERE)
    assert placed("cross-layer-transcoder", THERE, ["a", "b"], ["b", "c"]) == ((a, b), (b, c))


def test_a_cross_layer_transcoder_needs_as_many_places_to_write() -> None:
    with pytest.raises(InputError, match="2 are read and 1 written"):
        placed("cross-layer-transcoder", THERE, ["a", "b"], ["c"])
    with pytest.raises(InputError, match="reads or writes is empty"):
        placed("transcoder", THERE, [], ["c"])


def test_masks_leave_each_group_its_place_and_those_after_it() -> None:
    read, write = masks(6, THERE, THERE)
    for latent in range(6):
        group = latent // 2
        for number, (start, end) in enumerate(spans(THERE)):
            assert (read[latent, start:end] == (number == group)).all()
            assert (write[latent, start:end] == (number >= group)).all()


def test_sizes_add_the_lengths_at_all_places() -> None:
    decoder = torch.tensor([[3.0, 4.0, 0.0, 0.0, 12.0, 0.0, 0.0, 0.0, 0.0]])
    assert sizes(decoder, spans(THERE)).tolist() == [17.0]
    assert sizes(decoder, [(0, 9)]).tolist() == [13.0]
