"""Brute-force ablation, written out for each architecture: the tests' own oracle for which edges and nodes matter.

Every reader's input is rebuilt as the sum of what its writers write, so that one edge can carry another value than its
neighbours. Nothing here is shared with the package, which is what makes it an independent check.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cutaway.organisms import Organism, Pairs

Values = dict[str, Tensor]


def run(organism: Organism, inputs: Tensor, replaced: Values | None = None) -> tuple[Tensor, Values]:
    """Outputs, and what every writer wrote.

    `replaced` maps a writer ("L0.attn.h1": a whole node) or an edge ("L0.attn.h1 -> logits") to what is read instead.
    """
    return evaluator(organism)(organism.module, inputs, Wiring(replaced or {}))


class Wiring:
    """What each reader sees of each writer; remembers the edges it was asked for."""

    def __init__(self, replaced: Values) -> None:
        self.replaced, self.values, self.edges = replaced, {}, []

    def seen(self, writer: str, reader: str) -> Tensor:
        edge = f"{writer} -> {reader}"
        self.edges.append(edge)
        return self.replaced.get(edge, self.replaced.get(writer, self.values[writer]))

    def total(self, reader: str) -> Tensor:
        return sum((self.seen(writer, reader) for writer in list(self.values)), torch.zeros(()))


def transformer(module: nn.Module, tokens: Tensor, wiring: Wiring) -> tuple[Tensor, Values]:
    """All transformers: pre-norm blocks where the module has them, attention alone where not."""
    positions = torch.arange(tokens.shape[1])
    wiring.values["embed"] = module.embed(tokens)
    wiring.values["pos_embed"] = module.pos_embed(positions).expand(len(tokens), -1, -1)
    blocks = getattr(module, "blocks", None)
    for layer, block in enumerate(module.layers if blocks is None else blocks):
        attention = block if blocks is None else block.attention
        norm = (lambda x: x) if blocks is None else block.norm1
        width = attention.head_width
        written = {}
        for head in range(attention.heads):
            name, rows = f"L{layer}.attn.h{head}", slice(head * width, (head + 1) * width)
            q, k, v = (
                norm(wiring.total(f"{name}.{port}")) @ getattr(attention, part).weight[rows].T
                for port, part in (("q", "query"), ("k", "key"), ("v", "value"))
            )
            scores = (q @ k.transpose(1, 2)) / math.sqrt(width)
            if attention.causal:
                scores = scores.masked_fill(positions[None, :] > positions[:, None], float("-inf"))
            written[name] = scores.softmax(-1) @ v @ attention.out.weight[:, rows].T
        wiring.values |= written
        if blocks is not None:
            read = block.norm2(wiring.total(f"L{layer}.mlp.in"))
            wiring.values[f"L{layer}.mlp"] = block.down(F.gelu(block.up(read)))
    final = wiring.total("logits")
    return module.unembed(final if blocks is None else module.norm(final)), wiring.values


def convolutional(module: nn.Module, images: Tensor, wiring: Wiring) -> tuple[Tensor, Values]:
    """A writer is a channel after ReLU and pooling, (n, h, w); the input is one writer, (n, 3, h, w)."""
    wiring.values["input"] = images
    writers = ["input"]

    def stacked(reader: str) -> Tensor:
        seen = [wiring.seen(writer, reader) for writer in writers]
        return torch.cat([value if value.dim() == 4 else value[:, None] for value in seen], 1)

    for layer, conv in enumerate((module.conv0, module.conv1, module.conv2)):
        names = [f"L{layer}.conv.c{channel}" for channel in range(conv.out_channels)]
        for channel, name in enumerate(names):
            rows = slice(channel, channel + 1)
            out = F.conv2d(stacked(f"{name}.in"), conv.weight[rows], conv.bias[rows], padding=conv.padding)
            wiring.values[name] = F.max_pool2d(out.relu(), 2)[:, 0]
        writers = names
    return module.readout(stacked("logits").flatten(1)), wiring.values


def recurrent(module: nn.Module, tokens: Tensor, wiring: Wiring) -> tuple[Tensor, Values]:
    """A writer is a unit's state over time, (n, steps); a reader at one step sees the state after the step before."""
    rnn, units, steps = module.rnn, module.rnn.hidden_size, tokens.shape[1]
    names = [f"L0.rnn.u{unit}" for unit in range(units)]
    wiring.values["embed"] = module.embed(tokens)
    wiring.values |= {name: torch.zeros(len(tokens), steps) for name in names}
    into, back = (weight.view(3, units, -1) for weight in (rnn.weight_ih_l0, rnn.weight_hh_l0))
    into_bias, back_bias = (bias.view(3, units) for bias in (rnn.bias_ih_l0, rnn.bias_hh_l0))

    def before(writer: str, reader: str, step: int) -> Tensor:
        seen = wiring.seen(writer, reader)
        return seen[:, step - 1] if step else torch.zeros(len(tokens))

    for step in range(steps):
        fresh = {}
        for unit, name in enumerate(names):
            token, state = [], []
            for gate, port in enumerate("rzn"):
                reader = f"{name}.{port}"
                token.append(wiring.seen("embed", reader)[:, step] @ into[gate, unit] + into_bias[gate, unit])
                read = torch.stack([before(writer, reader, step) for writer in names], 1)
                state.append(read @ back[gate, unit] + back_bias[gate, unit])
            r, z = ((token[gate] + state[gate]).sigmoid() for gate in (0, 1))
            candidate = (token[2] + r * state[2]).tanh()
            fresh[name] = (1 - z) * candidate + z * before(name, f"{name}.carry", step)
        for name, state_now in fresh.items():
            wiring.values[name] = wiring.values[name].clone()
            wiring.values[name][:, step] = state_now
    last = torch.stack([wiring.seen(name, "logits")[:, -1] for name in names], 1)
    return module.readout(last), wiring.values


