"""What a recorder can trip over: each goes through the check of every network, or is refused in one sentence."""

from __future__ import annotations

import concurrent.futures
import json
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import cutaway as cw
from cutaway.errors import CutawayError, InputError, ModelError
from zoo import ZOO, error

Case = tuple[nn.Module, tuple[Any, ...]]


def mlp() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))


def x(*shape: int) -> Tensor:
    torch.manual_seed(1)
    return torch.randn(*(shape or (3, 6)))


class Two(nn.Module):
    """A layer, something in between that a subclass or a function says, and another layer."""

    def __init__(self, between: Callable[[Tensor], Tensor] = torch.relu, wide: int = 6) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(6, 6), nn.Linear(wide, 2)
        self.between = between

    def forward(self, given: Tensor) -> Tensor:
        return self.b(self.between(self.a(given)))


def quietly(build: Callable[[], Any]) -> Any:
    """What torch warns of as deprecated is still in use."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build()


# ---- networks that work


def in_place(h: Tensor) -> Tensor:
    h = h * 1
    h.mul_(2).add_(1)
    h[:, 0] = 0
    h += h.mean(0)
    return h.relu_()


def through_views(h: Tensor) -> Tensor:
    h = h * 1
    left, right = h[:, :3], h[:, 3:]
    left.mul_(3)
    right.copy_(left.detach() + right)
    h.t()[1].neg_()
    return h + left.sum()


def random_numbers(h: Tensor) -> Tensor:
    return F.dropout(h, 0.3) + 0.1 * torch.randn_like(h) + torch.empty(6).uniform_()


def mixed_precision(h: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide = h @ torch.ones(6, 6)
    with torch.autocast("cpu", enabled=False):
        return wide.float() + h


def masked(h: Tensor) -> Tensor:
    rows = h[h[:, 0] > 0]
    return h + rows.sum(0) / max(rows.shape[0], 1)


def halving(h: Tensor) -> Tensor:
    while h.norm() > 1:
        h = h * 0.7
    return h


def quantised(h: Tensor) -> Tensor:
    return quietly(lambda: torch.quantize_per_tensor(h, 0.1, 0, torch.qint8)).dequantize()


def spectrum(h: Tensor) -> Tensor:
    found = torch.fft.rfft(h)
    mixed = torch.fft.irfft(found * (0.5 + 0.2j) + found.conj() * 0.1j, n=6)
    return mixed + torch.view_as_real(found).sum((1, 2))[:, None]


def ragged(h: Tensor) -> Tensor:
    rows = torch.nested.as_nested_tensor([h[:1], h[1:]], layout=torch.jagged)
    return rows.relu().to_padded_tensor(0.0).flatten(0, 1)[: len(h)]


def mapped(h: Tensor) -> Tensor:
    return torch.vmap(lambda row: row.tanh() * row.sum())(h)


def derived(h: Tensor) -> Tensor:
    return torch.func.vmap(torch.func.grad(lambda row: (row**3).sum()))(h)


def pushed(h: Tensor) -> Tensor:
    return quietly(lambda: torch.func.jacfwd(lambda rows: (rows**2).sum(0))(h)).diagonal(dim1=0, dim2=2)


def flexible(h: Tensor) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    return quietly(lambda: flex_attention(h[None, None], h[None, None].tanh(), h[None, None]))[0, 0]


class OwnGenerator(Two):
    """Draws from a generator that it holds."""

    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(3)

    def forward(self, given: Tensor) -> Tensor:
        noise = torch.randn(given.shape, generator=self.source)
        return self.b(self.a(given) * torch.bernoulli(torch.full_like(noise, 0.5), generator=self.source) + noise)


class SparseNeighbours(Two):
    def __init__(self, layout: torch.layout) -> None:
        super().__init__()
        adjacency = torch.eye(3) + torch.eye(3).roll(1, 0)
        made = adjacency.to_sparse() if layout == torch.sparse_coo else quietly(adjacency.to_sparse_csr)
        self.register_buffer("adjacency", made)

    def forward(self, given: Tensor) -> Tensor:
        return self.b(torch.relu(self.adjacency @ self.a(given)))


class SparseInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(x(6, 4))

    def forward(self, given: Tensor) -> Tensor:
        return torch.relu(torch.sparse.mm(given, self.weight))


class Counting(Two):
    """Buffers that are written in place and replaced, a counter, and a list."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(6))
        self.register_buffer("steps", torch.tensor(0))
        self.seen, self.log = 0, []

    def forward(self, given: Tensor) -> Tensor:
        h = self.a(given)
        self.mean.lerp_(h.detach().mean(0), 0.1)
        self.steps = self.steps + 1
        self.seen += 1
        self.log.append(self.seen)
        return self.b(h - self.mean) * self.steps


