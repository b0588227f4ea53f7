"""What is cut into shards: numbers that the dtype holds, batches that are alike, inputs that are small."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import cutaway as cw
from cutaway.errors import InputError
from cutaway.features import cutting
from cutaway.features.collect import collect, forecast_collect
from cutaway.features.shards import listed, sound_shards


class Relu(nn.Module):
    """Shows what is positive of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.relu())


@pytest.mark.parametrize(("size", "lost"), [(2e-8, True), (1e-7, True), (1e-3, False), (0.0, False)])
def test_numbers_too_small_for_the_dtype_are_named(size: float, lost: bool, tmp_path: Path) -> None:
    given = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) * size
    given[100:150] *= 0  # nothing is lost of zeros
    for dtype in ("bfloat16", "float32", "float16"):
        net, out = cw.open(Relu()), tmp_path / dtype
        if dtype == "float16" and lost:
            for _ in range(2):
                with pytest.raises(
                    InputError, match="'/relu.0' in examples 0 to 49 .* too small for float16 .*bfloat16"
                ):
                    collect(net, given, "/relu.0", out, batch=50)
                assert not listed(out)
            continue
        made = collect(net, given, "/relu.0", out, batch=50, dtype=dtype)
        rows, kind = torch.cat(list(made.values("/relu.0"))), getattr(torch, dtype)
        assert torch.equal(rows, given.relu().to(kind).float()) and not made.manifest["notes"]


def test_a_small_share_of_small_numbers_is_noted(tmp_path: Path) -> None:
    given = torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) + 1
    given[:, 1], given[:, 2] = 1e-9, 0
    net = cw.open(Relu())
    made = collect(net, given, "/relu.0", tmp_path / "out", batch=50)
    assert made.manifest["notes"][0].startswith("about 50% of the numbers of '/relu.0' that are not zero are stored as")
    assert collect(net, given, "/relu.0", tmp_path / "out", batch=50).manifest == made.manifest
    assert not collect(net, given, "/relu.0", tmp_path / "o", batch=50, dtype="float32").manifest["notes"]


def test_inputs_are_kept_where_they_are_small_else_it_is_told(tmp_path: Path, monkeypatch) -> None:
    net = cw.open(nn.Sequential(nn.Linear(33, 32), nn.ReLU(), nn.Linear(32, 2)))
    given = torch.rand(50, 33)
    made = collect(net, given, "L0.mlp.out", tmp_path / "small")
    assert torch.equal(made.examples[7].inputs["0"], given[7]) and not made.manifest["notes"]
    monkeypatch.setattr(cutting, "SMALL", given.nbytes - 1)
    large = collect(net, given, "L0.mlp.out", tmp_path / "large")
    assert not large.examples[7].inputs and not forecast_collect(net, given[:49], "L0.mlp.out").notes
    for notes in (large.manifest["notes"], forecast_collect(net, given, "L0.mlp.out").notes):
        assert len(notes) == 1 and notes[0].startswith("the input '0' is not kept (33 numbers an example beside 32 of")
    told = collect(net, lambda: iter(given.split(9)), "L0.mlp.out", tmp_path / "stream").manifest["notes"]
    assert len(told) == 1


class Flat(nn.Module):
    """Flattens what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(30, 40), nn.Linear(40, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.first(x.flatten(1)).relu())


def test_batches_with_different_numbers_of_axes_are_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cutting, "LIMIT", 4 * 12 * 2)  # a batch is a shard
    deep = cw.open(nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 3)))
    two, three = torch.randn(4, 6), torch.randn(4, 5, 6)
    cases = [
        (deep, (two, three), r"'L0.mlp.out' has shape \(4, 12\) in the first batch and \(4, 5, 12\) from example 4 on"),
        (deep, (three, two), r"'L0.mlp.out' has shape \(4, 5, 12\) in the first batch and \(4, 12\) from example 4 on"),
        (deep, (two, two, three), r"\(4, 12\) in the first batch and \(4, 5, 12\) from example 8 on"),
        (cw.open(Flat()), (torch.rand(4, 30), torch.rand(4, 5, 6)),
         r"the input '0' has shape \(4, 30\) in the first batch and \(4, 5, 6\) from example 4 on"),
    ]  # fmt: skip
    for number, (net, batches, said) in enumerate(cases):
        out, names = tmp_path / str(number), None
        for _ in range(3):
            with pytest.raises(InputError, match=said):
                collect(net, lambda batches=batches: iter(batches), "L0.mlp.out", out)
            now = {path.name for path in out.iterdir()}
            assert names in (None, now)
            names = now
        held = sum(shard.last - shard.first for shard in sound_shards(out)[0])
        assert held == 4 * (len(batches) - 1)  # what came before is sound
