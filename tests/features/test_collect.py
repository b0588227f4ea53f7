"""Collecting: the rows on disk are the values that a recording gives, whatever the network, and nothing else."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from words_net import Words, ids, words

import cutaway as cw
from cutaway import organisms
from cutaway.errors import FormatError, InputError, ResourceError, SiteError
from cutaway.features import collect as collecting
from cutaway.features import cutting
from cutaway.features.collect import collect, forecast_collect
from cutaway.features.shards import listed
from cutaway.features.store import Activations, open_activations
from cutaway.run.footprint import changes, footprint
from zoo import case


def everything(found: Activations, site: str) -> Tensor:
    return torch.cat(list(found.values(site)))


# ---- the values

ZOO = {  # entry: sites, whose rows are compared with a recording of the same inputs
    "gpt2": ["resid.2", "L1.mlp.out", "L0.attn_out", "transformer.h.1"], "mamba": ["resid.1"], "bert": ["L1.mlp.out"],
    "vit": ["resid.2"], "mixtral": ["resid.1"], "resnet": ["L1.conv.out"], "convnext": ["L0.conv.out"],
    "unet": ["L1.conv.out"], "lenet": ["L1.conv.in", "L0.mlp.out"], "gru": ["L0.rnn.out", "embed"],
    "lstm": ["L0.rnn@2.out"], "mlp": ["L0.mlp.out"], "view writes": ["L0.act.out"], "in place first": ["/mul.0"],
    "tied": ["resid.1"], "mlp-mixer": ["L0.mlp.out", "L1.mlp.out"], "stateful": ["L0.mlp.out"],
    "checkpointed reentrant": ["L0.mlp.out"], "dropout": ["L0.mlp.out"], "dict": ["L0.mlp.out"],
}  # fmt: skip


def rows_of(value: Tensor, axes: tuple[str, ...]) -> Tensor:
    """The rows of a recorded value, written down without the package's help."""
    vector = axes.index("channel") if "channel" in axes else axes.index("neuron") if "neuron" in axes else -1
    return value.movedim(vector, -1).reshape(-1, value.shape[vector])


@pytest.mark.parametrize("name", ZOO)
def test_rows_are_the_values_of_a_recording(name: str, tmp_path: Path) -> None:
    found = case(name)
    args, kwargs = found.inputs()
    for site in ZOO[name]:
        made = collect(found.net, [(*args, kwargs)], site, tmp_path / site.replace("/", "_"), dtype="float32")
        torch.manual_seed(0)
        trace = found.net.record(*args, **kwargs)
        want = rows_of(trace.value(site), trace.locate(site).axes)
        assert torch.equal(everything(made, site), want)
        assert made.places[0].width == want.shape[1] and made.places[0].network == found.net.fingerprint


# ---- data


def test_many_kinds_of_data_give_the_same_rows(tmp_path: Path) -> None:
    net, given = words(), ids(10)
    texts = [" ".join(f"w{number}" for number in row) for row in given.tolist()]
    np_file, st_file, text_file = tmp_path / "a.npy", tmp_path / "a.safetensors", tmp_path / "a.txt"
    np.save(np_file, given.numpy())
    save_file({"ids": given}, st_file)
    text_file.write_text(" ".join(texts))
    kinds = {
        "tensor": given, "tuple": (given,), "keywords": {"ids": given}, "texts": texts, "npy": np_file,
        "safetensors": st_file, "function": lambda: iter(given.split(3)), "batches": list(given.split(4)),
        "iterator": iter(given.split(5)), "array": given.numpy(), "text": " ".join(texts), "file": text_file,
    }  # fmt: skip
    want = net.record(given).value("resid.1").reshape(-1, 8)
    for name, data in kinds.items():
        context = 6 if name in ("text", "file") else None
        made = collect(net, data, "resid.1", tmp_path / name, dtype="float32", context=context)
        assert torch.equal(everything(made, "resid.1"), want), name
        assert made.examples[7].inputs[next(iter(made.manifest["inputs"]))].tolist() == given[7].tolist()