class Tied(nn.Module):
    """One weight embeds, mixes and reads out."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        h = self.embed(ids)
        return self.out(torch.tanh(h @ self.embed.weight.T @ self.embed.weight))


class Shared(nn.Module):
    """One submodule under two names, and called twice under each."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 6)
        self.also, self.out = self.a, nn.Linear(6, 2)

    def forward(self, given: Tensor) -> Tensor:
        return self.out(torch.relu(self.also(torch.relu(self.a(given)))))


class Remembering(Two):
    """Appends to a cache that it is given."""

    def forward(self, given: Tensor, cache: Any) -> Tensor:
        items = cache if isinstance(cache, list) else cache.items
        items.append(self.a(given))
        return self.b(torch.stack(items).sum(0) * len(items))


class Cache:
    """A plain object with tensors in it."""

    def __init__(self) -> None:
        self.items: list[Tensor] = [x()]


def with_hooks() -> nn.Module:
    module = mlp()
    module[0].register_forward_hook(lambda mod, args, out: out * 2)
    module[1].register_forward_pre_hook(lambda mod, args: (args[0] + 1,))
    module[1].register_full_backward_hook(lambda mod, given, out: None)
    return module


class Ensemble(nn.Module):
    """Members in one batch; the weights of each and what lies around the mapped function are both read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.members = nn.Linear(6, 6), nn.Parameter(torch.randn(4, 6, 2))

    def forward(self, given: Tensor) -> Tensor:
        h = self.a(given)
        shift = h.mean()
        return torch.vmap(lambda member: torch.tanh(h @ member) + shift)(self.members).mean(0)


def compiled_inside() -> nn.Module:
    module = mlp()
    module[0] = torch.compile(module[0], backend="eager")
    return module


def compiled_in_place() -> nn.Module:
    module = mlp()
    module.compile(backend="eager")
    module(x())
    return module


def normed(how: Callable[[nn.Module], nn.Module], train: bool = False) -> nn.Module:
    module = Two(torch.tanh)
    quietly(lambda: how(module.a))
    return module.train(train)


def dynamic_quantised() -> nn.Module:
    return quietly(lambda: torch.ao.quantization.quantize_dynamic(mlp().eval(), {nn.Linear}, dtype=torch.qint8))


def scripted(module: nn.Module) -> nn.Module:
    return quietly(lambda: torch.jit.script(module))


def jagged() -> Tensor:
    return torch.nested.nested_tensor([x(2, 6), x(4, 6)], layout=torch.jagged)


WORKING: dict[str, Callable[[], Case]] = {
    "in-place writes": lambda: (Two(in_place), (x(),)),
    "writes through views": lambda: (Two(through_views), (x(),)),
    "random numbers": lambda: (Two(random_numbers), (x(),)),
    "a generator of its own": lambda: (OwnGenerator(), (x(),)),
    "autocast inside": lambda: (Two(mixed_precision), (x(),)),
    "tied weights": lambda: (Tied(), (torch.tensor([[1, 5, 8], [0, 2, 2]]),)),
    "a submodule under two names": lambda: (Shared(), (x(),)),
    "buffers that change": lambda: (Counting(), (x(),)),
    "a list as cache": lambda: (Remembering(), (x(), [x()])),
    "an object as cache": lambda: (Remembering(), (x(), Cache())),
    "compiled": lambda: (torch.compile(mlp(), backend="eager"), (x(),)),
    "compiled inside": lambda: (compiled_inside(), (x(),)),
    "compiled in place": lambda: (compiled_in_place(), (x(),)),
    "exported, as a module": lambda: (torch.export.export(mlp(), (x(),)).module(), (x(),)),
    "TorchScript inside": lambda: (nn.Sequential(scripted(nn.Linear(6, 4)), nn.ReLU()), (x(),)),
    "half": lambda: (mlp().half(), (x().half(),)),
    "bfloat16": lambda: (mlp().bfloat16(), (x().bfloat16(),)),
    "float64": lambda: (mlp().double(), (x().double(),)),
    "a loop until a number is small": lambda: (Two(halving), (x() * 9,)),
    "rows chosen by their values": lambda: (Two(masked), (x(),)),
    "quantised in the middle": lambda: (Two(quantised), (x(),)),
    "quantised layers": lambda: (dynamic_quantised(), (x(),)),
    "a sparse buffer": lambda: (SparseNeighbours(torch.sparse_coo), (x(),)),
    "a compressed sparse buffer": lambda: (SparseNeighbours(torch.sparse_csr), (x(),)),
    "a sparse input": lambda: (SparseInput(), ((x() * (x() > 0)).to_sparse(),)),
    "a jagged input": lambda: (mlp(), (jagged(),)),
    "jagged in the middle": lambda: (Two(ragged), (x(),)),
    "complex in the middle": lambda: (Two(spectrum), (x(),)),
    "complex output": lambda: (nn.Sequential(mlp(), Apply(torch.fft.rfft)), (x(),)),
    "DataParallel": lambda: (nn.DataParallel(mlp()), (x(),)),
    "weight norm": lambda: (normed(parametrizations.weight_norm), (x(),)),
    "weight norm of old": lambda: (normed(nn.utils.weight_norm), (x(),)),
    "orthogonal weights": lambda: (normed(parametrizations.orthogonal), (x(),)),
    "spectral norm in training": lambda: (normed(parametrizations.spectral_norm, True), (x(),)),
    "spectral norm of old in training": lambda: (normed(nn.utils.spectral_norm, True), (x(),)),
    "pruned": lambda: (normed(lambda layer: prune.l1_unstructured(layer, "weight", 0.5)), (x(),)),
    "hooks of the user": lambda: (with_hooks(), (x(),)),
    "lazy, after a run": lambda: (initialised(), (x(),)),
    "vmap inside": lambda: (Two(mapped), (x(),)),
    "an ensemble by vmap": lambda: (Ensemble(), (x(),)),
    "jacfwd inside": lambda: (Two(pushed), (x(),)),
    "flex attention inside": lambda: (Two(flexible).requires_grad_(False), (x(),)),
    "func.grad inside": lambda: (Two(derived), (x(),)),
}


class Apply(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, given: Tensor) -> Tensor:
        return self.function(given)


def initialised() -> nn.Module:
    module = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    module(x())
    return module


def built(name: str) -> Case:
    torch.manual_seed(0)
    return WORKING[name]()


@pytest.mark.parametrize("name", WORKING)
def test_it_goes_through_the_check_of_every_network(name: str) -> None:
    module, args = built(name)
    found = cw.check(module, *args)
    assert found.verified, str(found)
    assert found.parity == 0


UNHOOKED = {"exported, as a module", "TorchScript inside", "quantised layers", "a sparse input"}  # no linear layer


@pytest.mark.parametrize("name", [name for name in WORKING if name not in UNHOOKED])
def test_the_first_layer_edited_by_replay_is_the_plain_hook(name: str) -> None:
    module, args = built(name)
    trace = cw.open(module).record(*args)
    known = dict(module.named_modules())
    path = next(call.path for call in trace.graph.modules[1:] if isinstance(known.get(call.path), nn.Linear))
    again, args = built(name)
    first = iter([0.5])  # a module may be called again
    hooked = dict(again.named_modules())[path]
    hooked.register_forward_hook(lambda mod, given, out: out * next(first, 1.0), prepend=True)
    with torch.compiler.set_stance("force_eager"):
        state = torch.get_rng_state()
        want = again(*args)
        torch.set_rng_state(state)
    got = trace.replay(cw.scale(path, 0.5)).output
    if want.is_nested:
        got, want = got.values(), want.values()
    if want.is_complex():
        got, want = torch.view_as_real(got), torch.view_as_real(want)
    assert error(got, want) <= 1e-5


# ---- networks that cannot be followed


class InThread(Two):
    def forward(self, given: Tensor) -> Tensor:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(super().forward, given).result()


class InThreadScalar(Two):
    def forward(self, given: Tensor) -> Tensor:
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            return pool.submit(lambda: self.a(given).sum()).result() * 2


class InProcess(nn.Module):
    def forward(self, given: Tensor) -> Tensor:
        code = "import json, sys; print(json.dumps([[2 * n for n in row] for row in json.load(sys.stdin)]))"
        text = json.dumps(given.tolist())
        done = subprocess.run([sys.executable, "-c", code], input=text, capture_output=True, text=True)
        return torch.tensor(json.loads(done.stdout))


def in_inference_mode(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.inference_mode():
        return build()


class Answering(Two):
    """Returns no tensor."""

    def forward(self, given: Tensor) -> Any:
        return {"answer": float(super().forward(given).sum())}


REFUSED: dict[str, tuple[Callable[[], tuple[Any, ...]], type[CutawayError], str]] = {
    "scripted": (lambda: (scripted(mlp()), x()), ModelError, "compiled TorchScript"),
    "traced": (lambda: (quietly(lambda: torch.jit.trace(mlp(), x())), x()), ModelError, "compiled TorchScript"),
    "a scripted function": (
        lambda: (quietly(lambda: torch.jit.trace(torch.relu, x())), x()), ModelError, "outside Python"
    ),
    "an exported program": (lambda: (torch.export.export(mlp(), (x(),)), x()), ModelError, r"\.module\(\)"),
    "in a thread": (lambda: (InThread(), x()), ModelError, "another thread or process"),
    "a number from a thread": (lambda: (InThreadScalar(), x()), ModelError, "another thread or process"),
    "in a process": (lambda: (InProcess(), x()), ModelError, "another thread or process"),
    "meta": (lambda: (mlp().to("meta"), x()), ModelError, "'0.weight' .* meta device and holds no numbers"),
    "a meta input": (lambda: (mlp(), x().to("meta")), InputError, "meta device"),
    "lazy": (lambda: (nn.Sequential(nn.LazyLinear(4)), x()), ModelError, "no shape before the first run"),
    "made in inference mode": (lambda: (in_inference_mode(mlp), x()), ModelError, "made in inference mode"),
    "jacrev inside": (lambda: (Two(torch.func.jacrev(torch.sin)), x()), ModelError, "vjp or jacrev"),
    "a generator": (lambda: (mlp(), (row for row in x())), InputError, "read only once"),
    "an iterator": (lambda: (mlp(), iter([x()])), InputError, "read only once"),
    "nested of old": (lambda: (mlp(), quietly(lambda: torch.nested.nested_tensor([x(2, 6)]))), InputError, "jagged"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_captured_is_refused_in_one_sentence(name: str) -> None:
    build, kind, says = REFUSED[name]
    what, given = build()
    with pytest.raises(kind, match=says) as caught:
        cw.open(what).record(given)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_tensor_to_return() -> None:
    net = cw.open(Answering())
    trace = net.record(x())
    assert trace["a"].shape == (3, 6)
    with pytest.raises(InputError, match="no floating point tensor"):
        trace.logits
    found = cw.check(net, x())
    assert not found.verified
    assert any("returned no tensor but a dict" in text for text in found.problems)


def test_a_state_that_is_no_tensor() -> None:
    import numpy

    class Table(Two):
        table = numpy.linspace(-1, 1, 6, dtype=numpy.float32)

        def forward(self, given: Tensor) -> Tensor:
            h = self.a(given)
            return self.b(torch.from_numpy(h.detach().numpy() * self.table))

    trace = cw.open(Table()).record(x())
    assert any("hands values to numpy, which a replay cannot follow" in text for text in trace.tape.problems)
    assert not cw.check(Table(), x()).verified


def test_an_archive_of_code(tmp_path: Path) -> None:
    from torch.package import PackageExporter, PackageImporter

    with quietly(lambda: PackageExporter(tmp_path / "net.pt")) as archive:
        archive.extern("**")
        quietly(lambda: archive.save_pickle("net", "net.pkl", mlp()))
    importer = quietly(lambda: PackageImporter(tmp_path / "net.pt"))
    with pytest.raises(ModelError, match="load_pickle"):
        cw.open(importer)
    with pytest.raises(CutawayError, match="is a file"):
        cw.open(tmp_path / "net.pt")
    assert cw.check(quietly(lambda: importer.load_pickle("net", "net.pkl")), x()).verified


# ---- caches


@pytest.fixture(scope="module")
def language() -> tuple[nn.Module, Tensor]:
    module, args, _ = ZOO["gpt2"].make()
    return module, args[0]


@pytest.mark.filterwarnings("ignore:.past_key_values:FutureWarning")
def test_a_cache_that_is_given_stays_as_it_is(language: tuple[nn.Module, Tensor]) -> None:
    module, ids = language
    with torch.no_grad():
        cache = module(ids[:, :-1]).past_key_values
        want = module(ids).logits[:, -1]
    net = cw.open(module)
    for _ in range(2):
        trace = net.record(ids[:, -1:], past_key_values=cache, position_ids=torch.full((len(ids), 1), ids.shape[1] - 1))
        assert error(trace.logits[:, -1], want) <= 1e-5
        assert cache.get_seq_length() == ids.shape[1] - 1
    live = net.record(ids[:, -1:], past_key_values=cache, interventions=[cw.scale("transformer.h.0", 0.5)])
    assert error(trace.replay(cw.scale("transformer.h.0", 0.5)).logits, live.logits) <= 1e-5


@pytest.mark.filterwarnings("ignore:.past_key_values:FutureWarning")
def test_generation_with_a_cache_is_one_run(language: tuple[nn.Module, Tensor]) -> None:
    module, ids = language

    class Generating(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, ids: Tensor) -> Tensor:
            found = self.model(ids, use_cache=True)
            logits = [found.logits[:, -1]]
            for _ in range(3):
                found = self.model(logits[-1].argmax(-1, keepdim=True), past_key_values=found.past_key_values)
                logits.append(found.logits[:, -1])
            return torch.stack(logits, 1)

    found = cw.check(Generating(), ids)
    assert found.parity == 0 and (found.hook_error or 0) <= 1e-5 and (found.replay_error or 0) <= 1e-5
    trace = cw.open(Generating()).record(ids)
    late = trace.replay(cw.zero("model.transformer.h.1.mlp@3"))
    assert torch.equal(late.logits[:, :3], trace.logits[:, :3])
    assert error(late.logits[:, 3], trace.logits[:, 3]) > 1e-3


# ---- other branches


def test_a_replay_of_another_size_runs_live_and_says_so() -> None:
    module, trace = Two(masked), cw.open(Two(masked)).record(x())
    same = trace.replay(cw.scale("a", 0.5))
    moved = trace.replay(cw.apply("a", lambda value: value.abs()))
    assert not same.live and moved.live
    assert error(moved.logits, module.b(masked(module.a(x()).abs()))) <= 1e-6


def test_a_longer_loop_runs_live_and_says_so() -> None:
    module, trace = Two(halving), cw.open(Two(halving)).record(x())
    longer = trace.replay(cw.scale("a", 50.0))
    assert longer.live
    assert error(longer.logits, module.b(halving(module.a(x()) * 50))) <= 1e-6
    moved = trace.replay(cw.scale("input:0", 40.0))
    assert moved.live and moved.receipt[0].times == 1
    assert error(moved.logits, module(x() * 40)) <= 1e-6


def test_a_call_that_fails_in_a_replay_is_left_to_the_network() -> None:
    class Careful(Two):
        def forward(self, given: Tensor) -> Tensor:
            h = self.a(given)
            square = h.T @ h + torch.eye(6)
            try:
                return self.b(torch.linalg.cholesky(square))
            except torch.linalg.LinAlgError:
                return self.b(square)

    module = Careful()
    trace = cw.open(module).record(x())
    site = next(site for site in trace.sites() if "/add" in site)
    found = trace.replay(cw.scale(site, -1.0))
    h = module.a(x())
    assert found.live and found.receipt[0].times == 1
    assert error(found.logits, module.b(-(h.T @ h + torch.eye(6)))) <= 1e-6


# ---- around the call


def test_a_generator_of_the_networks_own_is_put_back() -> None:
    module = OwnGenerator()
    before = module.source.get_state()
    trace = cw.open(module).record(x())
    assert torch.equal(module.source.get_state(), before)
    assert torch.equal(trace.replay(cw.scale("a", 1.0)).logits, trace.logits)
    assert torch.equal(module(x()), trace.logits)
    assert not torch.equal(module.source.get_state(), before)


@pytest.mark.parametrize("around", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)])
def test_the_callers_modes_neither_stop_a_check_nor_change_it(around: Callable[[], Any]) -> None:
    module = mlp()
    with around():
        found = cw.check(module, x())
        trace = cw.open(module).record(x())
        plain = module(x())
    assert found.verified, str(found)
    assert torch.equal(trace.logits.clone(), plain.clone())
    outside = trace.replay(cw.scale("0", 1.0)).logits
    assert torch.equal(outside.clone(), plain.clone())


def test_calls_of_a_shared_submodule_are_told_apart() -> None:
    module = Shared()
    trace = cw.open(module).record(x())
    first, second = trace.replay(cw.zero("a")), trace.replay(cw.zero("a@1"))
    assert error(first.logits, module.out(torch.relu(module.a(torch.zeros(3, 6))))) <= 1e-6
    assert error(second.logits, module.out(torch.zeros(3, 6))) <= 1e-6
