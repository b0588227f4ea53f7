"""Writing dictionaries as SAELens reads them: a folder with cfg.json and sae_weights.safetensors, of version 6."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
from safetensors.torch import save
from torch import Tensor

from ..errors import FormatError
from ..formats.writing import write_whole
from .dictionary import Dictionary
from .foreign import refitted

# By rule and by whether it is an autoencoder: what SAELens calls it.
_ARCHITECTURES = {
    ("relu", True): "standard", ("topk", True): "topk", ("abs-topk", True): "abstopk", ("jumprelu", True): "jumprelu",
    ("gated", True): "gated", ("relu", False): "transcoder", ("jumprelu", False): "jumprelu_transcoder",
}  # fmt: skip
_WITH_SKIP = {"transcoder": "skip_transcoder", "jumprelu_transcoder": "jumprelu_skip_transcoder"}
_ROWS = {"": "none", "standard": "layer_norm", "length": "constant_norm_rescale"}
VERSION = "6.0.0"  # the first whose settings look like this


def save_sae_lens(dictionary: Dictionary, folder: str | Path) -> Path:
    """Write a dictionary for SAELens. What is subtracted before encoding goes into the encoder's bias.

    Raises FormatError for one that SAELens has no architecture for, ResourceError when it cannot be written.
    """
    card, encodes_itself = dictionary.card, dictionary.card.same_place and dictionary.width == dictionary.out_width
    architecture = _ARCHITECTURES.get((dictionary.activation, encodes_itself))
    if architecture is not None and "skip" in dictionary.weights:
        architecture = _WITH_SKIP.get(architecture)
    if dictionary.per_row and not encodes_itself:
        architecture = None  # its transcoders do not normalise what they write
    if architecture is None or max(len(card.reads), len(card.writes)) > 1:
        what = f"'{dictionary.activation}', {'an autoencoder' if encodes_itself else 'a transcoder'}"
        raise FormatError(f"SAELens has no architecture for this dictionary ({what}); save it in Cutaway's own format.")
    settings: dict[str, Any] = {
        "d_in": dictionary.width, "d_sae": dictionary.latents, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": False, "normalize_activations": _ROWS[dictionary.per_row],
        "reshape_activations": "none", "architecture": architecture,
    }  # fmt: skip
    settings |= {} if encodes_itself else {"d_out": dictionary.out_width}
    settings |= {"k": dictionary.k} if architecture in ("topk", "abstopk") else {}
    site = card.reads[0].site if card.reads else ""
    written = card.writes[0].site if card.writes else ""
    settings["metadata"] = {
        "sae_lens_version": VERSION, "model_name": card.network, "hook_name": site,
        **({} if encodes_itself else {"hook_name_out": written}), "cutaway": card.to_dict(),
    }  # fmt: skip
    folder = Path(folder)
    tensors = {
        name: tensor.detach().cpu().float().clone().contiguous() for name, tensor in _tensors(dictionary).items()
    }
    write_whole(folder / "sae_weights.safetensors", save(tensors))
    write_whole(folder / "cfg.json", msgspec.json.format(msgspec.json.encode(settings)))
    return folder


def _tensors(dictionary: Dictionary) -> dict[str, Tensor]:
    """The tensors by SAELens' names."""
    weights = dict(dictionary.weights)
    if dictionary.per_row == "standard":  # SAELens' spread has Bessel's correction
        weights = refitted(weights, (dictionary.width / (dictionary.width - 1)) ** 0.5)
    encoder, decoder = weights["encoder"], weights["decoder"]
    bias = weights.get("encoder_bias", encoder.new_zeros(len(encoder)))
    if "center" in weights:
        bias = bias - encoder @ weights["center"]
    found = {
        "W_enc": encoder.T, "W_dec": decoder, "b_enc": bias,
        "b_dec": weights.get("decoder_bias", decoder.new_zeros(decoder.shape[1])),
    }  # fmt: skip
    if "skip" in weights:
        found["W_skip"] = weights["skip"].T
    if dictionary.activation == "jumprelu":
        found["threshold"] = dictionary.extra["threshold"].clamp(min=0)
    if dictionary.activation == "gated":
        scale = dictionary.extra["scale"]
        del found["b_enc"]
        found |= {"b_gate": bias, "r_mag": scale.log(), "b_mag": dictionary.extra["magnitude_bias"] + scale * bias}
    return found