def test_texts_of_different_lengths_are_never_padded(tmp_path: Path) -> None:
    net = words()
    texts = [" ".join(f"w{(7 * row + at) % 50}" for at in range(2 + row % 4)) for row in range(23)]
    made = collect(net, texts, ["resid.1", "L0.mlp.out"], tmp_path / "out", dtype="float32")
    numbers, positions = made.where(range(len(made)))
    assert len(made) == sum(len(text.split()) for text in texts) and made.manifest["data"]["lengths"]["2"] == 6
    for number, text in enumerate(texts):
        alone = net.record([text])
        example = made.examples[number]
        rows = range(example.row, example.row + example.rows)
        assert (numbers[example.row], positions[example.row, 0], example.rows) == (number, 0, len(text.split()))
        assert example.inputs["0"].tolist() == net.encode(text)[0].tolist()
        for site in ("resid.1", "L0.mlp.out"):
            torch.testing.assert_close(made.rows(site, rows), alone.value(site)[0])


def test_what_fills_no_context_is_told(tmp_path: Path) -> None:
    made = collect(words(), "w1 w2 w3 " * 15, "resid.1", tmp_path / "out", context=10, skip_first=2, limit=3)
    assert len(made) == 3 * 8 and made.manifest["data"]["left_out"]["tokens"] == 15
    assert made.manifest["notes"][0].startswith("15 of 45 tokens")
    assert made.where([0, 7, 8])[1].flatten().tolist() == [2, 9, 2]


def test_images_give_a_row_of_channels_for_each_place(tmp_path: Path) -> None:
    organism = organisms.load("shapes")
    net, images = cw.open("shapes"), organism.pairs(6, seed=0).clean
    made = collect(net, images, "L1.conv.out", tmp_path / "out", dtype="float32")
    value = net.record(images).value("L1.conv.out")
    assert made.places[0].axis == "channel" and len(made) == value[:, 0].numel()
    numbers, places = made.where([0, 13, 800])
    for row, number, (height, width) in zip([0, 13, 800], numbers, places.tolist(), strict=True):
        torch.testing.assert_close(made.rows("L1.conv.out", [row])[0], value[number, :, height, width])


def test_all_steps_of_a_recurrence(tmp_path: Path) -> None:
    net, given = cw.open("counter"), organisms.load("counter").pairs(5, seed=0).clean
    made = collect(net, given, "L0.rnn@*.out", tmp_path / "out", dtype="float32")
    trace = net.record(given)
    names = ["L0.rnn.out", *(f"L0.rnn@{step}.out" for step in range(1, given.shape[1]))]
    want = torch.stack([trace.value(name) for name in names], 1)
    assert torch.equal(everything(made, "L0.rnn@*.out"), want.flatten(0, 1))


def test_heads_lie_side_by_side_and_one_can_be_named(tmp_path: Path) -> None:
    net, given = cw.open("induction"), organisms.load("induction").pairs(4, seed=0).clean
    made = collect(net, given, ["L1.attn.z", "L1.attn.h2.z"], tmp_path / "out", dtype="float32")
    heads = net.record(given).value("L1.attn.z")
    assert torch.equal(everything(made, "L1.attn.z"), heads.movedim(1, 2).flatten(2).flatten(0, 1))
    assert torch.equal(everything(made, "L1.attn.h2.z"), heads[:, 2].flatten(0, 1))


class Branching(nn.Module):
    """Takes another way when the first number is large, and then has its hidden layer at another op."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x[0, 0] > 1:
            x = (x * 2).tanh()
        return self.b(self.a(x).relu())


def test_a_network_that_takes_another_way_is_still_read_right(tmp_path: Path) -> None:
    net = cw.open(Branching())
    given = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
    given[:, 0] = torch.arange(40) % 20 / 10.0
    given[:30, 0] = given[:30, 0].sort().values
    made = collect(net, given, "L0.mlp.out", tmp_path / "out", batch=5, dtype="float32")
    want = torch.cat([net.record(part).value("L0.mlp.out") for part in given.split(5)])
    assert torch.equal(everything(made, "L0.mlp.out"), want)


def test_the_network_comes_back_as_it_was(tmp_path: Path) -> None:
    module = Words()
    net = cw.open(module, tokenizer=[f"w{number}" for number in range(50)])
    before = footprint(module)
    state = torch.get_rng_state()
    collect(net, ids(9), "L0.mlp.out", tmp_path / "out", batch=4)
    assert not changes(before, footprint(module)) and torch.equal(torch.get_rng_state(), state)


class Counting(nn.Module):
    """Has layers after the site, and counts how often they ran."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.calls = nn.Linear(4, 8), nn.Linear(8, 2), []

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x).relu()
        seen.append(len(x))
        return self.second(hidden)


