"""The tests reject what they should, and hold their level where the null hypothesis is true."""

import numpy as np
import pytest
from scipy import stats

from cutaway.claims.hypotheses import equivalence, independence, minimality
from cutaway.claims.statistics import binomial, holm, sign_p


@pytest.mark.parametrize(("n", "chance"), [(1, 0.5), (17, 0.9), (400, 0.6)])
def test_binomial_is_scipys(n: int, chance: float) -> None:
    assert binomial(n, chance) == pytest.approx(stats.binom.pmf(np.arange(n + 1), n, chance), abs=1e-12)
    wins = (2 * n) // 3
    assert sign_p(wins, n) == pytest.approx(stats.binomtest(wins, n, alternative="greater").pvalue)


def test_holm_is_the_published_procedure() -> None:
    # Holm 1979: the smallest times m, the next times m - 1, never below the one before.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0] and holm([]) == []


def test_a_circuit_as_often_better_as_worse_is_equivalent_and_one_always_worse_is_not() -> None:
    random = np.random.default_rng(0)
    rejected = 0
    for _ in range(200):
        good = random.normal(size=50)
        rejected += equivalence(good + random.normal(size=50), good).rejected
        assert equivalence(good - 0.01, good).rejected
    assert rejected <= 10
    same = equivalence(good, good)
    assert same.statistic == 0.5 and not same.rejected
    assert not equivalence(good[:3] - 1, good[:3]).rejected  # three examples show nothing


def test_independence_holds_its_level_and_sees_dependence_without_correlation() -> None:
    random = np.random.default_rng(1)
    rejected = sum(
        independence(random.normal(size=24), random.normal(size=24), draws=99, seed=place).rejected
        for place in range(100)
    )
    assert rejected <= 12
    value = random.uniform(-1, 1, 60)
    assert abs(np.corrcoef(value, value**2)[0, 1]) < 0.3
    assert independence(value**2, value, draws=200).rejected
    still = independence(np.zeros(20), random.normal(size=20))
    assert still.p == 1.0 and "does not vary" in still.source


def test_independence_does_not_depend_on_units() -> None:
    random = np.random.default_rng(2)
    one, other = random.normal(size=30), random.normal(size=30)
    assert independence(one * 1e4, other, draws=99).p == independence(one, other * 1e-4 + 3, draws=99).p


def test_parts_that_matter_no_more_than_random_ones_are_redundant() -> None:
    random = np.random.default_rng(3)
    reference = random.normal(0, 0.01, 100).tolist()
    needed = minimality({"a": 0.5, "b": -0.4}, reference)
    assert not needed.rejected and needed.statistic == 0
    found = minimality({"a": 0.5, "b": 0.0}, reference)
    assert found.rejected and found.statistic == 0.5 and "Holm over 2 parts" in found.correction
    assert minimality({}, reference).p == 1.0 and minimality({"a": 1.0}, []).p == 1.0
