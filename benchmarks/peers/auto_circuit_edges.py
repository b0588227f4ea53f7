"""auto-circuit's cost of scoring every edge, for benchmarks/edges.py; runs in an environment of its own.

    PYTHON benchmarks/peers/auto_circuit_edges.py THREADS ROUNDS

GPT-2 small's shape as a HookedTransformer with random weights, queries, keys and values apart; one pair of prompts of
20 tokens. Prints {job: {"auto-circuit VERSION": CPU time in units of its own plain forward}} as JSON.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version

import torch
from auto_circuit.data import PromptDataLoader, PromptDataset
from auto_circuit.prune_algos.mask_gradient import mask_gradient_prune_scores
from auto_circuit.types import AblationType
from auto_circuit.utils.graph_utils import patchable_model
from transformer_lens import HookedTransformer, HookedTransformerConfig

TOKENS, WORDS = 20, 50257


def timed(job: Callable[[], object]) -> float:
    """Seconds of CPU time of one call."""
    start = time.process_time()
    job()
    return time.process_time() - start


def main(threads: int, rounds: int) -> None:
    """Measure and print."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    config = HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=WORDS, act_fn="gelu_new",
        normalization_type="LN", seed=0, use_attn_result=True, use_split_qkv_input=True, use_hook_mlp_in=True,
    )  # fmt: skip
    model = HookedTransformer(config).eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    clean = torch.randint(0, WORDS, (1, TOKENS))
    corrupted = clean.clone()
    corrupted[0, 0] = (corrupted[0, 0] + 1) % WORDS
    plain_model = HookedTransformer(HookedTransformerConfig(**{
        **config.to_dict(), "use_attn_result": False, "use_split_qkv_input": False, "use_hook_mlp_in": False,
    })).eval()  # fmt: skip

    def plain() -> None:
        with torch.no_grad():
            plain_model(clean)

    data = PromptDataset(clean, corrupted, [torch.tensor([3])], [torch.tensor([4])])
    loader = PromptDataLoader(data, seq_len=None, diverge_idx=0, batch_size=1, shuffle=False)
    graph = patchable_model(model, factorized=True, slice_output="last_seq", separate_qkv=True)
    given = {"official_edges": None, "grad_function": "logit", "answer_function": "avg_diff"}
    given |= {"ablation_type": AblationType.RESAMPLE}
    jobs = {
        "EAP, every edge": {"mask_val": 0.0},
        "EAP-IG with 5 steps, every edge": {"integrated_grad_samples": 4},  # 4 give 5 passes
    }
    plain(), plain()
    found = {}
    for name, options in jobs.items():
        mask_gradient_prune_scores(graph, loader, **given, **options)
        ratios = []
        for _ in range(rounds):
            around = [timed(plain)]
            took = timed(lambda: mask_gradient_prune_scores(graph, loader, **given, **options))  # noqa: B023
            around.append(timed(plain))
            ratios.append(took / statistics.mean(around))
        found[name] = {f"auto-circuit {version('auto-circuit')}": round(statistics.median(ratios), 1)}
    print(json.dumps(found))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
