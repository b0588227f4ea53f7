"""The trained controllers without images, and small worlds to see what the agents do in them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


class CartPolePolicy(nn.Module):
    """A PPO agent's two tanh networks side by side: logits of the two pushes, and the value of the state."""

    def __init__(self) -> None:
        super().__init__()

        def network() -> nn.Sequential:
            return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh())

        self.mlp_extractor = nn.ModuleDict({"policy_net": network(), "value_net": network()})
        self.action_net, self.value_net = nn.Linear(64, 2), nn.Linear(64, 1)

    def forward(self, states: Tensor) -> tuple[Tensor, Tensor]:
        policy, value = (self.mlp_extractor[name](states) for name in ("policy_net", "value_net"))
        return self.action_net(policy), self.value_net(value)


class AdvisoryNetwork(nn.Module):
    """A collision-avoidance network: five normalised numbers to the scores of five advisories, the lowest wins."""

    MEAN = (19791.091, 0.0, 0.0, 650.0, 600.0)
    RANGE = (60261.0, 6.28318530718, 6.28318530718, 1100.0, 1200.0)

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for place in range(7):
            weight, bias = weights[f"W{place}"], weights[f"B{place}"]
            layer = nn.Linear(weight.shape[1], weight.shape[0])
            layer.load_state_dict({"weight": weight, "bias": bias})
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, situations: Tensor) -> Tensor:
        return self.layers(situations)


# Boxes in metres, radians and feet per second: distance, two angles, own and other speed. In both, "clear of conflict"
# must not win, as the intruder is near and straight ahead (Katz et al. 2017, properties 3 and 4).
HEAD_ON = {
    "3": ((1500, 1800), (-0.06, 0.06), (3.1, math.pi), (980, 1200), (960, 1200)),
    "4": ((1500, 1800), (-0.06, 0.06), (0.0, 0.0), (1000, 1200), (700, 800)),
}


def situations(box: tuple[tuple[float, float], ...], count: int) -> Tensor:
    """Random points of a box, normalised."""
    low, high = (torch.tensor([pair[end] for pair in box], dtype=torch.float32) for end in (0, 1))
    points = low + (high - low) * torch.rand(count, 5, generator=torch.Generator().manual_seed(0))
    return (points - torch.tensor(AdvisoryNetwork.MEAN)) / torch.tensor(AdvisoryNetwork.RANGE)


def balanced(policy: nn.Module, episodes: int = 10, steps: int = 500) -> list[int]:
    """Steps that a policy keeps the pole up, by the equations of the classic control task (Barto et al. 1983)."""
    random = np.random.default_rng(0)
    state = random.uniform(-0.05, 0.05, (episodes, 4))
    alive, lengths = np.ones(episodes, bool), np.zeros(episodes, int)
    for _ in range(steps):
        with torch.no_grad():
            right = policy(torch.tensor(state, dtype=torch.float32))[0].argmax(-1).numpy()
        x, speed, angle, turn = state.T
        force = np.where(right == 1, 10.0, -10.0)
        sine, cosine = np.sin(angle), np.cos(angle)
        push = (force + 0.05 * turn**2 * sine) / 1.1
        bend = (9.8 * sine - cosine * push) / (0.5 * (4 / 3 - 0.1 * cosine**2 / 1.1))
        slide = push - 0.05 * bend * cosine / 1.1
        state = np.stack([x + 0.02 * speed, speed + 0.02 * slide, angle + 0.02 * turn, turn + 0.02 * bend], 1)
        alive &= (np.abs(state[:, 0]) < 2.4) & (np.abs(state[:, 2]) < 12 * math.pi / 180)
        lengths += alive
    return lengths.tolist()


def frame(ball: tuple[float, float], paddle: float, enemy: float) -> Tensor:
    """What the Pong agent sees [1, 80, 80]: the court with the ball at (x, y), brightness stretched to 0..1."""
    court = np.zeros((160, 160), np.float32)
    court[-1] = 1.0
    court[int(enemy) : int(enemy) + 16, 16:20] = 0.39
    court[int(paddle) : int(paddle) + 16, 140:144] = 0.29
    x, y = int(ball[0]), int(ball[1])
    court[y : y + 4, x : x + 2] = 1.0
    return torch.from_numpy(court.reshape(80, 2, 80, 2).mean((1, 3)))[None]


def steering(agent: nn.Module) -> float:
    """How an agent's wish to go up (less down) at the end of a ball's straight flight goes with how far the ball is
    above its paddle: a correlation over many heights of both."""
    places = [(paddle, ball) for paddle in range(20, 130, 12) for ball in range(15, 140, 12)]
    flights = [frame((60 + 6 * step, ball), paddle, ball) for paddle, ball in places for step in range(12)]
    with torch.no_grad():
        chances = agent(torch.stack(flights).unflatten(0, (-1, 12)))[0][:, -1].softmax(-1)
    wish = chances[:, [2, 4]].sum(-1) - chances[:, [3, 5]].sum(-1)
    above = torch.tensor([paddle + 6.0 - ball for paddle, ball in places])
    return float(torch.corrcoef(torch.stack([wish, above]))[0, 1])
