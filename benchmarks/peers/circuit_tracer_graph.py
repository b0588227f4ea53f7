"""circuit-tracer: CPU time of one attribution graph in forwards of the plain network, one thread.

    PYTHON benchmarks/peers/circuit_tracer_graph.py TOKENS LATENTS TOPK MOST [--load GRAPH.json]

The network has GPT-2-small's shape and random weights, its transcoders are random. Building the replacement model is
not counted. It leaves the first position out, as it always does. With --load nothing is measured: a graph file is read
by the types with which circuit-tracer writes and serves such files.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from importlib.metadata import version
from typing import Any

import torch


class _Tokens:
    """As much of a tokenizer as is asked for."""

    bos_token_id = cls_token_id = pad_token_id = eos_token_id = 0
    all_special_ids = (0,)
    padding_side = "right"
    vocab_size = 50257

    def decode(self, ids: Any, **options: Any) -> str:
        return str(ids)


def loaded(path: str) -> dict[str, Any]:
    """A graph file through circuit-tracer's own types."""
    from circuit_tracer.frontend.graph_models import Model

    with open(path, encoding="utf-8") as file:
        made = Model(**json.load(file))
    return {"nodes": len(made.nodes), "links": len(made.links), "supernodes": len(made.qParams.supernodes)}


def measured(tokens: int, latents: int, k: int, most: int) -> dict[str, Any]:
    """The graph's cost."""
    from circuit_tracer import attribute
    from circuit_tracer.replacement_model.replacement_model_transformerlens import TransformerLensReplacementModel
    from circuit_tracer.transcoder.activation_functions import TopK
    from circuit_tracer.transcoder.single_layer_transcoder import SingleLayerTranscoder, TranscoderSet
    from transformer_lens import HookedTransformerConfig
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    torch.manual_seed(0)
    plain = GPT2LMHeadModel(GPT2Config()).eval()
    ids = torch.randint(1, 50257, (1, tokens))
    ids[0, 0] = 0
    times = []
    with torch.no_grad():
        for _ in range(9):
            start = time.process_time()
            plain(ids)
            times.append(time.process_time() - start)
    forward = statistics.median(times[2:])
    del plain
    config = HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LN", model_name="gpt2", device="cpu", seed=0,
    )  # fmt: skip
    layers = {}
    for layer in range(12):
        made = SingleLayerTranscoder(768, latents, TopK(k), layer, device=torch.device("cpu"), dtype=torch.float32)
        with torch.no_grad():
            made.W_enc.normal_(0, 768**-0.5)
            made.W_dec.normal_(0, 0.1)
        layers[layer] = made
    transcoders = TranscoderSet(layers, "ln2.hook_normalized", "hook_mlp_out", scan="random")
    model = TransformerLensReplacementModel.from_config(config, transcoders)
    model.tokenizer = _Tokens()
    start = time.process_time()
    graph = attribute(ids[0], model, max_feature_nodes=most or None, verbose=False)
    spent = time.process_time() - start
    return {
        "name": f"circuit-tracer {version('circuit-tracer')}", "forwards": spent / forward, "forward_s": forward,
        "nodes": len(graph.selected_features),
    }  # fmt: skip


if __name__ == "__main__":
    if sys.argv[1] == "--load":
        print(json.dumps(loaded(sys.argv[2])))
    else:
        print(json.dumps(measured(*(int(word) for word in sys.argv[1:5]))))
