"""Zoo entries for recurrent networks and attention, as plain modules."""

from __future__ import annotations

import attention_modules as a
import recurrent_modules as r
import torch
from entry import BATCH, LENGTH, WORDS, Entry, Inputs, floats, ids, layers
from parts import parts, states
from torch import nn


def _time_major() -> Inputs:
    return (ids()[0][0].T.contiguous(),), {}


def _ragged() -> Inputs:
    return (*ids()[0], torch.tensor([5, LENGTH, LENGTH])), {}


def _pair() -> Inputs:
    return (*ids()[0], *ids(5)[0]), {}


def _pair_time_major() -> Inputs:
    return tuple(tokens.T.contiguous() for tokens in _pair()[0]), {}


def _square() -> Inputs:
    """As many steps as examples, so that sizes do not tell time from batch."""
    return (torch.randint(3, WORDS, (BATCH, BATCH)),), {}


SEQ2SEQ = parts(5, "embed embed1", attn=[4, 4, 4], mlp=[24, 24])

RECURRENT: list[Entry] = [
    Entry("rnn", lambda: r.Recurrent(nn.RNN), ids, states(4, 7, 5)),
    Entry(
        "rnn relu both ways", lambda: r.Recurrent(nn.RNN, nonlinearity="relu", bidirectional=True), ids,
        states(4, 7, 5, 5),
    ),
    Entry("rnn time-major", lambda: r.TimeMajor(nn.RNN, num_layers=2), _time_major, states(4, 7, 5, 5)),
    Entry("gru", lambda: r.Recurrent(nn.GRU), ids, states(4, 7, 5)),
    Entry(
        "gru two layers both ways", lambda: r.Recurrent(nn.GRU, num_layers=2, bidirectional=True), ids,
        states(4, 7, 5, 5, 5, 5),
    ),
    Entry("gru time-major", lambda: r.TimeMajor(nn.GRU), _time_major, states(4, 7, 5)),
    Entry("gru time-major square", lambda: r.TimeMajor(nn.GRU), _square, states(4, 3, 5)),
    Entry("gru packed", lambda: r.Packed(nn.GRU), _ragged, states(4, 7, 5), lengths=False),
    Entry("lstm", lambda: r.Recurrent(nn.LSTM), ids, states(4, 7, 5, cells=True)),
    Entry("lstm two layers", lambda: r.Recurrent(nn.LSTM, num_layers=2), ids, states(4, 7, 5, 5, cells=True)),
    Entry("lstm projected", lambda: r.Recurrent(nn.LSTM, proj_size=3), ids, states(4, 7, 5, cells=True)),
    Entry(
        "lstm projected two layers both ways",
        lambda: r.Recurrent(nn.LSTM, proj_size=3, num_layers=2, bidirectional=True), ids,
        states(4, 7, 5, 5, 5, 5, cells=True),
    ),
    Entry("lstm packed", lambda: r.Packed(nn.LSTM), _ragged, states(4, 7, 5, cells=True), lengths=False),
    Entry("lstm cells", r.LSTMCellLoop, ids, states(3, 7, 5, 4, cells=True), varies=True),
    Entry("gru cell", r.CellLoop, ids, states(4, 7, 5), varies=True),
    Entry("gru by hand", r.WrittenGRU, ids, states(4, 7, 5), varies=True),
    Entry("echo state", r.EchoState, lambda: floats(7, 2), states(3, 7, 8, source="input")),
    Entry("recurrent policy", r.Thinker, lambda: floats(6), parts(4, mlp=7, rnn=[(5, 4)])),
    Entry("spiking", r.Spiking, lambda: floats(7, 3), states(4, 7, 8, cells=True, source="input")),
    Entry("fixed point", r.FixedPoint, lambda: floats(6), states(3, 5, 5, source="input")),
    # Lifting it is not settled: its first steps are without a state, and are named apart from the rest of the loop.
    Entry("memory", r.Memory, lambda: floats(4, 3), {}),
    Entry(
        "convolutional lstm", r.ConvolutionalLSTM, lambda: floats(4, 2, 3, 5),
        states(4, 4, 3, cells=True, source="input"),
    ),
    Entry(
        "encoder norm last", lambda: a.Encoder(False).eval(), ids, layers(24, 5, L0__norm=1, L1__norm=1, L2__norm=1), 8,
        fused=True,
    ),
    Entry("encoder norm first", lambda: a.Encoder(True).eval(), ids, layers(24, 5), 5, fused=True),
    Entry("encoder training", lambda: a.Encoder(True).train(), ids, layers(24, 5), 5),
    Entry("attention weights", lambda: a.WithWeights().eval(), ids, layers(0, 5, count=1), 2, fused=True),
    Entry("attention einsum", lambda: a.Attention(False), ids, layers(0, 41, count=1), 2),
    Entry("attention folded", lambda: a.Attention(True), ids, layers(0, 41, count=1), 2),
    Entry(
        "encoder and decoder", lambda: a.Seq2Seq().eval(), _pair,
        SEQ2SEQ | {f"L{place}.norm": (1, 1) for place in range(3)}, 10, fused=True,
    ),
    Entry("encoder and decoder norm first", lambda: a.Seq2Seq(True).eval(), _pair, SEQ2SEQ, 7, fused=True),
    Entry(
        "encoder and decoder time-major", lambda: a.Seq2Seq(True, False).eval(), _pair_time_major, SEQ2SEQ, 7,
        fused=True,
    ),
    # Nor this: what routing by agreement mixes is no attention, and its squashing is a norm that nothing skips.
    Entry("capsules", a.Capsules, lambda: floats(6), {}),
]  # fmt: skip
