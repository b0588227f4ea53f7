"""Dictionaries in the files of other libraries, read as data: SAELens, dictionary_learning, sparsify, Gemma Scope, and
the transcoders of circuit-tracer.

Each reader is a row of a table: how its files are recognised, and how their tensors become one or several dictionaries.
A cross-layer transcoder becomes a dictionary for each layer that it reads, which writes that layer and all later ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import FormatError, InputError
from ..formats import open_checkpoint
from ..formats.reading import read_json_file, read_range
from .card import Card, Place
from .dictionary import Dictionary
from .files import tensor_of

Tensors = Mapping[str, Tensor]


def tensors_in(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file in single precision, nothing executed. Raises FormatError."""
    checkpoint = open_checkpoint(path)
    return {name: tensor_of(checkpoint.numbers(name)).float() for name in checkpoint.tensors}


def settings(path: Path) -> dict[str, Any]:
    """A JSON file that holds an object. Raises FormatError for anything else."""
    data = read_json_file(path, 1 << 20)
    if not isinstance(data, dict):
        raise FormatError(f"{path} is not a JSON object; it holds no settings of a dictionary.")
    return data


def placed(read: str, written: str, width: int, out_width: int, network: str, source: str) -> Card:
    """A card for what is known of a foreign dictionary."""
    return Card((Place(read, width),), (Place(written or read, out_width),), network, source=source)


def assembled(
    kind: str,
    activation: str,
    encoder: Tensor,
    decoder: Tensor,
    rest: Mapping[str, Tensor | None],
    k: int = 0,
    extra: Mapping[str, Tensor] | None = None,
) -> Dictionary:
    """A dictionary of tables [latents, d] and further weights, of which those that are None are left out."""
    more = {name: tensor for name, tensor in rest.items() if tensor is not None}
    return Dictionary(kind, activation, {"encoder": encoder, "decoder": decoder, **more}, k, extra or {})


def gate(found: Tensors, scale: str, gate_bias: str, magnitude_bias: str) -> dict[str, Tensor]:
    """What the gated rule needs, from a gate's and a magnitude's bias and the logarithm of the magnitude's scale."""
    factor = found[scale].exp()
    return {"scale": factor, "magnitude_bias": found[magnitude_bias] - factor * found[gate_bias]}


# ---- SAELens


def _sae_lens(folder: Path) -> list[Dictionary]:
    """Versions 3 to 6; before 6 the settings are flat and a few had other names."""
    told, found = settings(folder / "cfg.json"), tensors_in(folder / "sae_weights.safetensors")
    meta = {**told, **(told.get("metadata") or {})}
    architecture = str(told.get("architecture", "standard"))
    if told.get("activation_fn_str", told.get("activation_fn")) == "topk" and architecture == "standard":
        architecture, told["k"] = "topk", (told.get("activation_fn_kwargs") or {}).get("k")
    encoder, decoder, bias = found["W_enc"].T, found["W_dec"], found.get("b_enc")
    transcodes = "transcoder" in architecture
    rule = _SAE_LENS_RULES.get(architecture)
    if rule is None:
        raise FormatError(
            f"'{architecture}' in {folder} is an architecture of SAELens that no dictionary of one encoder has; "
            f"these are read: {', '.join(_SAE_LENS_RULES)}."
        )
    extra: dict[str, Tensor] = {}
    if rule == "gated":
        extra, bias = gate(found, "r_mag", "b_gate", "b_mag"), found["b_gate"]
    elif rule == "jumprelu":
        extra = {"threshold": found["threshold"]}
    if told.get("rescale_acts_by_decoder_norm"):  # the rule sees what each latent will add, not its bare coordinate
        norms = decoder.norm(dim=1)
        encoder, decoder, bias = (
            encoder * norms[:, None],
            decoder / norms[:, None],
            None if bias is None else bias * norms,
        )
    centred = not transcodes and bool(told.get("apply_b_dec_to_input", True))
    rest = {
        "encoder_bias": bias, "decoder_bias": found["b_dec"], "center": found["b_dec"] if centred else None,
        "skip": found["W_skip"].T if "W_skip" in found else None,
    }  # fmt: skip
    made = assembled(architecture, rule, encoder, decoder, rest, int(told.get("k") or 0), extra)
    made = _normalised(made, str(told.get("normalize_activations", "none")), folder)
    site = str(meta.get("hook_name") or meta.get("hook_point") or "")
    written = str(meta.get("hook_name_out") or "") if transcodes else ""
    card = placed(
        site, written, made.width, made.out_width, str(meta.get("model_name") or ""), f"SAELens, {folder.name}"
    )
    return [made.but(card=card)]