seen: list[int] = []


def test_nothing_behind_the_site_is_run(tmp_path: Path) -> None:
    seen.clear()
    net = cw.open(Counting())
    collect(net, torch.randn(200, 4), "L0.mlp.out", tmp_path / "out", batch=20)
    assert seen == [3, 2]  # the few examples that the site was looked for on


class TimeFirst(nn.Module):
    """A recurrence whose values have positions first and examples second."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.rnn, self.out = nn.Embedding(20, 6), nn.LSTM(6, 5), nn.Linear(5, 20)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.out(self.rnn(self.embedding(tokens).transpose(0, 1))[0].transpose(0, 1))


@pytest.mark.parametrize("batch", [9, 4, 3, 2, 1])
@pytest.mark.parametrize("length", [9, 3])
def test_a_length_that_is_the_batch_by_chance_is_no_axis_of_examples(length: int, batch: int, tmp_path: Path) -> None:
    net, given = cw.open(TimeFirst().eval()), torch.randint(0, 20, (18, length))
    with pytest.raises(InputError, match="rows belong to no example"):
        collect(net, given, "rnn", tmp_path / "refused", batch=batch)
    made = collect(net, given, "out", tmp_path / "kept", batch=batch, dtype="float32")
    torch.testing.assert_close(everything(made, "out"), net.module(given).detach().flatten(0, 1))


# ---- numbers on disk


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_rows_are_rounded_once_and_figures_are_of_what_is_stored(dtype: str, tmp_path: Path) -> None:
    net, given = words(), ids(20)
    made = collect(net, given, "resid.1", tmp_path / "out", dtype=dtype, batch=7)
    kind = getattr(torch, dtype)
    want = torch.cat([net.record(part).value("resid.1") for part in given.split(7)]).flatten(0, 1).to(kind).float()
    assert torch.equal(everything(made, "resid.1"), want)
    figures = made.manifest["normalisation"]["resid.1"]
    torch.testing.assert_close(torch.tensor(figures["mean"]), want.mean(0))
    assert figures["mean_norm"] == pytest.approx(float(want.norm(dim=1).mean()), rel=1e-5)
    assert figures["mean_square_norm"] == pytest.approx(float(want.square().sum(1).mean()), rel=1e-5)


class Large(nn.Module):
    """What it is given, times a factor that is 1 but for one number."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.out = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out((x * self.scale).relu())


@pytest.mark.parametrize(("number", "said"), [(1e5, "too large for float16"), (float("inf"), "not finite")])
def test_numbers_that_cannot_be_stored_are_named(number: float, said: str, tmp_path: Path) -> None:
    given = torch.rand(50, 3)
    given[37, 1] = number
    with pytest.raises(InputError, match=rf"'/relu.0' in example 37, position 0 .*{said}"):
        collect(cw.open(Large()), given, "/relu.0", tmp_path / "out", batch=8)
    if number == 1e5:
        collect(cw.open(Large()), given, "/relu.0", tmp_path / "wide", batch=8, dtype="bfloat16")


class Ragged(nn.Module):
    """Has as many channels as its input."""

    def forward(self, x: Tensor) -> Tensor:
        return (x * 2).relu() + 1


def test_a_site_of_varying_width_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'/relu.0' has vectors of 4 numbers before and of 5 in example 3"):
        collect(cw.open(Ragged()), [torch.rand(3, 4), torch.rand(3, 5)], "/relu.0", tmp_path / "out")


# ---- refusals


