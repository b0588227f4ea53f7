"""Small networks of many ways of learning: generative, reinforcement, physics, graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Autoencoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode, self.decode = nn.Sequential(nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 2)), nn.Linear(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.decode(torch.relu(self.encode(x))))


class Boltzmann(nn.Module):
    """A restricted Boltzmann machine: three Gibbs steps from what is seen."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 8))
        self.seen, self.hidden = nn.Parameter(torch.zeros(8)), nn.Parameter(torch.zeros(5))

    def forward(self, seen: Tensor) -> Tensor:
        for _ in range(2):
            hidden = torch.bernoulli(torch.sigmoid(F.linear(seen, self.weight, self.hidden)))
            seen = torch.bernoulli(torch.sigmoid(F.linear(hidden, self.weight.t(), self.seen)))
        hidden = torch.sigmoid(F.linear(seen, self.weight, self.hidden))
        return torch.sigmoid(F.linear(hidden, self.weight.t(), self.seen))


class SelfOrganising(nn.Module):
    """A map: the nearest unit wins, and units light up by how near they are to it."""

    def __init__(self) -> None:
        super().__init__()
        self.codes, self.readout = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 3)
        places = torch.tensor([(row, column) for row in range(2) for column in range(3)])
        self.register_buffer("distances", (places[:, None] - places[None]).float().norm(dim=-1))

    def forward(self, x: Tensor) -> Tensor:
        winner = ((x[:, None] - self.codes) ** 2).sum(-1).argmin(-1)
        return self.readout(torch.exp(-self.distances[winner]))


class KMeans(nn.Module):
    """Says which centre is nearest, and how near all are."""

    def __init__(self) -> None:
        super().__init__()
        self.centres, self.readout = nn.Parameter(torch.randn(6, 4)), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        nearness = -torch.cdist(x, self.centres)
        return self.readout(self.centres[nearness.argmax(-1)]), nearness


class Siren(nn.Module):
    """A neural field: sines of linear maps of a place."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.out = nn.ModuleList([nn.Linear(2, 9), nn.Linear(9, 8)]), nn.Linear(8, 3)

    def forward(self, place: Tensor) -> Tensor:
        for layer in self.layers:
            place = torch.sin(3.0 * layer(place))
        return self.out(place)


class Physics(nn.Module):
    """A field and how far it is from du/dx + u = 0, by autograd inside the forward."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Sequential(nn.Linear(2, 7), nn.Tanh(), nn.Linear(7, 1))
        self.fine = nn.Sequential(nn.Linear(2, 5), nn.SiLU(), nn.Linear(5, 1))

    def forward(self, place: Tensor) -> tuple[Tensor, Tensor]:
        place = place.detach().requires_grad_()
        with torch.enable_grad():
            field = self.coarse(place) + self.fine(place)
            slope = torch.autograd.grad(field.sum(), place, create_graph=True)[0]
        return slope[:, :1] + field, field


class Messages(nn.Module):
    """Two rounds of messages along the edges of a graph; `inside` says that nodes stand behind the batch."""

    def __init__(self, inside: bool = True) -> None:
        super().__init__()
        self.axis = 1 if inside else 0
        self.send = nn.ModuleList(nn.Linear(2 * 4, 6) for _ in range(2))
        self.update = nn.ModuleList(nn.Linear(4 + 6, 4) for _ in range(2))
        self.readout = nn.Linear(4, 3)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        start, end = edges
        for send, update in zip(self.send, self.update, strict=True):
            pairs = torch.cat([nodes.index_select(self.axis, start), nodes.index_select(self.axis, end)], -1)
            message = torch.relu(send(pairs))
            total = message.new_zeros(*nodes.shape[:-1], 6).index_add_(self.axis, end, message)
            nodes = torch.tanh(update(torch.cat([nodes, total], -1)))
        return self.readout(nodes.mean(1) if self.axis else nodes)


class Dueling(nn.Module):
    """A Q-network with a value and advantages."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Linear(6, 10)
        self.value = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 1))
        self.advantage = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 4))

    def forward(self, seen: Tensor) -> Tensor:
        x = torch.relu(self.features(seen))
        advantage = self.advantage(x)
        return self.value(x) + advantage - advantage.mean(-1, keepdim=True)


class ActorCritic(nn.Module):
    """Two bodies; gives preferences and a value, or a value and a distribution of actions."""

    def __init__(self, distribution: bool) -> None:
        super().__init__()
        self.distribution = distribution
        self.actor = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
        self.critic = nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 1))

    def forward(self, seen: Tensor) -> tuple[Any, Any]:
        preferences, value = self.actor(seen), self.critic(seen)
        if self.distribution:
            return value, torch.distributions.Categorical(logits=preferences)
        return preferences, value


class Spliced(nn.Module):
    """A sparse autoencoder in the place of a residual value between two MLPs."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.unembed = nn.Embedding(41, 8), nn.Linear(8, 41)
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8)) for _ in range(2))
        self.encode, self.decode = nn.Linear(8, 24), nn.Linear(24, 8, bias=False)
        self.middle = nn.Parameter(torch.zeros(8))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens)
        x = x + self.mlps[0](x)
        x = self.decode(torch.relu(self.encode(x - self.middle))) + self.middle
        return self.unembed(x + self.mlps[1](x))


class Variational(nn.Module):
    """A variational autoencoder: a mean, a spread, noise, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.mean, self.spread = nn.Linear(8, 6), nn.Linear(6, 2), nn.Linear(6, 2)
        self.decode = nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 8))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = torch.relu(self.encode(x))
        mean, spread = self.mean(x), self.spread(x)
        latent = mean + torch.exp(0.5 * spread) * torch.randn_like(spread)
        return torch.sigmoid(self.decode(latent)), mean, spread


class Coupling(nn.Module):
    """A normalising flow of two coupling layers, each scaling and shifting one half by what the other says."""

    def __init__(self) -> None:
        super().__init__()
        self.nets = nn.ModuleList(nn.Sequential(nn.Linear(2, 7), nn.ReLU(), nn.Linear(7, 4)) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = x.chunk(2, -1)
        volume = torch.zeros(len(x))
        for net in self.nets:
            scale, shift = net(a).chunk(2, -1)
            scale = torch.tanh(scale)
            a, b = b * torch.exp(scale) + shift, a
            volume = volume + scale.sum(-1)
        return torch.cat([b, a], -1), volume


class Hyper(nn.Module):
    """One network computes the weights of another's hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.out = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 6 * 5)), nn.Linear(6, 4)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        weight = self.make(context).view(-1, 6, 5)
        return self.out(torch.tanh((weight @ x[..., None]).squeeze(-1)))


class Mixture(nn.Module):
    """Three experts mixed by a softmax gate."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 4)) for _ in range(3))
        self.out = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        shares = torch.softmax(self.gate(x), -1)
        mixed = (torch.stack([expert(x) for expert in self.experts], 1) * shares[..., None]).sum(1)
        return self.out(torch.tanh(mixed))


class Siamese(nn.Module):
    """One encoder on two inputs, compared."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.out = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)), nn.Linear(4, 1)

    def forward(self, one: Tensor, other: Tensor) -> Tensor:
        return torch.sigmoid(self.out((self.encode(one) - self.encode(other)).abs()))
