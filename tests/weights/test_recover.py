"""Recovery: exact, or open with the truth among what is offered, or nothing claimed. Never a silent guess."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hugging_face import HUGGING_FACE
from saving import bare, normal, saved
from torch import nn

import cutaway as cw
from cutaway.errors import InputError, ModelError
from cutaway.formats import open_checkpoint
from cutaway.weights import recover
from cutaway.weights.build import check, load
from cutaway.weights.families import FAMILIES

ENTRIES = {entry.name: entry for entry in HUGGING_FACE}
CERTAIN = {"qwen3", "gemma3", "falcon", "gpt-oss", "mamba", "rwkv", "t5", "convnextv2"}
UNKNOWN = {  # rows that the table does not have yet, or that are of another library
    "deepseek-v3", "qwen3-next", "recurrent gemma", "jamba", "falcon-h1", "wav2vec2", "vit-mae",
    "swin", "segformer", "detr", "unet2d", "unet2d condition", "dit", "vae",
}  # fmt: skip


@pytest.mark.parametrize("name", ENTRIES)
def test_every_pretrained_network_of_the_zoo(name: str, tmp_path: Path) -> None:
    module = ENTRIES[name].build()
    found = recover(bare(tmp_path / "bare.safetensors", module), check)
    if name in UNKNOWN:
        assert found.match is None and found.confidence in ("unknown", "structure")
        return
    match = found.match
    assert match is not None and match.exact
    assert found.confidence == ("certain" if name in CERTAIN else "ambiguous")
    families = [family for family in FAMILIES if family.name in (match.family.name, *found.also)]
    assert type(module).__name__ in {cls for family in families for cls in family.classes}
    config = module.config
    for field, value in match.config.items():
        assert getattr(config, field, value) in (value, None), field  # None: four times the width
    truth = [
        row for row in match.candidates
        if all(getattr(config, key, value) in (value, None) for key, value in row.items())
    ]  # fmt: skip
    assert truth, f"the true sizes are not among {match.candidates}"
    if name in CERTAIN:
        assert len(match.candidates) == 1 and not found.also
    else:
        assert len(match.candidates) > 1 or found.also
        assert any("choices fit" in sentence or "same way" in sentence for sentence in found.why)


@pytest.mark.parametrize("name", ["qwen3", "mamba", "rwkv", "t5"])
def test_a_bare_state_dict_opens_when_recovery_is_certain(name: str, tmp_path: Path) -> None:
    module, args, kwargs = ENTRIES[name].make()
    path = bare(tmp_path / "bare.safetensors", module).path
    with pytest.warns(UserWarning, match="family's defaults"):
        net = cw.open(path)
    with torch.no_grad():
        torch.testing.assert_close(net.record(*args, **kwargs).logits, module(*args, **kwargs).logits)


def test_what_is_open_is_refused_with_the_way_on_and_then_settled(tmp_path: Path) -> None:
    module, args, kwargs = ENTRIES["gpt2"].make()
    path = bare(tmp_path / "bare.safetensors", module).path
    with pytest.raises(ModelError, match="num_attention_heads.*config="):
        cw.open(path)
    with pytest.raises(InputError, match="does not fit"):
        cw.open(path, config={"num_attention_heads": 5})
    with pytest.warns(UserWarning):
        net = cw.open(path, config={"num_attention_heads": 4})
    with torch.no_grad():
        assert torch.equal(net.record(*args, **kwargs).logits, module(*args, **kwargs).logits)


def test_names_that_scripts_put_around_are_taken_off(tmp_path: Path) -> None:
    checkpoint = bare(tmp_path / "bare.safetensors", ENTRIES["mamba"].build(), "state_dict.module.")
    assert recover(checkpoint, check).confidence == "certain"
    assert load(checkpoint)[1].match is not None


def test_an_embedding_that_is_saved_twice_is_tied(tmp_path: Path) -> None:
    module = ENTRIES["rwkv"].build()
    assert recover(bare(tmp_path / "a.safetensors", module)).facts["tied_embeddings"] is False
    module.head.weight.data = module.rwkv.embeddings.weight.data.clone()
    assert recover(bare(tmp_path / "b.safetensors", module)).facts["tied_embeddings"] is True


def test_a_missing_tensor_makes_it_partial(tmp_path: Path) -> None:
    state = {name: tensor.numpy() for name, tensor in ENTRIES["mamba"].build().state_dict().items()}
    del state["backbone.layers.1.mixer.D"]
    found = recover(saved(tmp_path / "a.safetensors", state), check)
    assert found.confidence == "partial" and "backbone.layers.1.mixer.D" in found.why[0]


class Small(nn.Module):
    """A convolution, a norm and two linear layers behind a flattened image."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.first, self.last = nn.Linear(8 * 16, 32), nn.Linear(32, 10)


def test_sizes_that_no_network_has_are_no_reason_to_wait(tmp_path: Path) -> None:
    """A file may claim any shape, as long as nothing is stored (a size of zero somewhere)."""
    huge = (1 << 40, 0)
    names = ("wte.weight", "wpe.weight", "h.0.attn.c_attn.weight", "h.0.mlp.c_fc.weight", "ln_f.bias")
    header = {name: {"dtype": "F32", "shape": huge[::-1], "data_offsets": [0, 0]} for name in names}
    text = json.dumps(header).encode()
    (tmp_path / "a.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    start = time.monotonic()
    assert recover(open_checkpoint(tmp_path / "a.safetensors"), check).confidence in ("partial", "structure")
    assert time.monotonic() - start < 5


def test_plain_chains(tmp_path: Path) -> None:
    found = recover(bare(tmp_path / "a.safetensors", Small()), check)
    assert found.confidence == "structure" and not any("branches" in sentence for sentence in found.why)
    kinds = [(row["kind"], row["in"], row["out"]) for row in sorted(found.layers, key=lambda row: row["out"])]
    assert ("convolution 2d", 3, 8) in kinds and ("batch norm", 8, 8) in kinds and ("linear", 128, 32) in kinds
    for cls, kind in ((nn.LSTM, "LSTM"), (nn.GRU, "GRU"), (nn.RNN, "RNN")):
        rnn = recover(bare(tmp_path / f"{kind}.safetensors", nn.ModuleDict({"net": cls(5, 7, num_layers=2)})))
        assert [(row["kind"], row["in"], row["out"], row["layers"]) for row in rnn.layers] == [(kind, 5, 7, 2)]


def test_a_story_model_without_its_config(shared_data: Path) -> None:
    folder = shared_data / "lm-stories260k" / "hf"
    if not folder.is_dir():
        pytest.skip(f"no story model at {folder}")
    found = recover(open_checkpoint(folder / "model.safetensors"), check)
    assert found.facts | {"layers": 5, "width": 64, "vocabulary": 512, "mlp": 172} == found.facts
    assert found.facts["tied_embeddings"] is True
    assert {"num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 8} in found.match.candidates
    text = "Once upon a time"
    with pytest.warns(UserWarning):
        settled = {"family": "Llama", "num_attention_heads": 8, "rms_norm_eps": 1e-5}
        net = cw.open(folder / "model.safetensors", config=settled)
    known = cw.open(folder)
    ids = known.encode(text)
    assert torch.equal(net.record(ids).logits, known.record(ids).logits)


def test_recovery_by_names_loads_no_torch(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.safetensors", {"0.weight": normal(3, 4), "2.weight": normal(2, 3)}).path
    code = (
        "import sys; from cutaway.formats import open_checkpoint as o; from cutaway.weights import *\n"
        f"c = o({str(path)!r}); recover(c); health(c); compare(c, c); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