def test_what_cannot_be_collected_is_said_in_one_sentence(tmp_path: Path) -> None:
    net, out = words(), tmp_path / "out"
    bad = [
        ({"data": ids(3), "sites": "resid.9"}, SiteError, "resid.9"),
        ({"data": ids(3), "sites": []}, InputError, "No site is given"),
        ({"data": ids(3), "sites": ["resid.1", "resid.1"]}, InputError, "given twice"),
        ({"data": [], "sites": "resid.1"}, InputError, "no batch"),
        ({"data": 5, "sites": "resid.1"}, InputError, "is no data set"),
        ({"data": "", "sites": "resid.1"}, InputError, "no tokens"),
        ({"data": "w1 w2", "sites": "resid.1", "context": 9}, InputError, "No text has 9 tokens"),
        ({"data": ids(3), "sites": "resid.1", "dtype": "int8"}, InputError, "stored as float16"),
        ({"data": ids(3), "sites": "resid.1", "skip_first": 6}, InputError, "leaves none"),
        ({"data": (ids(3), ids(4)), "sites": "resid.1"}, InputError, "different counts"),
        ({"data": tmp_path / "nothing.npy", "sites": "resid.1"}, FormatError, "There is no file"),
    ]  # fmt: skip
    for options, kind, said in bad:
        with pytest.raises(kind, match=said) as error:
            collect(net, folder=out, **options)
        assert str(error.value).count("\n") == 0
        assert not listed(out)


def test_hostile_files_of_data_are_refused(tmp_path: Path) -> None:
    net = words()
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
    save_file({"ids": ids(3)}, tmp_path / "short.safetensors")
    whole = (tmp_path / "short.safetensors").read_bytes()
    files = {
        "objects.npy": None, "short.safetensors": whole[:-5], "latin.txt": b"w1 \xff w2", "list.json": b'[1, "w1"]',
        "lines.jsonl": b'{"text": "w1"}\n{"tex', "object.json": b"{}", "empty.txt": b"", "named.npz": b"PK\x05\x06",
        "deep.json": b"[" * 5000,
    }  # fmt: skip
    for name, content in files.items():
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises((FormatError, InputError)) as error:
            collect(net, tmp_path / name, "resid.1", tmp_path / "out")
        assert "\n" not in str(error.value), name
    (tmp_path / "good.jsonl").write_text('{"text": "w1 w2"}\n\n"w3 w4"\n')
    assert len(collect(net, str(tmp_path / "good.jsonl"), "resid.1", tmp_path / "good")) == 4


def test_a_folder_of_another_collection_is_refused(tmp_path: Path) -> None:
    net, out = words(), tmp_path / "out"
    collect(net, ids(10), "resid.1", out)
    other = Words()
    torch.nn.init.ones_(other.down.bias)
    for change in (
        {"net": cw.open(other)}, {"data": ids(11)}, {"sites": "L0.mlp.out"}, {"dtype": "float32"},
        {"skip_first": 1}, {"batch": 3}, {"data": [ids(10)]}, {"data": list(ids(9).split(3))},
    ):  # fmt: skip
        given = {"net": net, "data": ids(10), "sites": "resid.1"} | change
        with pytest.raises(InputError, match="collect into another folder"):
            collect(**given, folder=out)
    assert len(open_activations(out)) == 60


def test_a_disk_without_room_is_told_before_and_leaves_what_is_there(tmp_path: Path, monkeypatch) -> None:
    net, out = words(), tmp_path / "out"
    monkeypatch.setattr(collecting, "_free", lambda folder: 1 << 20)
    with pytest.raises(ResourceError, match="MiB are free"):
        collect(net, ids(30), "resid.1", out)
    monkeypatch.undo()
    monkeypatch.setattr(cutting, "LIMIT", 600)
    real, calls = os.fsync, []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 9:
            raise OSError(28, "No space left on device")
        real(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ResourceError, match="No space left on device.*collect again"):
        collect(net, ids(30), "resid.1", out)
    kept = {path.name for path in listed(out)}
    assert kept and not list(out.glob(".partial*"))
    monkeypatch.setattr(os, "fsync", real)
    made = collect(net, ids(30), "resid.1", out)
    assert kept < {path.name for path in listed(out)} and len(made) == 180


def test_a_forecast_is_right_and_writes_nothing(tmp_path: Path) -> None:
    net, given = words(), ids(64)
    told = forecast_collect(net, given, ["resid.1", "L0.mlp.out"], tmp_path / "out", batch=16)
    assert not (tmp_path / "out").exists()
    made = collect(net, given, ["resid.1", "L0.mlp.out"], tmp_path / "out", batch=16)
    assert (told.rows, told.examples, told.passes) == (len(made), 64, 4)
    assert told.bytes == pytest.approx(made.manifest["counts"]["bytes"], rel=0.2)
    assert told.seconds > 0 and told.free > 0
    with pytest.raises(InputError, match="no known length"):
        forecast_collect(net, iter([given]), "resid.1")