_SAE_LENS_RULES = {
    "standard": "relu", "topk": "topk", "abstopk": "abs-topk", "batchtopk": "topk", "jumprelu": "jumprelu",
    "matryoshka_batchtopk": "topk", "gated": "gated", "transcoder": "relu", "skip_transcoder": "relu",
    "jumprelu_transcoder": "jumprelu", "jumprelu_skip_transcoder": "jumprelu",
}  # fmt: skip
_AUTOENCODERS = frozenset(name for name in _SAE_LENS_RULES if "transcoder" not in name)
# Factors for the whole data set are folded into the weights by those who save them, so that nothing is left to do.
_SAE_LENS_ROWS = {
    "none": "", "False": "", "expected_average_only_in": "", "covariance_whitening": "", "None": "",
    "layer_norm": "standard", "constant_norm_rescale": "length",
}  # fmt: skip


def _normalised(made: Dictionary, how: str, folder: Path) -> Dictionary:
    if how not in _SAE_LENS_ROWS:
        raise FormatError(f"{folder} normalises activations by '{how}', which is not known here.")
    if _SAE_LENS_ROWS[how] and made.kind not in _AUTOENCODERS:
        raise FormatError(
            f"The transcoder in {folder} normalises what it reads by '{how}', and leaves what it writes as it is, "
            "which no dictionary here does; train one without."
        )
    if _SAE_LENS_ROWS[how] != "standard":
        return made.but(per_row=_SAE_LENS_ROWS[how])
    return made.but(weights=refitted(made.weights, ((made.width - 1) / made.width) ** 0.5), per_row="standard")


def refitted(weights: Tensors, factor: float) -> dict[str, Tensor]:
    """Weights for rows that are now larger by one over `factor`, and outputs that are multiplied by it afterwards:
    spreads with and without Bessel's correction differ so."""
    powers = {"encoder": factor, "decoder": 1 / factor, "decoder_bias": 1 / factor, "center": 1 / factor}
    return {name: tensor * powers.get(name, 1.0) for name, tensor in weights.items()}


# ---- dictionary_learning


def _dictionary_learning(folder: Path) -> list[Dictionary]:
    found = tensors_in(folder / "ae.pt")
    told = settings(folder / "config.json").get("trainer", {}) if (folder / "config.json").is_file() else {}
    name = str(told.get("dict_class", "")) or _named_by(found)
    if name not in _DICTIONARY_LEARNING:
        raise FormatError(
            f"{folder} holds a '{name}', and of dictionary_learning these are read: {', '.join(_DICTIONARY_LEARNING)}."
        )
    bias = found.get("b_enc", found.get("encoder.bias"))
    if "W_enc" in found:
        encoder, decoder = found["W_enc"].T, found["W_dec"]
    else:
        encoder, decoder = found["encoder.weight"], found["decoder.weight"].T
    rule, center = _DICTIONARY_LEARNING[name]
    out = next(found[key] for key in ("b_dec", "bias", "decoder_bias", "decoder.bias") if key in found)
    extra: dict[str, Tensor] = {}
    if rule == "gated":
        extra, bias = gate(found, "r_mag", "gate_bias", "mag_bias"), found["gate_bias"]
    elif rule == "jumprelu":
        extra = {"threshold": found["threshold"].expand(len(encoder)).clone()}
    k = int(found["k"]) if "k" in found else int(told.get("k") or 0)
    rest = {"encoder_bias": bias, "decoder_bias": out, "center": out if center else None}
    made = assembled(name, rule, encoder, decoder, rest, k, extra)
    site, network = str(told.get("submodule_name") or ""), str(told.get("lm_name") or "")
    return [made.but(card=placed(site, "", made.width, made.out_width, network, f"dictionary_learning, {folder.name}"))]


