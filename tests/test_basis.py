"""Bases: an edit keeps what the basis cannot express."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cutaway.basis import Directions, edit_in

SIZES = st.tuples(st.integers(1, 4), st.integers(4, 6), st.integers(0, 1000))


def drawn(sizes: tuple[int, int, int]) -> tuple[torch.Tensor, Directions]:
    count, width, seed = sizes
    generator = torch.Generator().manual_seed(seed)
    value = torch.randn(3, 2, width, generator=generator, dtype=torch.float64)
    return value, Directions(torch.randn(count, width, generator=generator, dtype=torch.float64))


@given(SIZES)
@settings(deadline=None, max_examples=40)
def test_editing_nothing_changes_nothing(sizes: tuple[int, int, int]) -> None:
    value, basis = drawn(sizes)
    torch.testing.assert_close(edit_in(basis, value, lambda c: c), value)


@given(SIZES)
@settings(deadline=None, max_examples=40)
def test_coordinates_come_back(sizes: tuple[int, int, int]) -> None:
    value, basis = drawn(sizes)
    coordinates = basis.encode(value)
    assert coordinates.shape == (3, 2, sizes[0])
    torch.testing.assert_close(basis.encode(basis.decode(coordinates)), coordinates)


@given(SIZES)
@settings(deadline=None, max_examples=40)
def test_zeroing_the_coordinates_removes_the_span_and_nothing_else(sizes: tuple[int, int, int]) -> None:
    value, basis = drawn(sizes)
    left = edit_in(basis, value, torch.zeros_like)
    torch.testing.assert_close(
        left @ basis.vectors.T, torch.zeros(3, 2, sizes[0], dtype=torch.float64), atol=1e-9, rtol=0
    )
    removed = value - left
    torch.testing.assert_close(basis.decode(basis.encode(removed)), removed)


def test_dependent_directions_and_half_precision() -> None:
    value = torch.randn(2, 4)
    twice = Directions(torch.stack([torch.eye(4)[0], torch.eye(4)[0] * 2]))
    left = edit_in(twice, value, torch.zeros_like)
    torch.testing.assert_close(left[:, 1:], value[:, 1:])
    torch.testing.assert_close(left[:, 0], torch.zeros(2), atol=1e-6, rtol=0)
    half = edit_in(twice, value.bfloat16(), torch.zeros_like)
    assert half.dtype == torch.bfloat16
