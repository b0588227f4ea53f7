"""SAELens writing a middle layer's activations to disk, in an environment of its own.

    python sae_lens_collect.py CONTEXTS LENGTH BATCH

Prints one line of JSON: `ratio`, CPU time of its CacheActivationsRunner over that of transformers' plain forward on the
same number of tokens by the same shape (GPT-2 small, random weights), `own`, over its own model's forward, and `bytes`.
"""

import json
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from datasets import Dataset
from sae_lens import cache_activations_runner as caching
from sae_lens.config import CacheActivationsRunnerConfig
from transformer_lens import HookedTransformer, HookedTransformerConfig

LAYER = 6


def shape():
    """GPT-2 small's shape with random weights, as TransformerLens makes it, with a tokenizer that it can ask."""
    config = HookedTransformerConfig(
        n_layers=12, d_model=768, n_ctx=1024, d_head=64, n_heads=12, d_mlp=3072, d_vocab=50257, act_fn="gelu_new",
        normalization_type="LN", seed=0, device="cpu",
    )  # fmt: skip
    return HookedTransformer(config)


def spent(job):
    start = time.process_time()
    job()
    return time.process_time() - start


def main():
    contexts, length, batch = map(int, sys.argv[1:])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    ids = torch.randint(0, 50257, (contexts, length))
    plain = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    model = shape()
    caching.load_model = lambda **given: model
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        config = CacheActivationsRunnerConfig(
            dataset_path="none", model_name="none", model_batch_size=batch, hook_name=f"blocks.{LAYER}.hook_resid_pre",
            d_in=768, training_tokens=contexts * length, context_size=length, prepend_bos=False, streaming=False,
            shuffle=False, new_cached_activations_path=f"{folder}/out", device="cpu",
            buffer_size_gb=contexts * length * 768 * 4 / 1e9 + 1e-6,  # else it fills two gigabytes in any case
        )  # fmt: skip
        data = Dataset.from_dict({"tokens": ids.tolist()})
        data.set_format("torch")
        runner = caching.CacheActivationsRunner(config, override_dataset=data)
        plain(ids[:batch], use_cache=False)
        forward = spent(lambda: [plain(ids[at : at + batch], use_cache=False) for at in range(0, contexts, batch)])
        own = spent(lambda: [model(ids[at : at + batch]) for at in range(0, contexts, batch)])
        collected = spent(runner.run)
        size = sum(file.stat().st_size for file in Path(f"{folder}/out").rglob("*") if file.is_file())
    print(json.dumps({"ratio": collected / forward, "own": collected / own, "bytes": size}))


if __name__ == "__main__":
    main()
