"""Small networks and runs for the tests of scores and circuits."""

from __future__ import annotations

from functools import cache

import torch
import transformers
from torch import nn

import cutaway as cw
from cutaway import organisms

BEHAVING = ("induction", "indirect-object", "shapes", "counter")


def organism_runs(name: str, n: int = 16, seed: int = 1):
    """(clean, corrupted, metric, organism) of an organism's behaviour."""
    organism = organisms.load(name)
    pairs = organism.pairs(n, seed=seed)
    net = _network(name)
    position = -1 if pairs.position is None else pairs.position
    metric = cw.logit_difference(pairs.correct, pairs.wrong, position=position)
    return net.record(pairs.clean), net.record(pairs.corrupted), metric, organism


@cache
def _network(name: str):
    return cw.open(name)


def tiny_gpt2() -> nn.Module:
    """GPT-2 with two layers, four heads and random weights."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=40, n_embd=32, n_layer=2, n_head=4, n_positions=16, bos_token_id=0, eos_token_id=0, use_cache=False
    )
    return transformers.GPT2LMHeadModel(config).eval()


def gpt2_runs(n: int = 3):
    """(clean, corrupted, module) of the tiny GPT-2 on prompts of seven tokens that differ in one."""
    module = tiny_gpt2()
    net = cw.open(module)
    generator = torch.Generator().manual_seed(0)
    clean = torch.randint(1, 40, (n, 7), generator=generator)
    corrupted = clean.clone()
    corrupted[:, 2] = (corrupted[:, 2] + 5) % 40
    return net.record(clean), net.record(corrupted), module


def linear_convolutions() -> nn.Module:
    """Convolutions without a nonlinearity: a network whose edges have exactly linear effects."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
