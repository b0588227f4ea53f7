"""nnsight on the jobs of benchmarks/substrate.py, in an environment of its own.

    python nnsight_substrate.py THREADS ROUNDS

Prints one line of JSON: {job: {"nnsight VERSION": figure}}, figures in plain forwards of the same model (CPU time). One
patch a trace, as its tutorial does it.
"""

import json
import statistics
import sys
import time

import nnsight
import torch
import transformers
from nnsight import NNsight

LAYERS, TOKENS, HEADS, WIDTH = 12, 20, 12, 64


def timed(job):
    start = time.process_time()
    job()
    return time.process_time() - start


def main():
    threads, rounds = int(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config()).eval()
    wrapped = NNsight(model)
    prompt = torch.randint(0, 50257, (1, TOKENS))
    source = {}

    def plain():
        with torch.no_grad():
            model(prompt, use_cache=False)

    def one():
        with torch.no_grad(), wrapped.trace(prompt, use_cache=False):
            kept = wrapped.transformer.h[3].output.save()
        return kept

    def every():
        saved = []
        with torch.no_grad(), wrapped.trace(prompt, use_cache=False):
            for layer in wrapped.transformer.h:
                saved.append(layer.ln_1.output.save())
                saved.append(layer.attn.output.save())
                saved.append(layer.ln_2.output.save())
                saved.append(layer.mlp.output.save())
                saved.append(layer.output.save())
        return saved

    def positions():
        for layer in (0, 5, 11):
            for place in (5, 12, 19):
                with torch.no_grad(), wrapped.trace(prompt, use_cache=False):
                    hidden = wrapped.transformer.h[layer].input
                    hidden[:, place] = source["resid"][:, place]
                    wrapped.lm_head.output[:, -1].save()

    def heads():
        for layer in (0, 5, 11):
            for head in (0, 5, 11):
                with torch.no_grad(), wrapped.trace(prompt, use_cache=False):
                    z = wrapped.transformer.h[layer].attn.c_proj.input
                    z[:, :, head * WIDTH : (head + 1) * WIDTH] = source["z"][:, :, head * WIDTH : (head + 1) * WIDTH]
                    wrapped.lm_head.output[:, -1].save()

    source["resid"] = torch.randn(1, TOKENS, 768)
    source["z"] = torch.randn(1, TOKENS, 768)
    jobs = {
        "record, one site kept": (one, 1),
        "record, every site kept": (every, 1),
        "patch layer x position": (positions, 9),
        "patch every head": (heads, 9),
    }
    found, failed = {}, {}
    plain()
    for name, (job, count) in jobs.items():
        try:
            job()
        except Exception as error:  # noqa: BLE001 - the peer's failure is its result
            failed[name] = f"{type(error).__name__}: {error}"[:120]
            continue
        ratios = []
        for _ in range(rounds):
            before = timed(plain)
            took = timed(job)
            ratios.append(took / count / ((before + timed(plain)) / 2))
        found[name] = {f"nnsight {nnsight.__version__}": round(statistics.median(ratios), 3)}
    for name, reason in failed.items():
        found[name] = {f"nnsight {nnsight.__version__}": reason}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
