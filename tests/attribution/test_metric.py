"""Metrics: their values, and one clear sentence for each way they cannot be read."""

import pytest
import torch
from networks import gpt2_runs, organism_runs

import cutaway as cw
from cutaway.errors import MetricError


def test_logit_difference_by_hand() -> None:
    clean, _, _ = gpt2_runs()
    found = cw.logit_difference(3, [4, 5, 6], position=2)(clean.logits, clean.net)
    torch.testing.assert_close(found, clean.logits[:, 2, 3] - clean.logits[torch.arange(3), 2, torch.tensor([4, 5, 6])])


def test_logit_is_relative_to_the_mean() -> None:
    clean, _, _ = gpt2_runs()
    found = cw.logit(3)(clean.logits, clean.net)
    torch.testing.assert_close(found, clean.logits[:, -1, 3] - clean.logits[:, -1].mean(1))


@pytest.mark.parametrize(
    ("metric", "sentence"),
    [
        (cw.logit_difference(3, 3), "are the same"),
        (cw.logit_difference(3, 99), "no class 99"),
        (cw.logit_difference([3, 4], 5), "2 answers for 3 examples"),
        (cw.logit_difference(3, 4, position=50), "no position 50"),
        (cw.custom(lambda logits: logits.sum(), name="total"), "one number an example"),
    ],
)
def test_unreadable_metrics_say_why(metric: cw.Metric, sentence: str) -> None:
    clean, _, _ = gpt2_runs()
    with pytest.raises(MetricError, match=sentence):
        metric(clean.logits, clean.net)


def test_answers_as_words() -> None:
    clean, _, _, organism = organism_runs("induction", n=4)
    words = organism.vocabulary
    by_word = cw.logit_difference(words[3], words[4])(clean.logits, clean.net)
    torch.testing.assert_close(by_word, cw.logit_difference(3, 4)(clean.logits, clean.net))
    with pytest.raises(MetricError, match="single token"):
        cw.logit_difference(f"{words[3]} {words[4]}", words[5])(clean.logits, clean.net)