# The rule of each class, and whether the bias of its decoder is subtracted from what is encoded.
_DICTIONARY_LEARNING = {
    "AutoEncoder": ("relu", True), "AutoEncoderNew": ("relu", False), "GatedAutoEncoder": ("gated", True),
    "AutoEncoderTopK": ("topk", True), "BatchTopKSAE": ("jumprelu", True), "MatryoshkaBatchTopKSAE": ("jumprelu", True),
    "JumpReluAutoEncoder": ("jumprelu", False),
}  # fmt: skip


def _named_by(found: Tensors) -> str:
    """The class that a file without settings was written by, as its tensors tell."""
    marks = {
        "r_mag": "GatedAutoEncoder", "group_sizes": "MatryoshkaBatchTopKSAE", "W_enc": "JumpReluAutoEncoder",
        "k": "a top-k dictionary whose config.json is missing", "bias": "AutoEncoder", "decoder.bias": "AutoEncoderNew",
    }  # fmt: skip
    return next((name for mark, name in marks.items() if mark in found), "dictionary of an unknown class")


# ---- sparsify, Gemma Scope, circuit-tracer


def _sparsify(folder: Path) -> list[Dictionary]:
    told, found = settings(folder / "cfg.json"), tensors_in(folder / "sae.safetensors")
    rule = {"topk": "topk", "groupmax": "groupmax"}.get(str(told.get("activation", "topk")))
    if rule is None:
        raise FormatError(
            f"{folder} has the activation '{told.get('activation')}', which sparsify had not when this was written."
        )
    transcodes = bool(told.get("transcode"))
    rest = {
        "encoder_bias": found["encoder.bias"], "decoder_bias": found["b_dec"],
        "center": None if transcodes else found["b_dec"], "skip": found["W_skip"].T if "W_skip" in found else None,
    }  # fmt: skip
    made = assembled(rule, rule, found["encoder.weight"], found["W_dec"], rest, int(told["k"]))
    read, written = ("", folder.name) if transcodes else (folder.name, "")  # its input has no name there
    return [made.but(card=placed(read, written, made.width, made.out_width, "", f"sparsify, {folder.name}"))]


def _gemma_scope(file: Path) -> list[Dictionary]:
    found = {name.lower(): tensor for name, tensor in tensors_in(file).items()}
    skip = found.get("affine_skip_connection")
    rest = {"encoder_bias": found["b_enc"], "decoder_bias": found["b_dec"], "skip": skip}
    extra = {"threshold": found["threshold"]}
    made = assembled("jumprelu", "jumprelu", found["w_enc"].T, found["w_dec"], rest, extra=extra)
    return [made.but(card=placed("", "", made.width, made.out_width, "", f"Gemma Scope, {file.name}"))]


def _transcoder_set(folder: Path) -> list[Dictionary]:
    told, made = _hooks(folder), []
    for layer, file in enumerate(_numbered(folder, "layer_{}.safetensors")):
        found = tensors_in(file)
        threshold = found.get("activation_function.threshold", found.get("threshold"))
        skip = found["W_skip"].T if "W_skip" in found else None
        rest = {"encoder_bias": found["b_enc"], "decoder_bias": found["b_dec"], "skip": skip}
        extra = {} if threshold is None else {"threshold": threshold}
        rule = "jumprelu" if extra else "relu"
        one = assembled("transcoder", rule, found["W_enc"], found["W_dec"], rest, extra=extra)
        ends = [f"blocks.{layer}.{told[end]}" for end in ("feature_input_hook", "feature_output_hook")]
        source = f"circuit-tracer, {folder.name}"
        made.append(one.but(card=placed(ends[0], ends[1], one.width, one.out_width, told["model_name"], source)))
    return made


