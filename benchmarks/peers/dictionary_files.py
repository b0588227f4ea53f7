"""Dictionaries as other libraries write them, with random weights, and what each makes of random rows; SAELens reading.

PYTHON benchmarks/peers/dictionary_files.py write FOLDER     by every library that this interpreter has
PYTHON benchmarks/peers/dictionary_files.py read FOLDER      by SAELens: prints the largest relative differences
"""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

ROWS, D, M, K = 40, 16, 48, 6


def randomised(module: nn.Module) -> nn.Module:
    for name, parameter in module.named_parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
        if "threshold" in name:
            parameter.data.abs_()
    return module.eval()


def noted(folder: Path, x: torch.Tensor, y: torch.Tensor) -> None:
    save_file({"x": x, "y": y.contiguous()}, folder / "io.safetensors")


def sae_lens(folder: Path) -> None:
    from sae_lens.registry import get_sae_class

    autoencoders, transcoders = ("standard", "gated", "topk", "abstopk", "jumprelu"), ("transcoder", "skip_transcoder")
    for name in (*autoencoders, *transcoders, "jumprelu_transcoder", "jumprelu_skip_transcoder"):
        kind, settings = get_sae_class(name)
        for rows in ("none", "layer_norm", "constant_norm_rescale") if name in autoencoders else ("none",):
            for centred in (True, False) if name in autoencoders else (False,):
                for rescaled in (True, False) if "topk" in name else (False,):
                    more = {"k": K, "rescale_acts_by_decoder_norm": rescaled} if "topk" in name else {}
                    more |= {"d_out": 12} if "transcoder" in name else {}
                    made = randomised(
                        kind(
                            settings(d_in=D, d_sae=M, apply_b_dec_to_input=centred, normalize_activations=rows, **more)
                        )
                    )
                    place = folder / f"sae-lens-{name}-{rows}-{centred}-{rescaled}"
                    made.save_model(place)
                    x = torch.randn(ROWS, D) * 3 + 1
                    noted(place, x, made(x))


def dictionary_learning(folder: Path) -> None:
    from dictionary_learning import dictionary
    from dictionary_learning.trainers.batch_top_k import BatchTopKSAE
    from dictionary_learning.trainers.matryoshka_batch_top_k import MatryoshkaBatchTopKSAE
    from dictionary_learning.trainers.top_k import AutoEncoderTopK

    plain = ("AutoEncoder", "AutoEncoderNew", "GatedAutoEncoder", "JumpReluAutoEncoder")
    made = [getattr(dictionary, name)(D, M) for name in plain]
    made += [AutoEncoderTopK(D, M, K), BatchTopKSAE(D, M, K), MatryoshkaBatchTopKSAE(D, M, K, [16, 32])]
    for one in map(randomised, made):
        if isinstance(getattr(one, "threshold", None), torch.Tensor):
            one.threshold.data.fill_(0.4)
        name = type(one).__name__
        place = folder / f"dictionary-learning-{name}"
        place.mkdir()
        torch.save(one.state_dict(), place / "ae.pt")
        (place / "config.json").write_text(json.dumps({"trainer": {"dict_class": name, "k": K}}))
        x = torch.randn(ROWS, D)
        noted(place, x, one(x))


def sparsify(folder: Path) -> None:
    from sparsify.config import SparseCoderConfig
    from sparsify.sparse_coder import SparseCoder

    for activation in ("topk", "groupmax"):
        for transcode in (False, True):
            for skip in (False, True):
                settings = SparseCoderConfig(
                    activation=activation, num_latents=M, k=K, transcode=transcode, skip_connection=skip
                )
                made = randomised(SparseCoder(D, settings))
                place = folder / f"sparsify-{activation}-{transcode}-{skip}"
                made.save_to_disk(place)
                x = torch.randn(ROWS, D)
                noted(place, x, made(x).sae_out)


def circuit_tracer(folder: Path) -> None:
    from circuit_tracer.transcoder.activation_functions import JumpReLU
    from circuit_tracer.transcoder.cross_layer_transcoder import CrossLayerTranscoder
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet

    where = {"device": torch.device("cpu"), "dtype": torch.float32}
    for jump in (False, True):
        for skip in (False, True):
            parts = {}
            for layer in range(3):
                rule = JumpReLU(torch.rand(M)) if jump else nn.functional.relu
                parts[layer] = randomised(SingleLayerTranscoder(D, M, rule, layer, skip_connection=skip, **where))
            made = TranscoderSet(parts, "hook_resid_mid", "hook_mlp_out")
            place = folder / f"circuit-tracer-{jump}-{skip}"
            made.to_safetensors(str(place))
            x = torch.randn(3, ROWS, D)
            noted(place, x, made.decode(made.encode(x), x))
        rule = "jump_relu" if jump else "relu"
        crossed = randomised(CrossLayerTranscoder(3, M, D, activation_function=rule, lazy_decoder=False, **where))
        place = folder / f"circuit-tracer-cross-{jump}"
        place.mkdir()
        for layer in range(3):
            told = {"W_enc": crossed.W_enc, "b_enc": crossed.b_enc, "b_dec": crossed.b_dec}
            told |= {"threshold": crossed.activation_function.threshold[:, 0]} if jump else {}
            encoder = {f"{name}_{layer}": value[layer].data.clone() for name, value in told.items()}
            save_file(encoder, place / f"W_enc_{layer}.safetensors")
            save_file({f"W_dec_{layer}": crossed.W_dec[layer].data.clone()}, place / f"W_dec_{layer}.safetensors")
        x = torch.randn(3, ROWS, D)
        noted(place, x, crossed.decode(crossed.encode(x)))


LIBRARIES = (sae_lens, dictionary_learning, sparsify, circuit_tracer)


def main() -> None:
    torch.manual_seed(0)
    verb, folder = sys.argv[1], Path(sys.argv[2])
    with torch.no_grad():
        if verb == "write":
            for library in LIBRARIES:
                if importlib.util.find_spec(library.__name__):
                    library(folder)
            return
        from sae_lens import SAE

        worst = {}
        for place in sorted(folder.iterdir()):
            io = load_file(place / "io.safetensors")
            made = SAE.load_from_disk(place)(io["x"])
            worst[place.name] = float((made - io["y"]).abs().max() / io["y"].abs().max())
        print(json.dumps(worst))


if __name__ == "__main__":
    main()
