"""A program to a transformer with its circuit. The driver is a table of contents: values, layout, weights, circuit."""

from __future__ import annotations

from collections.abc import Sequence as Listed
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .circuit import Circuit, LayerWeights, circuit_of
from .language import Sequence, Source, indices, is_numerical, tokens
from .layout import Layout, lay_out
from .transformer import Attention, CompiledTransformer, Layer, Size, empty
from .values import Values
from .weights import HeadWeights, Neuron, Row, head, neurons

BEGIN = "<bos>"  # the first token of every input


@dataclass(frozen=True)
class Compiled:
    """A transformer, the plan that it follows, the circuit of its output, and what each output column stands for."""

    module: CompiledTransformer
    layout: Layout
    circuit: Circuit
    outputs: tuple[Any, ...]
    parts: dict[str, str]


def compile_program(
    program: Sequence,
    vocabulary: Listed[Any],
    length: int,
    *,
    causal: bool = False,
    distractors: Listed[Sequence] = (),
) -> Compiled:
    """The transformer that computes a program on inputs `<bos> t1 … tn`, n up to `length`; token 0 is `<bos>`.

    Its outputs are one-hot values of the program, or its number. `distractors` are computed too, in the same layers,
    but not read by the output: their parts are no part of the circuit. ValueError for a program that cannot be
    compiled.
    """
    layout = lay_out((tokens, program, *distractors), Values(tuple(vocabulary), length))
    heads = [[head(operation, layout) for operation in layer] for layer in layout.heads]
    maps = [[neuron for operation in layer for neuron in neurons(operation, layout)] for layer in layout.maps]
    outputs = (program.name,) if is_numerical(program) else layout.values.held(program)
    size = Size(
        vocabulary=1 + len(vocabulary), places=1 + length, width=len(layout.labels), layers=len(heads),
        heads=max(2, *map(len, heads)),
        head_width=max([1, *(len(rows) for layer in heads for part in layer for rows in (part.key, part.value))]),
        hidden=max(1, *map(len, maps)), outputs=len(outputs), causal=causal,
    )  # fmt: skip
    module = empty(size)
    _fill_embeddings(module, layout)
    layers = [layer for layer in module.layers if isinstance(layer, Layer)]
    for layer, parts, made in zip(layers, heads, maps, strict=True):
        for place, part in enumerate(parts):
            _fill_head(layer.attention, place, part)
        for place, neuron in enumerate(made):
            _fill_neuron(layer.up, layer.down, place, neuron)
    rows = layout.rows[program]
    module.unembed.weight.data[:, rows] = torch.eye(len(outputs))
    module.requires_grad_(True)
    circuit = circuit_of(
        module.embed.weight,
        module.pos_embed.weight,
        [_weights(layer) for layer in layers],
        module.unembed.weight,
        begin=0,
    )
    return Compiled(module, layout, circuit, outputs, _parts(layout))


def _fill_embeddings(module: CompiledTransformer, layout: Layout) -> None:
    for sequence in layout.rows:
        if sequence is tokens:
            for token, value in enumerate(layout.values.vocabulary, start=1):
                _put(module.embed.weight[token], layout.code(sequence, value))
        elif isinstance(sequence, Source):
            for place in range(layout.values.length):
                value = place if sequence is indices else sequence.constant
                _put(module.pos_embed.weight[1 + place], layout.code(sequence, value))
    _put(module.pos_embed.weight[0], {layout.mark: 1.0})


def _fill_head(attention: Attention, place: int, part: HeadWeights) -> None:
    start, scale = place * attention.head_width, attention.head_width**0.5
    for row, (query, bias, key) in enumerate(zip(part.query, part.query_bias, part.key, strict=True), start):
        _put(attention.query.weight[row], {at: scale * by for at, by in query.items()})
        attention.query.bias.data[row] = scale * bias
        _put(attention.key.weight[row], key)
    for row, (value, out) in enumerate(zip(part.value, part.out, strict=True), start):
        _put(attention.value.weight[row], value)
        _put(attention.out.weight[:, row], out)


def _fill_neuron(up: torch.nn.Linear, down: torch.nn.Linear, place: int, neuron: Neuron) -> None:
    _put(up.weight[place], neuron.reads)
    up.bias.data[place] = neuron.bias
    _put(down.weight[:, place], neuron.writes)


def _put(row: Tensor, entries: Row) -> None:
    for place, value in entries.items():
        row.data[place] = value


def _weights(layer: Layer) -> LayerWeights:
    """A layer's weights, a head's own dimensions apart."""
    attention = layer.attention
    parts = (attention.query.weight, attention.query.bias, attention.key.weight, attention.value.weight)
    query, bias, key, value = (part.unflatten(0, (attention.heads, -1)) for part in parts)
    out = attention.out.weight.unflatten(1, (attention.heads, -1)).transpose(0, 1)
    return LayerWeights(query, bias, key, value, out, layer.up.weight, layer.down.weight)


def _parts(layout: Layout) -> dict[str, str]:
    """What each component computes, by the names of sequences."""
    found: dict[str, str] = {}
    for number, (heads, maps) in enumerate(zip(layout.heads, layout.maps, strict=True)):
        for place, operation in enumerate(heads):
            found[f"L{number}.attn.h{place}"] = layout.name(operation)
        if maps:
            found[f"L{number}.mlp"] = ", ".join(layout.name(operation) for operation in maps)
    return found