def perceptron(module: nn.Module, bits: Tensor, wiring: Wiring) -> tuple[Tensor, Values]:
    """A writer is a neuron after its activation, (n,); the input is one writer, (n, bits)."""
    wiring.values["input"] = bits
    writers = ["input"]

    def stacked(reader: str) -> Tensor:
        seen = [wiring.seen(writer, reader) for writer in writers]
        return torch.cat([value if value.dim() == 2 else value[:, None] for value in seen], 1)

    for layer, linear in enumerate((module.first, module.second)):
        names = [f"L{layer}.mlp.n{neuron}" for neuron in range(linear.out_features)]
        for neuron, name in enumerate(names):
            wiring.values[name] = F.gelu(stacked(f"{name}.in") @ linear.weight[neuron] + linear.bias[neuron])
        writers = names
    return module.readout(stacked("logits")), wiring.values


def selective(module: nn.Module, tokens: Tensor, wiring: Wiring) -> tuple[Tensor, Values]:
    """Writers are the channels of the convolution, (n, steps), and those of the scan after its gate."""
    wiring.values["embed"] = module.embed(tokens)
    block, scan, channels = module.block, "L0.ssm", range(len(module.block.skip))
    convs = [f"L0.conv.c{channel}" for channel in channels]
    for channel, name in enumerate(convs):
        now = wiring.seen("embed", f"{name}.in") @ block.enter.weight[channel]
        before = F.pad(now, (1, 0))[:, :-1]
        earlier, later = block.conv.weight[channel, 0]
        wiring.values[name] = F.silu(earlier * before + later * now + block.conv.bias[channel])

    def taps(reader: str) -> Tensor:
        return torch.stack([wiring.seen(name, reader) for name in convs], 2)

    b, c = block.b(taps(f"{scan}.in1")), block.c(taps(f"{scan}.read"))
    for channel in channels:
        name = f"{scan}.c{channel}"
        x = wiring.seen(convs[channel], f"{name}.in")
        size = F.softplus(taps(f"{name}.decay") @ block.step_size.weight[channel] + block.step_size.bias[channel])
        state, outputs = torch.zeros(len(tokens), b.shape[2]), []
        for step in range(tokens.shape[1]):
            kept = torch.exp(-size[:, step, None] * block.decay[channel].exp()) * state
            state = kept + (size * x)[:, step, None] * b[:, step]
            outputs.append((state * c[:, step]).sum(1) + block.skip[channel] * x[:, step])
        gate = F.silu(wiring.seen("embed", f"{name}.gate") @ block.gate.weight[channel] + block.gate.bias[channel])
        wiring.values[name] = torch.stack(outputs, 1) * gate
    added = [
        wiring.seen(f"{scan}.c{channel}", "logits")[..., None] * block.out.weight[:, channel] for channel in channels
    ]
    return module.readout(sum(added, wiring.seen("embed", "logits"))), wiring.values


EVALUATORS: dict[str, Callable[[nn.Module, Tensor, Wiring], tuple[Tensor, Values]]] = {
    "induction": transformer,
    "indirect-object": transformer,
    "shapes": convolutional,
    "counter": recurrent,
    "gates": perceptron,
    "marks": selective,
}


def evaluator(organism: Organism) -> Callable[[nn.Module, Tensor, Wiring], tuple[Tensor, Values]]:
    """The evaluation written for an organism's architecture."""
    return transformer if organism.name.startswith("aligned:") else EVALUATORS[organism.name]


def all_edges(organism: Organism) -> list[str]:
    """Every edge the architecture has, planted or not."""
    wiring = Wiring({})
    evaluator(organism)(organism.module, organism.pairs(1).clean, wiring)
    return list(dict.fromkeys(wiring.edges))


def gap(outputs: Tensor, pairs: Pairs) -> float:
    """Mean correct minus wrong output."""
    rows = outputs if pairs.position is None else outputs[:, pairs.position]
    return (rows.gather(1, pairs.correct[:, None]) - rows.gather(1, pairs.wrong[:, None])).mean().item()


def averaged(name: str, value: Tensor) -> Tensor:
    """The mean over inputs, and over positions where the last axis is the residual stream's."""
    streamed = name in ("embed", "pos_embed") or ".attn." in name or name.endswith(".mlp")
    over = (0, 1) if streamed else (0,)
    return value.mean(over, keepdim=True).expand_as(value)


@torch.no_grad()
def effects(organism: Organism, pairs: Pairs, cuts: list[str]) -> Iterator[tuple[str, dict[str, float]]]:
    """For every edge or writer in `cuts`: how far the logit difference falls when it carries something else.

    `resample`: its value in the corrupted run; `mean`: its mean over the clean runs; `zero`: nothing.
    """
    clean_outputs, clean = run(organism, pairs.clean)
    _, corrupted = run(organism, pairs.corrupted)
    whole = gap(clean_outputs, pairs)
    for cut in cuts:
        writer = cut.split(" -> ")[0]
        others = {
            "resample": corrupted[writer],
            "mean": averaged(writer, clean[writer]),
            "zero": torch.zeros_like(clean[writer]),
        }
        yield cut, {kind: whole - gap(run(organism, pairs.clean, {cut: v})[0], pairs) for kind, v in others.items()}
