"""Real checkpoints: what is listed is what torch, safetensors and NumPy themselves read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cutaway.errors import FormatError
from cutaway.formats import info, open_checkpoint

TORCH_FILES = [
    "algo-induction-makemore/model.pt",
    "algo-reverse-uva/ReverseTask.ckpt",
    "backdoor-badnet-mnist/badnet-MNIST.pth",
    "gen-btcvae-dsprites/model.pt",
    "gen-ddpm-mnist/ddpm_mnist.pt",
    "mi-pizza-and-clock/model_p99zdpze5l.pt",
    "rl-a3c-gru-pong/model.80.tar",
    "vision-blazeface/blazeface.pth",
    "vision-captum-cifar/titanic_model.pt",
    "vision-googlenet-cifar10/GoogleNet.ckpt",
    "vision-resnet20-cifar10/resnet20-12fca82f.th",
]


def _flat(value: object, path: str = "") -> dict[str, object]:
    torch = pytest.importorskip("torch")
    if isinstance(value, torch.Tensor):
        return {path: value}
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    return {k: v for key, child in items for k, v in _flat(child, f"{path}.{key}" if path else str(key)).items()}


@pytest.mark.parametrize("name", TORCH_FILES)
def test_tensors_of_torch_files_equal_what_torch_loads(shared_data: Path, name: str) -> None:
    torch = pytest.importorskip("torch")
    checkpoint = open_checkpoint(shared_data / name)
    expected = _flat(torch.load(shared_data / name, map_location="cpu", weights_only=True))
    assert set(checkpoint.tensors) == set(expected) and expected
    for key, tensor in expected.items():
        assert checkpoint.tensors[key].dtype == str(tensor.dtype).removeprefix("torch.")
        assert np.array_equal(checkpoint.read(key), tensor.numpy(), equal_nan=True)
    assert not [risk for risk in checkpoint.risks if risk.severity == "high"]


def test_every_safetensors_file_equals_what_safetensors_loads(shared_data: Path) -> None:
    load = pytest.importorskip("safetensors.numpy").load_file
    files = sorted(shared_data.rglob("*.safetensors"))
    assert len(files) > 8
    for file in files:
        checkpoint = open_checkpoint(file)
        expected = load(file)
        assert set(checkpoint.tensors) == set(expected)
        assert all(np.array_equal(checkpoint.read(name), array) for name, array in expected.items())


def test_hugging_face_folder(shared_data: Path) -> None:
    facts = json.loads(json.dumps(info(shared_data / "lm-stories260k" / "hf", sha256=True, deep=True)))
    assert facts["format"] == "Hugging Face folder" and facts["metadata"]["weights"] == "safetensors"
    assert facts["metadata"]["config"]["model_type"] == "llama"
    assert "tokenizer.json" in facts["metadata"]["tokenizer_files"]
    assert facts["parameters"] == 260_032 and facts["nonfinite"] == {}
    assert facts["modules"]["model.layers.4"]["tensors"] == 9
    assert all(len(file["sha256"]) == 64 for file in facts["files"])
    assert [risk for risk in facts["risks"] if risk["severity"] == "high"] == []


def test_whole_pickled_model_is_taken_apart_without_its_library(shared_data: Path) -> None:
    facts = info(shared_data / "loader-edge-cases" / "l_2_2_model.pth", deep=True)
    names = [tensor["name"] for tensor in facts["tensors"]]
    assert "blocks.1.attn.W_Q" in names and "unembed.W_U" in names and len(names) == len(set(names))
    high = [risk["text"] for risk in facts["risks"] if risk["severity"] == "high"]
    assert any("transformer_lens.HookedTransformer.HookedTransformer" in text for text in high)
    assert not any("torch._utils" in text for text in high)
    assert facts["nonfinite"]["blocks.0.attn.IGNORE"] == {"nan": 0, "inf": 1}


def test_foreign_class_in_lightning_checkpoint_is_reported(shared_data: Path) -> None:
    checkpoint = open_checkpoint(shared_data / "loader-edge-cases" / "cifar10_64.ckpt")
    high = [risk.text for risk in checkpoint.risks if risk.severity == "high"]
    assert len(high) == 1 and "pytorch_lightning.utilities.parsing.AttributeDict" in high[0]
    assert "state_dict.encoder.net.0.weight" in checkpoint.tensors


def test_file_that_was_copied_as_text_is_refused_with_the_reason(shared_data: Path) -> None:
    with pytest.raises(FormatError, match="copied it as text"):
        open_checkpoint(shared_data / "loader-edge-cases" / "finetuned_model.pth")


def test_stable_baselines_agent(shared_data: Path) -> None:
    checkpoint = open_checkpoint(shared_data / "loader-edge-cases" / "CartPole-v1.zip")
    weight = checkpoint.read("policy.pth:action_net.weight")
    assert weight.shape == (2, 64) and np.isfinite(weight).all() and weight.std() > 0
    assert any(risk.severity == "high" and "base 64" in risk.text for risk in checkpoint.risks)


def test_numpy_file(shared_data: Path) -> None:
    file = shared_data / "vision-blazeface" / "anchors.npy"
    assert np.array_equal(open_checkpoint(file).read("anchors"), np.load(file))


def test_files_that_are_no_checkpoints(shared_data: Path) -> None:
    for name in (
        "lm-stories260k/tok512.bin",
        "text-corpora/tinyshakespeare.txt",
        "data-vision/rocket.jpg",
        "data-vision",
    ):
        with pytest.raises(FormatError):
            open_checkpoint(shared_data / name)


def test_no_torch_is_imported() -> None:
    code = "import cutaway.formats, cutaway.project.project, sys; sys.exit('torch' in sys.modules)"
    import cutaway

    source = str(Path(cutaway.__path__[0]).parent)
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": source}).returncode == 0
