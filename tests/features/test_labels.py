"""Labels: a planted rule is found again, the test tells good from bad, and counter-examples are real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from looked import WIDTH, directions, shapes, talk

import cutaway as cw
from cutaway.errors import InputError
from cutaway.features import Card, Dictionary, Place
from cutaway.features.adversary import hunt, refit
from cutaway.features.causal_test import causal_test
from cutaway.features.grounds import PROPERTIES, Ground, text_ground
from cutaway.features.index import LatentIndex, build_index, open_index
from cutaway.features.label_test import detection
from cutaway.features.labels import Label, label
from cutaway.features.rule_search import best_set, f1, find_rule
from cutaway.features.rules import TESTS, Condition, Rule
from cutaway.features.seen import watch

WORDS = ["<s>", " the", " cat", " dog", " Tom", " Mia", ".", "\n", " 12", "ing", " ran", " sat"]


def ground(count: int = 300, length: int = 20, seed: int = 0) -> Ground:
    generator = np.random.default_rng(seed)
    return text_ground(list(generator.integers(1, len(WORDS), (count, length))), WORDS)


def token(*words: str, at: int = 0) -> Condition:
    return Condition("token", tuple(WORDS.index(word) for word in words), at)


PLANTED = {
    "a token": Rule(((token(" cat"),),)),
    "a set": Rule(((token(" cat", " dog"),),)),
    "the token before": Rule(((token(" the", at=-1),),)),
    "two tokens": Rule(((token(" cat"), token(" the", at=-1)),)),
    "a property": Rule(((Condition("property", ("capitalised",)),),)),
    "a context": Rule(((token("."), Condition("contains", (WORDS.index(" Tom"),), 8)),)),
    "a place": Rule(((Condition("position", (0, 0)),),)),
    "one or the other": Rule(((token(" cat"), token(" the", at=-1)), (token("ing"), token(" ran", at=-1)))),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_rule_is_found(name: str) -> None:
    here, there = ground(), ground(seed=1)
    found = find_rule(here, PLANTED[name].holds(here))
    assert f1(found.holds(there), PLANTED[name].holds(there)) > 0.97, found.text(here.word)


def test_a_planted_rule_is_found_in_noise_and_nothing_in_noise_alone() -> None:
    here, there = ground(), ground(seed=1)
    generator = np.random.default_rng(2)
    truth = PLANTED["two tokens"]
    noisy = np.where(generator.random(len(here)) < 0.02, generator.random(len(here)) < 0.05, truth.holds(here))
    assert f1(find_rule(here, noisy).holds(there), truth.holds(there)) > 0.95
    dealt = generator.random(len(here)) < 0.02
    assert f1(find_rule(here, dealt).holds(there), generator.permutation(dealt)) < 0.15
    assert find_rule(here, dealt).size < 20  # chance is not worth many words


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_best_set_is_the_best_of_all_sets(seed: int) -> None:
    """Against all 2^6 sets, without a price."""
    generator = np.random.default_rng(seed)
    values, wanted = generator.integers(0, 6, 60), generator.random(60) < 0.3
    found = best_set(values, wanted, np.ones(60, bool), 6, 0.0)
    every = [[one for one in range(6) if mask >> one & 1] for mask in range(1, 64)]
    best = max(f1(np.isin(values, one), wanted) for one in every)
    assert not wanted.any() or f1(np.isin(values, found), wanted) >= best - 0.05


@pytest.mark.parametrize("what", TESTS)
def test_tests_are_data_and_read_as_text(what: str) -> None:
    values: dict[str, tuple[Any, ...]] = {
        "property": ("capitalised",), "prefix": ("ca",), "suffix": ("at",), "position": (0, 3), "class": (1,),
        "above": ("brightness", 0.5), "below": ("brightness", 0.5), "ngram": ("1 2", "1 3"),
    }  # fmt: skip
    test = Condition(what, values.get(what, (2,)), 2 if what in ("ngram", "contains") else 0)
    assert Condition.from_dict(test.to_dict()) == test
    rule = Rule(((test, replace(test, negated=True)),))
    assert Rule.from_dict(rule.to_dict()) == rule and "not" in rule.text(lambda one: WORDS[one])
    if what not in ("above", "below"):
        here = ground(5)
        assert not rule.holds(here).any()  # something and its opposite
        assert (test.holds(here) != replace(test, negated=True).holds(here)).all()


def test_what_each_test_sees() -> None:
    here = text_ground([np.array([1, 2, 5, 2]), np.array([2, 6])], WORDS)
    assert token(" cat").holds(here).tolist() == [False, True, False, True, True, False]
    assert token(" the", at=-1).holds(here).tolist() == [False, True, False, False, False, False]  # not over the border
    assert Condition("ngram", ("1 2", "2 6"), 2).holds(here).tolist() == [False, True, False, False, False, True]
    assert Condition("contains", (1,), 2).holds(here).tolist() == [False, True, True, False, False, False]
    assert Condition("contains", (1,), 0).holds(here).tolist() == [False, True, True, True, False, False]
    assert set(here.properties) == set(PROPERTIES)


@pytest.mark.parametrize("data", [None, {}, {"any": [[]]}, {"any": [[{"what": "eval", "values": ["1"]}]]},
                                  {"any": [[{"what": "token", "values": []}]]}, {"any": "x"},
                                  {"any": [[{"what": "token", "values": [[1]]}]]}])  # fmt: skip
def test_no_rule(data: Any) -> None:
    with pytest.raises(InputError):
        Rule.from_dict(data)


def test_a_test_that_does_not_fit_is_told() -> None:
    for test in (
        Condition("property", ("nice",)),
        Condition("above", ("brightness", 1.0)),
        Condition("position", (1,)),
    ):
        with pytest.raises(InputError):
            test.holds(ground(3))


def test_detection() -> None:
    fires, group = np.arange(400) % 4 == 0, np.arange(400) // 20
    said = fires.copy()
    said[:20] = True  # 15 false alarms
    score = detection(said, fires, group)
    assert score.recall == 1 and score.precision == pytest.approx(100 / 115)
    assert score.precision_interval[0] < score.precision < score.precision_interval[1]
    assert score.f1_interval[0] <= score.f1 <= score.f1_interval[1] and score.examples == 20
    nothing = detection(np.zeros(400, bool), fires, group)
    assert (nothing.precision, nothing.recall, nothing.f1) == (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[cw.Network, LatentIndex]:
    """A dictionary at the embedding, two latents of which read one token each, and others nothing in particular."""
    net, inputs = talk(80)
    plain = directions("resid.0", WIDTH, 30, network=net.fingerprint)
    rows = plain.decoder.clone()
    embed = dict(net.module.named_parameters())["embed.weight"].detach()
    for latent, word in enumerate(("gave", "Mary")):
        token_id = net.token_id(word)
        rows[latent] = 3 * (embed[token_id] - embed.mean(0)) / (embed[token_id] - embed.mean(0)).norm()
    place = Place("resid.0", WIDTH, net.fingerprint)
    made = Dictionary("made", "relu", {"encoder": rows, "decoder": rows, "encoder_bias": torch.full((30,), -1.0)},
                      card=Card((place,), (place,), net.name))  # fmt: skip
    return net, build_index(made, watch(net, inputs), tmp_path_factory.mktemp("p") / "index")


def test_labels_of_a_network_are_scored_beside_controls(planted: tuple[cw.Network, LatentIndex]) -> None:
    net, index = planted
    made = label(index, range(6), threshold=0.5)
    first = made[0]
    assert "'gave'" in first.text and first.score.f1 > 0.95
    assert first.controls["firings at random"] < 0.6 * first.score.f1 and first.controls["other latents"] < 0.5
    example = index.example(3)
    where = first.fires(example).tolist()
    assert where == first.fires(torch.from_numpy(example)).tolist() and any(where)
    whole = np.concatenate([first.fires(index.example(one)) for one in range(80)])
    assert f1(whole, index.at(0, 0, len(whole)) > first.threshold) > 0.95
    index.keep_labels(made)
    again = open_index(index.folder).labels[0]
    assert again == first and again.fires(example).tolist() == where
    assert open_index(index.folder).search("gave", sort="label")[0]["latent"] == 0
    assert label(index, [0], threshold=0.5, seed=0)[0] == first
    with pytest.raises(InputError, match="share"):
        label(index, [0], threshold=1.5)


def test_counter_examples_are_real(planted: tuple[cw.Network, LatentIndex]) -> None:
    """What the search returns is what the network does; a rule that is wrong is shown to be, a right one is not."""
    net, index = planted
    right = label(index, [0], threshold=0.5)[0]
    assert hunt(net, index, right, rows=6, rounds=2, tries=4).precision == 1.0
    wrong = replace(right, rule=Rule(((Condition("token", (net.token_id("gave"), net.token_id("the"))),),)))
    found = hunt(net, index, wrong, rows=8, rounds=2, tries=4)
    dense = index.dictionary.encode(net.record(torch.from_numpy(found.texts.astype(np.int64))).value("resid.0"))
    assert np.array_equal((dense[..., 0] > right.threshold).numpy(), found.fires)
    better = refit(index, wrong, found)
    assert better.how["F1 on counter-examples"] >= better.how["F1 on counter-examples before"]
    with pytest.raises(InputError, match="words alone"):
        hunt(net, index, replace(right, rule=None))
    with pytest.raises(InputError, match="another network"):
        hunt(cw.open("induction"), index, right)


def test_a_causal_test_tells_a_cause_from_none(tmp_path: Path) -> None:
    """A latent that reads "gave" at the end of the stream and writes the name Mary there promotes Mary where its label
    holds; a label that points elsewhere fails the test."""
    net, inputs = talk(40)
    value = net.record(inputs).value("resid.6")
    plain = directions("resid.6", WIDTH, 30)
    reads, writes = plain.decoder.clone(), plain.decoder.clone()
    there = inputs == net.token_id("gave")
    towards = value[there].mean(0) - value[~there].mean(0)
    reads[0] = 2 * towards / towards.norm()
    unembed = next(value for name, value in net.module.named_parameters() if name.endswith("unembed.weight"))
    writes[0] = unembed[net.token_id("Mary")].detach()
    bias = torch.full((30,), -1.0)
    bias[0] = -0.5 * float((value[there] @ reads[0]).mean() + (value[~there] @ reads[0]).mean())
    weights = {"encoder": reads, "decoder": writes, "encoder_bias": bias}
    index = build_index(Dictionary("made", "relu", weights, card=plain.card), watch(net, inputs), tmp_path / "i")
    made = label(index, [0])[0]
    good = causal_test(net, index, made, examples=16, controls=5)
    assert "Mary" in good.promoted and good.contrast > 0
    assert 0 < good.interval[0] <= good.contrast <= good.interval[1] and len(good.controls) == 5
    away = replace(made, rule=Rule(((Condition("position", (0, 2)),),)))
    bad = causal_test(net, index, away, examples=16, controls=5)
    assert bad.contrast < 0.2 * good.contrast
    with pytest.raises(InputError, match="all of these rows or on none"):
        causal_test(net, index, replace(made, rule=Rule(())))


def test_labels_of_images(tmp_path: Path) -> None:
    """A channel that is a colour is told by that colour; classes are told by their number."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 8, 8, generator=generator)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 1), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        module[0].weight.zero_()
        module[0].weight[0, 0, 0, 0] = 1  # red
        module[0].bias.fill_(-0.6)
    net = cw.open(module, name="colours")
    eye = torch.eye(4)
    place = Place("1/relu.0", 4)
    made = Dictionary("identity", "relu", {"encoder": eye, "decoder": eye}, card=Card((place,), (place,)))
    index = build_index(made, watch(net, images), tmp_path / "i", classes=([0, 1] * 20, ["even", "odd"]))
    found = label(index, [0], threshold=0.0)[0]
    assert found.score.f1 > 0.9 and "red" in found.text
    kinds = Rule(((Condition("class", (1,)),),))
    assert kinds.text(kinds=["even", "odd"]) == "the class is odd"
    held: Label = replace(found, rule=kinds)
    assert held.fires(images[0], kind=1).all() and not held.fires(images[0], kind=0).any()
    net, pictures, classes = shapes()
    assert label(index, []) == {} and len(pictures) == len(classes)
