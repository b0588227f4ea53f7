"""Intervals, ranks and the ROC area against hand-made cases and brute force."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cutaway.claims.statistics import auroc, rank_p, ratio_interval


def test_the_interval_covers_as_often_as_it_says() -> None:
    covered = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        bottom = random.normal(2.0, 0.5, 60)
        top = 0.8 * bottom + random.normal(0, 0.3, 60)
        _, low, high = ratio_interval(top, bottom, draws=400, seed=seed)
        covered += low <= 0.8 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_one_example_has_no_spread() -> None:
    assert ratio_interval(np.array([1.0]), np.array([2.0])) == (0.5, None, None)


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=2, max_size=40))
def test_auroc_is_the_share_of_ordered_pairs(rows: list[tuple[int, bool]]) -> None:
    good = [score for score, label in rows if label]
    bad = [score for score, label in rows if not label]
    found = auroc([score for score, _ in rows], [label for _, label in rows])
    if not good or not bad:
        assert math.isnan(found)
        return
    pairs = [1.0 if a > b else 0.5 if a == b else 0.0 for a in good for b in bad]
    assert found == pytest.approx(sum(pairs) / len(pairs))


def test_rank_p_is_never_zero() -> None:
    assert rank_p(1.0, [0.0] * 99) == 0.01
    assert rank_p(0.0, [0.0] * 99) == 1.0
