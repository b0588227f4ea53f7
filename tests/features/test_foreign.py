"""Dictionaries of other libraries: each file gives the numbers that its library's own formula gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cutaway.errors import CutawayError, FormatError, InputError
from cutaway.features import Card, Dictionary, Place, load_dictionaries, load_dictionary, save_dictionary
from cutaway.features.sae_lens import save_sae_lens

D, M, K, OUT = 8, 20, 4, 6


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


X = 3 * rand(30, D, seed=9) + 1


def top(pre: Tensor, k: int = K) -> Tensor:
    best = pre.topk(k, -1)
    return torch.zeros_like(pre).scatter(-1, best.indices, best.values.relu())


def written(folder: Path, file: str, tensors: dict[str, Tensor], settings: tuple[str, dict[str, Any]] | None) -> Path:
    folder.mkdir(exist_ok=True)
    if file.endswith(".pt"):
        torch.save(tensors, folder / file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / file)
    if settings is not None:
        (folder / settings[0]).write_text(json.dumps(settings[1]))
    return folder


def sae_lens(folder: Path, architecture: str, **settings: Any) -> tuple[Path, dict[str, Tensor]]:
    out = OUT if "transcoder" in architecture else D
    tensors = {"W_enc": rand(D, M), "W_dec": rand(M, out), "b_dec": rand(out)}
    if architecture == "gated":
        tensors |= {"b_gate": rand(M, seed=1), "b_mag": rand(M, seed=2), "r_mag": rand(M, seed=3) / 4}
    else:
        tensors["b_enc"] = rand(M, seed=1)
    if "jumprelu" in architecture:
        tensors["threshold"] = rand(M, seed=4).abs()
    if "skip" in architecture:
        tensors["W_skip"] = rand(out, D)
    told = {"architecture": architecture, "d_in": D, "d_sae": M, "metadata": {"hook_name": "blocks.1.hook_resid_pre"}}
    return written(folder, "sae_weights.safetensors", tensors, ("cfg.json", {**told, **settings})), tensors


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("rows", ["none", "layer_norm", "constant_norm_rescale"])
def test_sae_lens_autoencoders(centred: bool, rows: str, tmp_path: Path) -> None:
    folder, t = sae_lens(tmp_path / "a", "standard", apply_b_dec_to_input=centred, normalize_activations=rows)
    mean = X.mean(1, keepdim=True) if rows == "layer_norm" else 0.0
    spread = {"none": torch.ones(1), "layer_norm": X.std(1, keepdim=True),
              "constant_norm_rescale": X.norm(dim=1, keepdim=True) / D**0.5}[rows]  # fmt: skip
    inside = (X - mean) / spread - t["b_dec"] * centred
    expected = ((inside @ t["W_enc"] + t["b_enc"]).relu() @ t["W_dec"] + t["b_dec"]) * spread + mean
    found = load_dictionary(folder)
    assert torch.allclose(found.reconstruct(X), expected, rtol=1e-3, atol=1e-3)
    assert (found.card.reads[0].site, found.card.same_place) == ("blocks.1.hook_resid_pre", True)


def test_sae_lens_topk_by_the_decoders_norm(tmp_path: Path) -> None:
    folder, t = sae_lens(tmp_path / "a", "topk", k=K, rescale_acts_by_decoder_norm=True)
    norms = t["W_dec"].norm(dim=1)
    acts = top(((X - t["b_dec"]) @ t["W_enc"] + t["b_enc"]) * norms)
    found = load_dictionary(folder)
    assert torch.allclose(found.encode(X), acts, atol=1e-4)
    assert torch.allclose(found.reconstruct(X), (acts / norms) @ t["W_dec"] + t["b_dec"], atol=1e-4)


def test_sae_lens_gated(tmp_path: Path) -> None:
    folder, t = sae_lens(tmp_path / "a", "gated")
    inside = (X - t["b_dec"]) @ t["W_enc"]
    acts = (inside + t["b_gate"] > 0) * (inside * t["r_mag"].exp() + t["b_mag"]).relu()
    assert torch.allclose(load_dictionary(folder).encode(X), acts, atol=1e-4)


def test_sae_lens_skip_transcoder(tmp_path: Path) -> None:
    names = {"hook_name": "blocks.2.ln2.hook_normalized", "hook_name_out": "blocks.2.hook_mlp_out"}
    folder, t = sae_lens(tmp_path / "a", "jumprelu_skip_transcoder", apply_b_dec_to_input=False, metadata=names)
    pre = X @ t["W_enc"] + t["b_enc"]
    expected = (pre * (pre > t["threshold"])) @ t["W_dec"] + t["b_dec"] + X @ t["W_skip"].T
    found = load_dictionary(folder)
    assert torch.allclose(found.reconstruct(X), expected, atol=1e-4)
    assert [found.card.reads[0].site, found.card.writes[0].site] == list(names.values())


def test_a_sae_lens_transcoder_of_normalised_rows_is_refused(tmp_path: Path) -> None:
    folder, _ = sae_lens(tmp_path / "a", "transcoder", normalize_activations="layer_norm")
    with pytest.raises(FormatError, match="leaves what it writes"):
        load_dictionary(folder)


def test_old_sae_lens_settings(tmp_path: Path) -> None:
    tensors = {"W_enc": rand(D, M), "W_dec": rand(M, D), "b_dec": rand(D), "b_enc": rand(M)}
    old = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}, "normalize_activations": False,
           "hook_point": "blocks.0.hook_resid_post"}  # fmt: skip
    folder = written(tmp_path / "a", "sae_weights.safetensors", tensors, ("cfg.json", old))
    acts = top((X - tensors["b_dec"]) @ tensors["W_enc"] + tensors["b_enc"])
    assert torch.allclose(load_dictionary(folder).encode(X), acts, atol=1e-4)
    assert load_dictionary(folder).card.reads[0].site == "blocks.0.hook_resid_post"


def test_dictionary_learning(tmp_path: Path) -> None:
    linear = {"encoder.weight": rand(M, D), "decoder.weight": rand(D, M), "encoder.bias": rand(M)}
    plain = written(tmp_path / "plain", "ae.pt", {**linear, "bias": rand(D)}, None)
    t = linear
    acts = ((X - rand(D)) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    assert torch.allclose(load_dictionary(plain).reconstruct(X), acts @ t["decoder.weight"].T + rand(D), atol=1e-4)

    told = {"trainer": {"dict_class": "BatchTopKSAE", "submodule_name": "resid_post_layer_3", "lm_name": "pythia"}}
    tensors = {**linear, "b_dec": rand(D), "k": torch.tensor(5), "threshold": torch.tensor(0.7)}
    batch = load_dictionary(written(tmp_path / "batch", "ae.pt", tensors, ("config.json", told)))
    assert torch.allclose(batch.encode(X), acts * (acts > 0.7), atol=1e-4)
    assert (batch.card.network, batch.card.reads[0].site) == ("pythia", "resid_post_layer_3")

    bare = written(tmp_path / "bare", "ae.pt", tensors, None)
    with pytest.raises(FormatError, match="config.json is missing"):
        load_dictionary(bare)


@pytest.mark.parametrize("transcodes", [False, True])
def test_sparsify(transcodes: bool, tmp_path: Path) -> None:
    t = {"encoder.weight": rand(M, D), "encoder.bias": rand(M), "W_dec": rand(M, D), "b_dec": rand(D),
         "W_skip": rand(D, D)}  # fmt: skip
    told = {"activation": "groupmax", "k": K, "d_in": D, "transcode": transcodes}
    folder = written(tmp_path / "layers.3.mlp", "sae.safetensors", t, ("cfg.json", told))
    pre = ((X - t["b_dec"] * (not transcodes)) @ t["encoder.weight"].T + t["encoder.bias"]).relu()
    best = pre.unflatten(1, (K, -1)).max(-1)
    acts = torch.zeros_like(pre).scatter(1, best.indices + torch.arange(K) * (M // K), best.values)
    found = load_dictionary(folder, site="L3.mlp.in" if transcodes else "")
    assert torch.allclose(found.reconstruct(X), acts @ t["W_dec"] + t["b_dec"] + X @ t["W_skip"].T, atol=1e-4)
    assert found.card.writes[0].site == "layers.3.mlp"


def test_gemma_scope(tmp_path: Path) -> None:
    t = {"W_enc": rand(D, M), "W_dec": rand(M, D), "b_enc": rand(M), "b_dec": rand(D), "threshold": rand(M).abs()}
    np.savez(tmp_path / "params.npz", **{name: tensor.numpy() for name, tensor in t.items()})
    pre = X @ t["W_enc"] + t["b_enc"]
    found = load_dictionary(tmp_path / "params.npz", site="resid.5")
    assert torch.allclose(found.encode(X), pre * (pre > t["threshold"]), atol=1e-4)
    assert found.card.reads == found.card.writes == (Place("resid.5", D),)


def test_transcoders_of_a_whole_network(tmp_path: Path) -> None:
    for layer in range(3):
        t = {"W_enc": rand(M, D), "W_dec": rand(M, D), "b_enc": rand(M), "b_dec": rand(D)}
        save_file(t, tmp_path / f"layer_{layer}.safetensors")
    (tmp_path / "config.yaml").write_text(
        'model_name: "a/b"\nfeature_input_hook: mlp.hook_in\nfeature_output_hook: out\n'
    )
    found = load_dictionaries(tmp_path)
    assert [one.card.reads[0].site for one in found] == [f"blocks.{layer}.mlp.hook_in" for layer in range(3)]
    assert found[1].card.network == "a/b"
    with pytest.raises(FormatError, match="holds 3 dictionaries"):
        load_dictionary(tmp_path)
    (tmp_path / "layer_1.safetensors").unlink()
    with pytest.raises(FormatError, match="layer_1"):
        load_dictionaries(tmp_path)


def test_cross_layer_transcoder(tmp_path: Path) -> None:
    layers, expected = 3, [torch.zeros(len(X), D) for _ in range(3)]
    for layer in range(layers):
        enc = {
            f"W_enc_{layer}": rand(M, D, seed=layer),
            f"b_enc_{layer}": rand(M),
            f"b_dec_{layer}": rand(D, seed=layer),
        }
        dec = rand(M, layers - layer, D, seed=layer)
        save_file(enc, tmp_path / f"W_enc_{layer}.safetensors")
        save_file({f"W_dec_{layer}": dec}, tmp_path / f"W_dec_{layer}.safetensors")
        acts = (X @ enc[f"W_enc_{layer}"].T + enc[f"b_enc_{layer}"]).relu()
        expected[layer] = expected[layer] + enc[f"b_dec_{layer}"]
        for later in range(layer, layers):
            expected[later] = expected[later] + acts @ dec[:, later - layer]
    made = [torch.zeros(len(X), D) for _ in range(layers)]
    for layer, one in enumerate(load_dictionaries(tmp_path)):
        for later, part in enumerate(one.reconstruct(X).split(D, 1), layer):
            made[later] = made[later] + part
            assert one.card.writes[later - layer].site == f"blocks.{later}.hook_mlp_out"
    for mine, theirs in zip(made, expected, strict=True):
        assert torch.allclose(mine, theirs, atol=1e-4)


KINDS = ["relu", "topk", "abs-topk", "jumprelu", "gated", "transcoder", "skip"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("per_row", ["", "standard", "length"])
def test_what_is_written_for_sae_lens_is_read_again(kind: str, per_row: str, tmp_path: Path) -> None:
    crosses = kind in ("transcoder", "skip")
    out = OUT if crosses else D
    weights = {"encoder": rand(M, D), "decoder": rand(M, out), "encoder_bias": rand(M), "center": rand(D),
               "decoder_bias": rand(out)}  # fmt: skip
    if kind == "skip":
        weights["skip"] = rand(D, out)
    extra = {"threshold": rand(M).abs(), "scale": rand(M).exp(), "magnitude_bias": rand(M)}
    reads, writes = (Place("a", D),), (Place("b" if crosses else "a", out),)
    made = Dictionary(kind, "relu" if crosses else kind, weights, K, extra, per_row, Card(reads, writes, "net"))
    if crosses and per_row:  # SAELens normalises what a transcoder reads alone
        with pytest.raises(FormatError, match="no architecture"):
            save_sae_lens(made, tmp_path / "out")
        return
    again = load_dictionary(save_sae_lens(made, tmp_path / "out"))
    assert torch.allclose(again.reconstruct(X), made.reconstruct(X), rtol=1e-3, atol=1e-3)
    assert (again.card.reads, again.card.writes, again.card.network) == (reads, writes, "net")


def test_what_sae_lens_has_no_name_for_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="no architecture"):
        save_sae_lens(Dictionary("k-means", "onehot", {"encoder": rand(M, D), "decoder": rand(M, D)}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def _lacks_decoder(folder: Path) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({"W_enc": tensors["W_enc"]}, folder / "sae_weights.safetensors")


def _other_shape(folder: Path) -> None:
    tensors = load_file(folder / "sae_weights.safetensors")
    save_file({**tensors, "b_enc": torch.zeros(3)}, folder / "sae_weights.safetensors")


def _cut(folder: Path) -> None:
    file = folder / "sae_weights.safetensors"
    file.write_bytes(file.read_bytes()[:-20])


def _settings(text: str) -> Any:
    return lambda folder: (folder / "cfg.json").write_text(text)


DAMAGE = {
    "no decoder": (_lacks_decoder, "lacks 'W_dec'"),
    "other shape": (_other_shape, "damaged: The encoder_bias"),
    "cut short": (_cut, "."),
    "no json": (_settings("{"), "."),
    "a list": (_settings("[1]"), "not a JSON object"),
    "later architecture": (_settings('{"architecture": "temporal"}'), "'temporal'"),
    "unknown normalisation": (_settings('{"normalize_activations": "magic"}'), "'magic'"),
    "k is text": (_settings('{"architecture": "topk", "k": "many"}'), "damaged"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_files_give_one_sentence(case: str, tmp_path: Path) -> None:
    damage, told = DAMAGE[case]
    folder, _ = sae_lens(tmp_path / "a", "standard")
    damage(folder)
    with pytest.raises(FormatError, match=told):
        load_dictionary(folder)


def test_unknown_files_name_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no"):
        load_dictionary(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FormatError, match="SAELens, sparsify, dictionary_learning"):
        load_dictionary(tmp_path / "empty")


def test_code_in_a_pickle_is_never_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "was-run",))

    torch.save({"encoder.weight": rand(M, D), "evil": Evil()}, tmp_path / "ae.pt")
    with pytest.raises(CutawayError):
        load_dictionary(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    encoder = rand(M, D)
    encoder[3, 2] = float("nan")
    save_dictionary(Dictionary("relu", "relu", {"encoder": encoder, "decoder": rand(M, D)}), tmp_path / "d.safetensors")
    with pytest.raises(FormatError, match="encoder .* not finite"):
        load_dictionary(tmp_path / "d.safetensors")
