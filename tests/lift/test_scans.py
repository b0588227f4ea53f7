"""Linear recurrences are one block each, with their states: written by hand, in Mamba, RWKV, Griffin, or chunked."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import scan_modules as s
import torch
from parts import parts
from torch import Tensor, nn
from torch.nn import functional as F

import cutaway as cw
from cutaway.attribution.sums import edge_error
from cutaway.claims.verify import compare_with_truth
from cutaway.run.trace import Trace
from zoo import case, error

STEPS = 7
# name: (how to build it, its components)
HAND: dict[str, tuple[Callable[[], nn.Module], dict[str, tuple[int, int]]]] = {
    "leaky": (s.Leaky, parts(4, "embed", ssm=5)),
    "leaky at every step": (lambda: s.Leaky(True), parts(4, "embed", ssm=5)),
    "in one buffer": (s.Buffered, parts(4, "embed", ssm=5)),
    "minimal gated": (lambda: s.MinimalGated(False), parts(4, "embed", ssm=5)),
    "minimal gated, read in the loop": (lambda: s.MinimalGated(True), parts(4, "embed", ssm=[(5, STEPS)])),
    "matrix states": (s.MatrixStates, parts(41, "embed", ssm=2)),
    "delta rule": (s.Delta, parts(41, "embed", ssm=2)),
    "linear attention": (s.LinearAttention, parts(41, "embed", ssm=8)),
    "dense": (s.Dense, parts(4, "embed", ssm=[(5, STEPS)])),
    "both ways": (s.BothWays, parts(4, "embed", ssm=[5, 5])),
}
TRANSFORMERS = ("mamba", "mamba2", "rwkv", "recurrent gemma", "jamba", "falcon-h1", "qwen3-next")


@cache
def hand(name: str) -> tuple[nn.Module, Tensor, Trace]:
    torch.manual_seed(0)
    module = HAND[name][0]().eval().requires_grad_(False)
    tokens = torch.randint(3, 41, (3, STEPS))
    return module, tokens, cw.open(module).record(tokens)


def of_states(block: str, step: int) -> str:
    return f"{block}@{step}.state" if step else f"{block}.state"


@pytest.mark.parametrize("name", HAND)
def test_a_hand_written_scan_is_one_block(name: str) -> None:
    trace = hand(name)[2]
    found = trace.lift()
    assert {part.name: (part.count, part.calls) for part in found.components()} == HAND[name][1]
    assert {block.kind for block in found.blocks} == {"ssm"}
    for site, place in found.sites.items():
        assert trace[site].ndim == len(place.axes) or not place.axes, site


@pytest.mark.parametrize("name", HAND)
def test_what_a_scan_reads_is_the_sum_of_what_is_written(name: str) -> None:
    assert edge_error(hand(name)[2]) <= 1e-5


@pytest.mark.parametrize("name", [name for name in HAND if name not in ("in one buffer", "linear attention", "dense")])
def test_states_are_those_of_the_loop(name: str) -> None:
    module, tokens, trace = hand(name)
    if name == "both ways":
        x = module.embed(tokens)
        want = {"L0.ssm": module.scan(x, module.ahead), "L1.ssm": module.scan(x.flip(1), module.back)}
        for block, states in want.items():
            for step in range(STEPS):
                assert error(trace[of_states(block, step)], states[:, step]) <= 1e-6
        return
    seen: list[Tensor] = []
    seen = module.states(tokens) if hasattr(module, "states") else module(tokens, seen=seen) is None or seen
    for step, want in enumerate(seen):
        assert error(trace[of_states("L0.ssm", step)], want) <= 1e-6, step
    for step in (0, 2, STEPS - 2):
        edited = trace.replay(cw.scale(of_states("L0.ssm", step), -0.5))
        assert edited.receipt[0].times == 1 and not edited.live
        assert error(edited.logits, module(tokens, edit=(step, -0.5))) <= 1e-6, step
    assert trace[of_states("L0.ssm", 1)].shape[0] == len(tokens)
    assert trace.locate(of_states("L0.ssm", 1)).axes[:2] in (("batch", "channel"), ("batch", "head"))


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_what_scans_in_language_models_read_is_the_sum_of_what_is_written(name: str) -> None:
    assert edge_error(case(name).trace) <= 1e-5


def mamba_by_hand(mixer: nn.Module, x: Tensor, edit: tuple[int, int] | None = None) -> tuple[Tensor, list[Tensor]]:
    """A Mamba layer as a loop (Gu and Dao 2023, algorithm 2): its output, and its state after each step.

    edit: (step, channel) whose state is set to zero.
    """
    inside, gate = mixer.in_proj(x).transpose(1, 2).chunk(2, 1)
    inside = F.silu(mixer.conv1d(inside)[..., : x.shape[1]])
    dt, b, c = mixer.x_proj(inside.transpose(1, 2)).split([mixer.time_step_rank, *[mixer.ssm_state_size] * 2], -1)
    dt, decay = F.softplus(mixer.dt_proj(dt)), -torch.exp(mixer.A_log)
    state, states, out = torch.zeros(len(x), *decay.shape), [], []
    for step in range(x.shape[1]):
        step_size = dt[:, step, :, None]
        state = torch.exp(step_size * decay) * state + step_size * b[:, step, None] * inside[:, :, step, None]
        if edit is not None and edit[0] == step:
            state = state.index_fill(1, torch.tensor(edit[1]), 0)
        states.append(state)
        out.append((state * c[:, step, None]).sum(-1) + mixer.D * inside[:, :, step])
    return mixer.out_proj((torch.stack(out, -1) * F.silu(gate)).transpose(1, 2)), states


@pytest.mark.parametrize("layer", [0, 1])
def test_states_of_mamba(layer: int) -> None:
    found = case("mamba")
    trace, module = found.trace, found.entry.make()[0].requires_grad_(False)
    block = module.backbone.layers[layer]
    stream = trace[f"resid.{layer}"]
    _, states = mamba_by_hand(block.mixer, block.norm(stream))
    assert trace.locate(f"L{layer}.ssm@3.state").axes == ("batch", "channel", "state")
    for step, want in enumerate(states):
        assert error(trace[of_states(f"L{layer}.ssm", step)], want) <= 1e-6
    edited = trace.replay(cw.zero(f"L{layer}.ssm@3.state[channel=5]"))
    stream = stream + mamba_by_hand(block.mixer, block.norm(stream), (3, 5))[0]
    for later in module.backbone.layers[layer + 1 :]:
        stream = stream + mamba_by_hand(later.mixer, later.norm(stream))[0]
    assert error(edited.logits, module.lm_head(module.backbone.norm_f(stream))) <= 1e-6
    assert not torch.equal(edited.logits, trace.logits)


def test_ports_of_mamba_say_what_they_do() -> None:
    trace, found = case("mamba").trace, {}
    for block in trace.lift().blocks:
        if block.name == "L0.ssm":
            found = {read.port: read.slots.count for read in block.reads}
    assert found == {"in": 32, "in1": 1, "decay": 32, "read": 1, "gate": 32}  # B and C are shared by the channels
    assert torch.equal(trace["L0.ssm.in"], trace["L0.conv.out"])
    assert trace.locate("L0.ssm.gate").axes == ("batch", "channel", "pos")


@pytest.mark.parametrize("layer", [0, 1])
def test_states_of_rwkv(layer: int) -> None:
    """Numerator, denominator and their common exponent, against the recurrence without that exponent."""
    found = case("rwkv")
    trace, block = found.trace, found.module.rwkv.blocks[layer].attention
    key, value = trace[f"L{layer}.ssm.decay"], trace[f"L{layer}.ssm.in"]
    above, below = torch.zeros_like(key[:, 0]), torch.zeros_like(key[:, 0])
    for step in range(key.shape[1]):
        decay, weight = torch.exp(-torch.exp(block.time_decay)), torch.exp(key[:, step])
        above, below = decay * above + weight * value[:, step], decay * below + weight
        site = of_states(f"L{layer}.ssm", step)
        assert error(trace[site] / trace[site + "1"], above / below) <= 1e-6


@pytest.mark.parametrize("name", ["mamba", "rwkv"])
def test_a_circuit_is_searched_for_across_scans(name: str) -> None:
    found = case(name)
    args, kwargs = found.other()
    clean, other = found.trace, found.net.record(*args, **kwargs)
    apart = (clean.logits - other.logits)[:, -1].detach()
    circuit = cw.find_circuit(clean, other, lambda logits: (logits[:, -1] * apart).sum(-1), refine=60)
    assert abs(1 - circuit.faithfulness) <= 0.2
    assert any(".ssm." in writer for writer in circuit.graph.writers)


@pytest.mark.parametrize("noise", [0.0, 0.01, 0.03])
def test_a_planted_mechanism_is_found(noise: float) -> None:
    clean, corrupted = s.pairs(24)
    net = cw.open(s.Holder(noise).eval())
    found = cw.find_circuit(net.record(clean), net.record(corrupted), lambda logits: logits[:, 0])
    report = compare_with_truth(found, s.TRUTH)
    assert report["auroc"] >= 0.99
    assert set(s.TRUTH) <= set(found.edges)
    if not noise:
        assert set(found.edges) == set(s.TRUTH) and abs(1 - found.faithfulness) <= 1e-5


def test_positions_tell_when_a_state_mattered() -> None:
    clean, corrupted = s.pairs(6)
    net = cw.open(s.Holder().eval())
    found = cw.find_circuit(net.record(clean), net.record(corrupted), lambda logits: logits[:, 0], positions=True)
    held = {row["position"] for row in found.table() if row["edge"] == "L0.ssm.c0 -> L1.ssm.c1.in"}
    assert held and min(held) == 4  # the letter that differs stands there


def test_a_plain_sum_in_a_loop_is_no_scan() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.inside, self.out = nn.Embedding(41, 6), nn.Linear(6, 5), nn.Linear(5, 4)

        def forward(self, tokens: Tensor) -> Tensor:
            total = torch.zeros(len(tokens), 5)
            for x in self.embed(tokens).unbind(1):
                total = total + torch.relu(self.inside(x))
            return self.out(total)

    lifted = cw.open(Sum()).record(torch.randint(3, 41, (3, STEPS))).lift()
    assert all(block.kind != "ssm" for block in lifted.blocks)