# ---- broken off and taken up again


def test_a_damaged_shard_is_named_and_made_again(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cutting, "LIMIT", 700)
    net, out, given = words(), tmp_path / "out", ids(40)
    collect(net, given, "resid.1", out, batch=7)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    shards = listed(out)
    assert len(shards) > 4
    shards[1].write_bytes(shards[1].read_bytes()[:-9])
    flipped = bytearray(shards[3].read_bytes())
    flipped[-3] ^= 1
    shards[3].write_bytes(flipped)
    shards[-1].unlink()
    with pytest.raises(FormatError, match="collect again"):
        open_activations(out)
    told: list[str] = []
    made = collect(net, given, "resid.1", out, batch=7, progress=lambda stage, done, of: told.append(stage))
    made.verify()
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert shards[1].name[:12] in " ".join(told) and shards[3].name in " ".join(told)
    flipped = bytearray(shards[2].read_bytes())
    flipped[-3] ^= 1
    shards[2].write_bytes(flipped)
    with pytest.raises(FormatError, match=shards[2].name):
        open_activations(out).verify()


@pytest.mark.parametrize("stream", [False, True])
def test_interrupted_anywhere_the_result_is_the_same(stream: bool, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cutting, "LIMIT", 900)
    net, given = words(), ids(40)
    data = (lambda: iter(given.split(6))) if stream else given
    batch = None if stream else 6
    collect(net, data, "resid.1", tmp_path / "whole", batch=batch)
    want = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}

    def stop(stage: str, done: int, of: int) -> None:
        if done >= count:
            raise KeyboardInterrupt

    for count in (6, 13, 25, 39):
        if stream and listed(tmp_path / "cut") if count > 6 else False:
            with pytest.raises(InputError, match="Example 0 is not the one"):
                collect(net, lambda: iter(given.flip(0).split(6)), "resid.1", tmp_path / "cut")
        with pytest.raises(KeyboardInterrupt):
            collect(net, data, "resid.1", tmp_path / "cut", batch=batch, progress=stop)
        with pytest.raises(InputError, match="not complete"):
            open_activations(tmp_path / "cut")
    collect(net, data, "resid.1", tmp_path / "cut", batch=batch)
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == want
    if stream:
        with pytest.raises(InputError, match="other data"):
            collect(net, lambda: iter(ids(30).split(6)), "resid.1", tmp_path / "cut")


KILLED = """
import sys, torch
sys.path[:0] = [{tests!r}]
torch.set_num_threads(1)
import cutaway as cw
from words_net import words, ids
from cutaway.features import collect as collecting, cutting
cutting.LIMIT = 8000
net = words()
print("ready", flush=True)
collecting.collect(net, ids(4000), ["resid.1", "L0.mlp.out"], {out!r}, batch=20)
print("done", flush=True)
"""


@pytest.mark.slow
def test_killed_at_random_moments_nothing_is_lost_or_doubled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(cutting, "LIMIT", 8000)
    whole = collect(words(), ids(4000), ["resid.1", "L0.mlp.out"], tmp_path / "whole", batch=20)
    want = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
    assert len(whole) == 24000
    script = KILLED.format(tests=str(Path(__file__).parent), out=str(tmp_path / "cut"))
    draw, seen, cut = random.Random(0), 0, tmp_path / "cut"
    cut.mkdir()
    for _ in range(5):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None and child.stdout.readline() == "ready\n"
            wanted = seen + draw.randint(1, 15)  # shards, not seconds: machines are fast and slow
            while child.poll() is None and len(listed(cut)) < wanted:
                time.sleep(draw.uniform(0.0, 0.01))
            child.send_signal(signal.SIGKILL)
        now = len(listed(cut))
        assert now >= seen
        seen = now
    assert 0 < seen < len(listed(tmp_path / "whole"))
    collect(words(), ids(4000), ["resid.1", "L0.mlp.out"], tmp_path / "cut", batch=20)
    assert {path.name: path.read_bytes() for path in (tmp_path / "cut").iterdir()} == want
