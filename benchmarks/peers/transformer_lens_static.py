"""TransformerLens on the jobs of benchmarks/static.py, in an environment of its own.

    python transformer_lens_static.py JOB THREADS

Prints one line of JSON: seconds, and MB beyond what the process held with the model made. JOB is `writes` (each layer's
W_out times W_U, and the six largest and smallest entries of every neuron) or `composition` (all_composition_scores).
"""

import json
import resource
import sys
import tempfile
import time

import torch
import transformers
from tokenizers import Tokenizer, models
from transformer_lens.model_bridge import TransformerBridge


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def writes(model):
    found = []
    for block in model.blocks:
        scores = block.mlp.W_out @ model.W_U
        found.append((scores.topk(6), scores.topk(6, largest=False)))
    return found


def shape():
    """GPT-2 small's shape with random weights, by way of a folder, for that is how a bridge is made without a hub."""
    end = "<|endoftext|>"
    words = Tokenizer(models.WordLevel({end: 0}, unk_token=end))
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, unk_token=end, bos_token=end, eos_token=end, pad_token=end
    )
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        transformers.GPT2LMHeadModel(transformers.GPT2Config()).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        model = TransformerBridge.boot_transformers(folder, device="cpu")
    model.enable_compatibility_mode(no_processing=True)
    return model


def main():
    job, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    model = shape()
    jobs = {"writes": lambda: writes(model), "composition": lambda: model.all_composition_scores("K")}
    before = peak()
    start = time.perf_counter()
    jobs[job]()
    print(json.dumps({"seconds": time.perf_counter() - start, "mb": peak() - before}))


if __name__ == "__main__":
    main()
