"""Zoo entries for other ways of learning: generative, reinforcement, physics, graphs, maps, mixtures."""

from __future__ import annotations

import learning_modules as g
import torch
from entry import BATCH, Entry, Inputs, floats, ids
from parts import parts


def _graphs() -> Inputs:
    """Four nodes in each of a batch, the same six edges."""
    return (torch.randn(BATCH, 4, 4), torch.tensor([[0, 1, 2, 3, 0, 2], [1, 2, 3, 0, 2, 1]])), {}


def _graph() -> Inputs:
    """Five nodes, no batch."""
    return (torch.randn(5, 4), torch.tensor([[0, 1, 2, 3, 4, 2, 0], [1, 2, 3, 4, 0, 1, 3]])), {}


LEARNING: list[Entry] = [
    Entry("autoencoder", g.Autoencoder, lambda: floats(8), parts(8, mlp=[5, 2], act=1)),
    Entry("boltzmann", g.Boltzmann, lambda: floats(8), parts(8, mlp=[5, 5, 5], rnn=[(8, 2)], act=1)),
    Entry("self-organising map", g.SelfOrganising, lambda: floats(4), parts(3, "input embed", act=[1, 1])),
    Entry("k-means", g.KMeans, lambda: floats(4), parts(3, "input embed", act=1)),
    Entry("siren", g.Siren, lambda: floats(2), parts(3, mlp=[9, 8])),
    Entry("physics-informed", g.Physics, lambda: floats(2), parts(1, mlp=[7, 5], act=1)),
    Entry("graphs", g.Messages, _graphs, parts(3, mlp=[6, 4, 6, 4])),
    Entry("graph", lambda: g.Messages(False), _graph, parts(3, mlp=[6, 4, 6, 4])),
    Entry("dueling q-network", g.Dueling, lambda: floats(6), parts(4, mlp=[10, 8, 7])),
    Entry("actor-critic", lambda: g.ActorCritic(False), lambda: floats(6), parts(4, mlp=[8, 7])),
    Entry("actor-critic distribution", lambda: g.ActorCritic(True), lambda: floats(6), parts(1, mlp=[8, 7], act=1)),
    Entry("sparse autoencoder inside", g.Spliced, ids, parts(41, "embed", mlp=[16, 24, 16]), 4),
    Entry("variational autoencoder", g.Variational, lambda: floats(8), parts(8, mlp=[6, 2, 7], act=1)),
    # The products of both couplings and the sum of the log-determinant; the last shift comes last before the output.
    Entry("normalising flow", g.Coupling, lambda: floats(4), parts(4, mlp=[7, 7], act=[1, 1, 1])),
    Entry(
        "hypernetwork", g.Hyper, lambda: (floats(5)[0] + floats(3)[0], {}), parts(4, "input input1", mlp=[8, 6], act=1)
    ),
    Entry("mixture", g.Mixture, lambda: floats(6), parts(5, mlp=[7, 7, 7], act=[1, 1])),
    Entry(
        "siamese",
        g.Siamese,
        lambda: (floats(6)[0] + floats(6)[0], {}),
        parts(1, "input input1", mlp=[(8, 2), 4], act=1),
    ),
]