def _cross_layer(folder: Path) -> list[Dictionary]:
    told, made = _hooks(folder), []
    files = _numbered(folder, "W_enc_{}.safetensors")
    for layer, file in enumerate(files):
        found, decoders = tensors_in(file), tensors_in(folder / f"W_dec_{layer}.safetensors")
        table = decoders[f"W_dec_{layer}"]  # [latents, layers from here on, d]
        if table.ndim != 3 or table.shape[1] != len(files) - layer:
            raise FormatError(
                f"W_dec_{layer} in {folder} has shape {tuple(table.shape)}; it writes {len(files) - layer} layers."
            )
        width, threshold = table.shape[2], found.get(f"threshold_{layer}")
        bias = torch.cat([found[f"b_dec_{layer}"], found[f"b_dec_{layer}"].new_zeros((table.shape[1] - 1) * width)])
        rest = {"encoder_bias": found[f"b_enc_{layer}"], "decoder_bias": bias}
        extra = {} if threshold is None else {"threshold": threshold}
        rule = "jumprelu" if extra else "relu"
        one = assembled("cross-layer transcoder", rule, found[f"W_enc_{layer}"], table.flatten(1), rest, extra=extra)
        reads = (Place(f"blocks.{layer}.{told['feature_input_hook']}", one.width),)
        later = range(layer, len(files))
        writes = tuple(Place(f"blocks.{to}.{told['feature_output_hook']}", width) for to in later)
        made.append(one.but(card=Card(reads, writes, told["model_name"], source=f"circuit-tracer, {folder.name}")))
    return made


def _hooks(folder: Path) -> dict[str, str]:
    """The lines `name: value` of a config.yaml that say where transcoders stand; nothing else of it is needed."""
    told = {"feature_input_hook": "hook_resid_mid", "feature_output_hook": "hook_mlp_out", "model_name": ""}
    file = folder / "config.yaml"
    if file.is_file():
        text = read_range(file, 0, min(file.stat().st_size, 1 << 20)).decode("utf-8", "replace")
        for name, value in re.findall(r"^(\w+):[ \t]*[\"']?([\w./@-]+)[\"']?[ \t]*$", text, re.MULTILINE):
            if name in told:
                told[name] = value
    return told


def _numbered(folder: Path, pattern: str) -> list[Path]:
    """The files 0, 1, 2 ... of a folder. Raises FormatError when one between them is missing."""
    count = len(list(folder.glob(pattern.replace("{}", "*"))))
    files = [folder / pattern.format(number) for number in range(count)]
    if missing := next((file for file in files if not file.is_file()), None):
        raise FormatError(f"{folder} lacks {missing.name}, though it has later layers; get it again.")
    return files


# ---- the table


@dataclass(frozen=True)
class Reader:
    """Files of a library: what they are called, how they are recognised, and how they become dictionaries."""

    name: str
    recognised: Callable[[Path], bool]
    read: Callable[[Path], list[Dictionary]]


def _has(*names: str) -> Callable[[Path], bool]:
    return lambda path: path.is_dir() and all((path / name).is_file() for name in names)


READERS = (
    Reader("SAELens", _has("cfg.json", "sae_weights.safetensors"), _sae_lens),
    Reader("sparsify", _has("cfg.json", "sae.safetensors"), _sparsify),
    Reader("dictionary_learning", _has("ae.pt"), _dictionary_learning),
    Reader("a transcoder set of circuit-tracer", _has("layer_0.safetensors"), _transcoder_set),
    Reader("a cross-layer transcoder of circuit-tracer", _has("W_enc_0.safetensors"), _cross_layer),
    Reader("Gemma Scope", lambda path: path.is_file() and path.suffix == ".npz", _gemma_scope),
    Reader("Gemma Scope 2", _has("params.safetensors"), lambda path: _gemma_scope(path / "params.safetensors")),
)


def read_foreign(path: Path) -> list[Dictionary]:
    """The dictionaries in another library's files, one for each layer that is read.

    Raises FormatError for files of no known library, or that lack what their library writes.
    """
    reader = next((reader for reader in READERS if reader.recognised(path)), None)
    if reader is None:
        names = ", ".join(reader.name for reader in READERS)
        raise FormatError(f"{str(path)!r} holds no dictionary that is known here: of Cutaway's own, or of {names}.")
    try:
        return reader.read(path)
    except KeyError as error:
        raise FormatError(f"{str(path)!r} looks like {reader.name}, and lacks {error}; get it again.") from None
    except (InputError, TypeError, ValueError, RuntimeError, AttributeError) as error:
        raise FormatError(f"{str(path)!r} looks like {reader.name}, and is damaged: {error}") from None
