"""Opening networks: one code path for folders and hub ids, no code from them, one sentence when it fails."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers

import cutaway as cw
from cutaway.errors import CutawayError, FormatError, InputError, ModelError

WORDS = ["<unk>", "the", "cat", "sat", "on", "mat", "dog"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A tiny GPT-2 with a word tokenizer, saved as Hugging Face saves models."""
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    where = tmp_path / "tiny"
    transformers.GPT2LMHeadModel(config).save_pretrained(where)
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(where)
    return where


def edit_config(folder: Path, **fields: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_folder_opens_in_eval_mode_with_its_tokenizer(folder: Path) -> None:
    net = cw.open(folder)
    assert net.name == "tiny" and not net.module.training
    trace = net.record(["the cat sat", "the dog sat"])
    reference = transformers.GPT2LMHeadModel.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([[1, 2, 3], [1, 6, 3]])).logits
    torch.testing.assert_close(trace.logits, expected, rtol=1e-5, atol=1e-6)
    assert net.tokens("the cat") == ["the", "cat"] and net.token_id("mat") == 5
    assert cw.open(folder).fingerprint == net.fingerprint


def test_texts_that_cannot_be_a_batch(folder: Path) -> None:
    net = cw.open(folder)
    with pytest.raises(InputError, match="Text 1 has 2 tokens and text 0 has 3"):
        net.record(["the cat sat", "the dog"])
    with pytest.raises(InputError, match="batch is empty"):
        net.record([])
    with pytest.raises(InputError, match="not a single token"):
        net.token_id("cat dog")


@pytest.mark.parametrize("architectures", [["EvilModel"], ["GPT2LMHeadModel"]])
def test_code_in_a_folder_never_runs(folder: Path, tmp_path: Path, architectures: list[str]) -> None:
    canary = tmp_path / "canary"
    code = f"open({str(canary)!r}, 'w').write('ran')\nclass EvilConfig: pass\nclass EvilModel: pass\n"
    (folder / "evil.py").write_text(code)
    maps = {"AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel", "AutoModelForCausalLM": "evil.EvilModel"}
    edit_config(folder, auto_map=maps, model_type="evil", architectures=architectures)
    with pytest.raises(CutawayError):
        cw.open(folder)
    assert not canary.exists()


def test_a_kernel_named_in_a_config_is_not_fetched(folder: Path) -> None:
    edit_config(folder, _attn_implementation="someone/kernel", attn_implementation="someone/kernel")
    net = cw.open(folder)
    assert net.module.config._attn_implementation == "sdpa"


def test_pickled_weights_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match="Cannot open"):
        cw.open(folder)


@pytest.mark.parametrize("damage", ["truncated", "not json", "no config", "missing tensors"])
def test_damaged_folders_get_one_sentence(folder: Path, damage: str) -> None:
    weights = folder / "model.safetensors"
    if damage == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif damage == "not json":
        (folder / "config.json").write_text("{")
    elif damage == "no config":
        (folder / "config.json").unlink()
    else:
        save_file({"unrelated": torch.zeros(2)}, weights, metadata={"format": "pt"})
    with pytest.raises((ModelError, FormatError)) as caught:
        cw.open(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no-such-model-anywhere", "./nothing/here", "/nothing/at/all"])
def test_names_that_lead_nowhere_get_one_sentence(name: str) -> None:
    with pytest.raises(ModelError) as caught:
        cw.open(name)
    assert "\n" not in str(caught.value)


def test_a_list_of_words_is_a_tokenizer() -> None:
    net = cw.open(torch.nn.Embedding(7, 3), tokenizer=WORDS)
    assert net.record("the cat").logits.shape == (1, 2, 3)
    with pytest.raises(CutawayError, match="'fish' is not in the vocabulary"):
        net.record("the fish")


def test_what_is_no_network() -> None:
    with pytest.raises(ModelError, match="Cannot open a int"):
        cw.open(3)
