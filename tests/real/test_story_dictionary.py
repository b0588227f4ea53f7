"""A dictionary of a real language model, on stories that it was not trained on, beside dictionaries of noise."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cutaway as cw
from cutaway.features import InMemory
from cutaway.features.evaluate import evaluate_dictionary
from cutaway.features.train import train_dictionary

pytestmark = pytest.mark.slow


def test_a_trained_dictionary_beats_controls_where_it_should(shared_data: Path) -> None:
    folder = shared_data / "lm-stories260k" / "hf"
    if not folder.is_dir():
        pytest.skip(f"no story model at {folder}")
    net = cw.open(folder, name="stories260K")
    torch.manual_seed(0)
    begun = torch.ones(160, 1, dtype=torch.long)
    with torch.no_grad():
        stories = net.module.generate(
            begun, attention_mask=torch.ones_like(begun), max_new_tokens=63, min_new_tokens=63, do_sample=True, top_k=0,
            pad_token_id=2,
        )  # fmt: skip
    value = net.record(stories, keep=["resid.3"]).value("resid.3")
    learn, held = (InMemory({"resid.3": part.flatten(0, 1)}, {}, net.fingerprint) for part in (value[32:], value[:32]))
    seeds = [train_dictionary(learn, 256, 8, samples=80_000, seed=seed) for seed in range(2)]
    capital = torch.tensor([net.token_text(int(token)).strip()[:1].isupper() for token in stories[:32].flatten()])
    found = evaluate_dictionary(
        seeds[0], held, net=net, inputs=stories[:32], labels={"capital": capital}, seeds=seeds[1:]
    )
    for name in ("FVU", "loss recovered (zero)", "loss recovered (mean)", "added loss", "cosine"):
        figure = found.figure(name)
        blind = [figure.controls[one] for one in ("random", "data", "PCA")]
        better = max if figure.better == "higher" else min
        assert better(figure.value, *blind) == figure.value, name
        assert figure.low <= figure.value <= figure.high
    assert "next-token cross-entropy" in found.figure("added loss").how
    assert found.figure("loss recovered (mean)").value > 0.8 and found.figure("downstream KL").value < 1
    assert found.figure("matched cosine").value > found.figure("matched cosine").controls["random"]
    assert found.figure("5-sparse probe AUROC").value > 0.6
    assert found.figure("5-sparse probe AUROC").controls["probe"] > 0.95
