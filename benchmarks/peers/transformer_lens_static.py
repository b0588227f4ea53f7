"""TransformerLens on the jobs of benchmarks/static.py, in an environment of its own.

    python transformer_lens_static.py JOB THREADS

Prints one line of JSON: seconds, and MB beyond what the process held with the model made. JOB is `writes` (each layer's
W_out times W_U, and the six largest and smallest entries of every neuron) or `composition` (all_composition_scores).
"""

import json
import resource
import sys
import time

import torch
from transformer_lens import HookedTransformer, HookedTransformerConfig


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def writes(model):
    found = []
    for block in model.blocks:
        scores = block.mlp.W_out @ model.W_U
        found.append((scores.topk(6), scores.topk(6, largest=False)))
    return found


def main():
    job, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    config = HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LNPre", seed=0,
    )  # fmt: skip
    model = HookedTransformer(config)
    jobs = {"writes": lambda: writes(model), "composition": lambda: model.all_composition_scores("K")}
    before = peak()
    start = time.perf_counter()
    jobs[job]()
    print(json.dumps({"seconds": time.perf_counter() - start, "mb": peak() - before}))


if __name__ == "__main__":
    main()
