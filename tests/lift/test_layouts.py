"""What lifting must see through, each on the smallest network that has it: other layouts, fitted shortcuts, shared
layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import cutaway as cw

Parts = dict[str, tuple[int, int]]


def lifted(module: nn.Module, *inputs: Tensor) -> tuple[Parts, cw.Trace]:
    """Components as (units, calls), and the recording; the sums over edges must agree."""
    made = cw.check(module, *inputs)
    assert made.verified, str(made)
    trace = cw.open(module).record(*inputs)
    return {part.name: (part.count, part.calls) for part in trace.lift().components()}, trace


class HeadsThird(nn.Module):
    """Attention by einsum on [batch, pos, head, d]: the heads never come before the positions."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(12, 12) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (3, 4)) for layer in (self.q, self.k, self.v))
        pattern = torch.einsum("bqhd,bkhd->bhqk", q, k).softmax(-1)
        return x + self.o(torch.einsum("bhqk,bkhd->bqhd", pattern, v).flatten(-2))


def test_heads_are_found_behind_the_positions() -> None:
    torch.manual_seed(0)
    module, x = HeadsThird(), torch.randn(2, 5, 12)
    found, trace = lifted(module, x)
    assert found["L0.attn"] == (3, 1)
    assert trace["L0.attn.z[head=1, pos=-1]"].shape == (2, 4)
    assert trace.locate("L0.attn.q").axes == ("batch", "pos", "head", "neuron")

    def silenced(layer: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0] * (torch.arange(12) // 4 != 1),)

    handle = module.o.register_forward_pre_hook(silenced)
    want = module(x)
    handle.remove()
    torch.testing.assert_close(trace.replay(cw.zero("L0.attn.h1")).logits, want)


def test_circuits_by_position_know_where_the_positions_are() -> None:
    torch.manual_seed(0)
    module = nn.Sequential(HeadsThird(), HeadsThird(), nn.Linear(12, 3))
    net = cw.open(module)
    x = torch.randn(8, 5, 12)
    clean, other = net.record(x), net.record(x - 3 * module[2].weight[0].detach())
    circuit = cw.find_circuit(clean, other, cw.custom(lambda logits: logits[:, -1, 0]), positions=True)
    assert circuit.graph.positions == 5 and len(circuit)


class Fitted(nn.Module):
    """Convolutions beside a shortcut that is cropped, thinned and padded until it fits."""

    def __init__(self, crop: bool) -> None:
        super().__init__()
        self.crop = crop
        self.stem = nn.Conv2d(2, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 6, 3, 2, 1) if not crop else nn.Conv2d(4, 4, 3)
        self.two = nn.Conv2d(6 if not crop else 4, 6 if not crop else 4, 3, padding=1)
        self.head = nn.Linear(6 if not crop else 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        skip = x[:, :, 1:-1, 1:-1] if self.crop else F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return self.head(F.relu(self.two(F.relu(self.one(x))) + skip).mean((2, 3)))


def test_a_shortcut_may_be_padded_thinned_or_cropped_to_fit() -> None:
    for crop, width in ((False, 6), (True, 4)):
        found, trace = lifted(Fitted(crop), torch.randn(2, 2, 8, 8))
        blocks = {"L0.conv": (4, 1), "L1.conv": (width, 1), "L2.conv": (width, 1), "L0.act": (width, 1)}
        assert found == {"input": (1, 1), **blocks, "unembed": (3, 1)}
        assert len(trace.lift().streams) == 2


class Steps(nn.Module):
    """A recurrence whose inputs are projected at once and sliced by step: the slices are no shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.given, self.again, self.read = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        given = self.given(x)
        state = torch.zeros(len(x), 1, 5)
        for place in range(x.shape[1]):
            state = torch.tanh(given[:, place : place + 1] + self.again(state))
        return self.read(state[:, 0])


def test_a_slice_of_one_step_is_no_shortcut() -> None:
    found, trace = lifted(Steps(), torch.randn(2, 6, 4))
    assert found == {"input": (1, 1), "L0.rnn": (5, 6), "unembed": (3, 1)} and not trace.lift().streams


class FixedPositions(nn.Module):
    """Sinusoids in a buffer, and a causal mask in another one that is no position embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Embedding(9, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.register_buffer("table", torch.sin(torch.arange(40.0).view(5, 8)))
        self.register_buffer("mask", torch.triu(torch.full((5, 5), float("-inf")), 1))
        self.read = nn.Linear(8, 4)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.table[: ids.shape[1]]
        return self.read(x + self.attend(x, x, x, attn_mask=self.mask, need_weights=True)[0]).softmax(-1)


def test_positions_in_a_buffer_and_probabilities_at_the_end() -> None:
    found, _ = lifted(FixedPositions().eval(), torch.randint(9, (2, 5)))
    expected = {"embed": (1, 1), "pos_embed": (1, 1), "L0.attn": (2, 1), "L0.act": (1, 1), "unembed": (4, 1)}
    assert found == expected


class Frames(nn.Module):
    """One network on each frame, `deep` times in a row."""

    def __init__(self, deep: int) -> None:
        super().__init__()
        self.deep = deep
        self.see, self.read = nn.Conv1d(4, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, frames: Tensor) -> Tensor:
        seen = list(frames.unbind(1))
        for _ in range(self.deep):
            seen = [F.relu(self.see(frame)) for frame in seen]
        return self.read(torch.stack(seen, 1).mean((1, 3)))


def test_calls_side_by_side_are_one_layer() -> None:
    found, trace = lifted(Frames(1), torch.randn(2, 3, 4, 6))
    assert found == {"input": (1, 1), "L0.conv": (4, 3), "unembed": (3, 1)}
    assert trace["L0.conv@2.out"].shape == trace["L0.conv.out"].shape == (2, 4, 6)


def test_calls_in_a_row_are_steps_of_a_recurrence() -> None:
    found, _ = lifted(Frames(2), torch.randn(2, 1, 4, 6))
    assert found == {"input": (1, 1), "L0.rnn": (4, 2), "unembed": (3, 1)}


class Halves(nn.Module):
    """Two nonlinearities of halves of one projection are two layers, for they have weights of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.left, self.right = nn.Linear(4, 12), nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.project(x).chunk(2, -1)
        return self.left(torch.tanh(left)) + self.right(torch.sigmoid(right))


def test_halves_of_one_projection_are_two_layers() -> None:
    found, _ = lifted(Halves(), torch.randn(3, 4))
    assert found["L0.mlp"] == (6, 1) and found["L1.mlp"] == (6, 1)


class StartsAtZero(nn.Module):
    """A recurrence that starts at zeros of its input's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.cell, self.read = nn.GRUCell(3, 3), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = x.new_zeros(len(x), 3)
        for step in x.unbind(1):
            state = self.cell(step, state)
        return self.read(state)


def test_zeros_of_an_inputs_shape_carry_nothing_of_it() -> None:
    torch.manual_seed(0)
    net = cw.open(StartsAtZero())
    x = torch.randn(6, 4, 3)
    clean, other = net.record(x), net.record(x + 2)
    circuit = cw.find_circuit(clean, other, cw.custom(lambda logits: logits[:, 0]))
    assert any("input -> L0.rnn" in edge for edge in circuit.edges)


class NeuronsFirst(nn.Module):
    """An MLP whose nonlinearity sees [batch, neurons, positions]."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.gelu(self.up(x).mT).mT)


def test_neurons_may_come_before_positions() -> None:
    torch.manual_seed(0)
    module, x = NeuronsFirst(), torch.randn(2, 5, 3)
    found, trace = lifted(module, x)
    assert found["L0.mlp"] == (6, 1) and trace.locate("L0.mlp.out").axes == ("batch", "neuron", "pos")
    matrix = cw.virtual_weights(trace, "L0.mlp.in", "input").matrix
    torch.testing.assert_close(matrix, module.up.weight.T)
    net = cw.open(module)
    clean, other = net.record(x), net.record(x + 1)
    circuit = cw.find_circuit(clean, other, cw.custom(lambda out: out[:, -1, 0]), neurons=True, positions=True)
    assert circuit.graph.positions == 5


class Folded(nn.Module):
    """A gate of one number a token beside an attention of folded tokens: its axes have no names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.given, self.read = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        folded = self.given(x).flatten(0, 1)
        scale = torch.sigmoid(folded.mean(-1, keepdim=True))
        return self.read(torch.tanh(folded.unflatten(0, x.shape[:2])) * scale.unflatten(0, x.shape[:2]))


def test_ports_of_another_rank_have_axes() -> None:
    lifted(Folded(), torch.randn(2, 5, 4))
