"""Weight edits: the file does what the intervention does, in its own format, and nothing else changes."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hugging_face import HUGGING_FACE
from safetensors.torch import load_file, save_file

import cutaway as cw
from cutaway import organisms
from cutaway.errors import CutawayError, FormatError, InputError, ResourceError
from cutaway.formats import open_checkpoint
from cutaway.rewrite import edit_file, edited_weights, removed_everywhere
from cutaway.run.trace import Trace
from cutaway.weights.copying import write_copy

ENTRIES = {entry.name: entry for entry in HUGGING_FACE}
DIRECTION = torch.randn(64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trace() -> Trace:
    return cw.open("induction").record(organisms.load("induction").pairs(4, seed=0).clean)


EDITS = {
    "head": cw.zero("L1.attn.h1"),
    "half a head": cw.scale("L1.attn.h1", 0.5),
    "queries": cw.zero("L0.attn.q[head=0]"),
    "embedding": cw.zero("embed"),
    "direction in the embedding": cw.project_out("embed", DIRECTION),
}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_file_does_what_the_intervention_does(name: str, trace: Trace, tmp_path: Path) -> None:
    out = tmp_path / "edited.safetensors"
    before = Path(organisms.__file__).parent / "weights" / "induction.safetensors"
    content = before.read_bytes()
    done = edit_file(trace, [EDITS[name]], out)
    assert done.error <= 1e-5 < done.change
    module = organisms.load("induction").module
    module.load_state_dict(load_file(out))
    fresh = organisms.load("induction").pairs(16, seed=5).clean  # inputs that the edit was not found on
    want = cw.open("induction").record(fresh).replay(EDITS[name]).logits
    with torch.no_grad():
        assert float((module(fresh) - want).abs().max()) <= 1e-4
    changed = {row.name for row in done.difference.changes if row.status != "same"}
    assert changed <= set(done.tensors) and changed
    assert before.read_bytes() == content
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edited.safetensors"]


def test_a_direction_is_removed_from_the_whole_stream(trace: Trace, tmp_path: Path) -> None:
    done = edit_file(trace, removed_everywhere(trace, DIRECTION), tmp_path / "edited.safetensors")
    assert done.error <= 1e-5 < done.change
    assert {row.rank for row in done.difference.changes if row.status == "changed"} == {1}


REFUSED = {
    "one position": (cw.zero("L0.attn.z[pos=1]"), "weights are the same everywhere"),
    "a pattern": (cw.zero("L0.attn.pattern"), "no parameter"),
    "another run's": (cw.mean("L0.attn.z"), "depends on other runs"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_weights_cannot_do_is_refused(name: str, trace: Trace, tmp_path: Path) -> None:
    what, words = REFUSED[name]
    with pytest.raises(InputError, match=words):
        edit_file(trace, [what], tmp_path / "edited.safetensors")
    assert not list(tmp_path.iterdir())


SITES = {
    "gpt2": ("L0.attn.h2", "L1.mlp.act[neuron=5]", "L0.mlp.pre[neuron=3]", "L1.attn.v[head=1]"),
    "gpt-neox": ("L0.attn.h2", "L1.mlp.act[neuron=5]", "L0.attn.q[head=1]"),
    "llama": ("L1.attn.h2", "L1.mlp.act[neuron=5]", "L0.attn.v[head=1]"),
    "bloom": ("L1.attn.h2", "L0.mlp.act[neuron=7]"),
    "bert": ("L1.attn.h2", "L0.mlp.act[neuron=7]"),
    "vit": ("L1.attn.h2", "L0.mlp.act[neuron=7]"),
    "t5": ("L1.attn.h2",),
    "mamba": (),
}


@pytest.mark.parametrize(("name", "site"), [(name, site) for name, sites in SITES.items() for site in sites])
def test_heads_and_neurons_of_other_architectures(name: str, site: str) -> None:
    module, args, kwargs = ENTRIES[name].make()
    trace = cw.open(module).record(*args, **kwargs)
    before = {key: tensor.clone() for key, tensor in module.state_dict().items()}
    proposal, error = edited_weights(trace, [cw.zero(site)])
    assert error <= 1e-5 and proposal.parameters
    assert all(torch.equal(tensor, before[key]) for key, tensor in module.state_dict().items())


def test_a_tied_embedding_cannot_be_projected(tmp_path: Path) -> None:
    module, args, kwargs = ENTRIES["gpt2"].make()
    trace = cw.open(module).record(*args, **kwargs)
    with pytest.raises(InputError, match="used elsewhere too"):
        edited_weights(trace, [cw.project_out("embed", torch.randn(32))])


def folder(tmp_path: Path, shard: str = "50GB", dtype: torch.dtype = torch.float32) -> Path:
    module = ENTRIES["llama"].build().to(dtype)
    module.save_pretrained(tmp_path / "net", max_shard_size=shard)
    return tmp_path / "net"


def test_several_files_become_a_folder(tmp_path: Path) -> None:
    source = folder(tmp_path, "20KB")
    assert len(list(source.glob("*.safetensors"))) > 1
    trace = cw.open(source).record(torch.randint(3, 41, (2, 7)))
    with pytest.raises(FormatError, match="files"):
        edit_file(trace, [cw.zero("L1.attn.h1")], tmp_path / "one.safetensors")
    edit_file(trace, [cw.zero("L1.attn.h1")], tmp_path / "edited")
    again = cw.open(tmp_path / "edited").record(*trace.args)
    assert float((again.logits - trace.replay(cw.zero("L1.attn.h1")).logits).abs().max()) <= 1e-5
    assert {path.name for path in source.iterdir()} == {path.name for path in (tmp_path / "edited").iterdir()}


def test_a_bare_archive_of_torch_is_opened_edited_and_opened_again(tmp_path: Path) -> None:
    module, args, kwargs = ENTRIES["qwen3"].make()
    torch.save({"state_dict": module.state_dict()}, tmp_path / "bare.pt")
    with pytest.warns(UserWarning, match="family's defaults"):
        trace = cw.open(tmp_path / "bare.pt").record(*args, **kwargs)
    done = edit_file(trace, [cw.zero("L1.attn.h1")], tmp_path / "edited.pt")
    assert done.tensors == ("state_dict.model.layers.1.self_attn.o_proj.weight",)
    with pytest.warns(UserWarning, match="family's defaults"):
        again = cw.open(tmp_path / "edited.pt").record(*args, **kwargs)
    assert float((again.logits - trace.replay(cw.zero("L1.attn.h1")).logits).abs().max()) <= 1e-5


def test_a_coarse_type_that_cannot_hold_the_edit_is_refused(tmp_path: Path) -> None:
    trace = cw.open(folder(tmp_path, dtype=torch.bfloat16)).record(torch.randint(3, 41, (2, 7)))
    edit_file(trace, [cw.zero("L1.attn.h1")], tmp_path / "zeroed.safetensors")
    with pytest.raises(InputError, match="bfloat16 cannot hold"):
        edit_file(trace, [cw.scale("L1.attn.h1", 0.3)], tmp_path / "scaled.safetensors")
    assert not (tmp_path / "scaled.safetensors").exists()


def test_a_torch_archive_stays_one(tmp_path: Path) -> None:
    weight = torch.randn(6, 5)
    torch.save({"w": weight, "turned": weight.T, "other": torch.arange(4)}, tmp_path / "a.pt")
    new = weight.numpy() * 2
    source = open_checkpoint(tmp_path / "a.pt")
    write_copy(source, {"turned": new.T}, tmp_path / "b.pt", lambda copy: None)
    found = torch.load(tmp_path / "b.pt", weights_only=True)
    assert np.array_equal(found["w"].numpy(), new) and torch.equal(found["turned"], found["w"].T)
    assert torch.equal(found["other"], torch.arange(4))
    assert zipfile.ZipFile(tmp_path / "b.pt").testzip() is None


def test_nothing_is_replaced_and_nothing_left_behind(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "a.safetensors")
    source, new = open_checkpoint(tmp_path / "a.safetensors"), {"w": np.zeros(3, np.float32)}
    content = (tmp_path / "a.safetensors").read_bytes()
    with pytest.raises(ResourceError, match="never replaces"):
        write_copy(source, new, tmp_path / "a.safetensors", lambda copy: None)
    (tmp_path / "link.safetensors").symlink_to("nowhere")
    with pytest.raises(ResourceError, match="never replaces"):
        write_copy(source, new, tmp_path / "link.safetensors", lambda copy: None)

    def refuse(copy: object) -> None:
        raise InputError("no")

    with pytest.raises(InputError):
        write_copy(source, new, tmp_path / "b.safetensors", refuse)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.safetensors", "link.safetensors"]
    assert (tmp_path / "a.safetensors").read_bytes() == content


def test_a_network_that_came_from_no_file(tmp_path: Path) -> None:
    module, args, kwargs = ENTRIES["llama"].make()
    with pytest.raises(CutawayError, match="not opened from a file"):
        edit_file(cw.open(module).record(*args, **kwargs), [cw.zero("L1.attn.h1")], tmp_path / "a.safetensors")
