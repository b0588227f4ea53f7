"""Classical decompositions as dictionaries: the same interface, the same files, the same evaluation as a sparse
autoencoder. scikit-learn finds them; how a row's coordinates are made again is known from the method."""

from __future__ import annotations

import importlib.metadata
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..errors import InputError, ResourceError
from .card import Card
from .controls import SAMPLES, principal
from .dictionary import Dictionary, concatenated, fvu
from .rows import Rows

Fit = Callable[[np.ndarray, int, int, int], Dictionary]  # of rows, latents, k and seed


def fit_dictionary(
    rows: Rows, latents: int, kind: str, *, k: int | None = None, seed: int = 0, samples: int = SAMPLES
) -> Dictionary:
    """A classical decomposition of rows (several places side by side) as a dictionary of `latents` directions.

    kinds: "pca"; "ica" (FastICA, Hyvärinen and Oja 2000); "nmf" (Lee and Seung 1999); "factor-analysis"; "k-means";
    "sparse-coding" (online dictionary learning, Mairal et al. 2009), whose codes are `k` atoms (a 16th of the width,
    at least one, when left out) by orthogonal matching pursuit. At most `samples` rows are used, drawn by `seed`.

    Raises InputError for what cannot be: an unknown kind, more latents than a method can have, too few rows, negative
    numbers for NMF; ResourceError when scikit-learn is not installed.
    """
    if kind not in KINDS:
        raise InputError(f"There is no classical decomposition '{kind}'; there is {', '.join(KINDS)}.")
    method = KINDS[kind]
    values = rows.sample(samples, seed=seed)
    value = concatenated(values, tuple(values))
    count, width = value.shape
    if latents < 1:
        raise InputError(f"A dictionary of {latents} latents is none; give at least one.")
    if method.complete and latents > width:
        raise InputError(
            f"'{kind}' finds at most as many latents as a row has numbers ({width}), and {latents:,} were asked for; "
            "ask for fewer, or take 'sparse-coding' or 'k-means'."
        )
    if count < latents:
        raise InputError(f"{count:,} rows cannot give {latents:,} latents; give more rows or ask for fewer latents.")
    if method.positive and bool((value < 0).any()):
        raise InputError(
            f"'{kind}' is for numbers that are never negative, and {float((value < 0).float().mean()):.0%} of these "
            "are; take a site after a ReLU, or 'sparse-coding', which has no such limit."
        )
    found = method.fit(value.double().numpy(), latents, k or max(width // 16, 1), seed)
    pieces = list(found.reconstructions(value))
    reference = {
        "l0": sum(len(codes.latents) for codes, _ in pieces) / count,
        "fvu": fvu(value, torch.cat([part for _, part in pieces])),
        "norm": float(value.norm(dim=1).mean()), "rows": count,
    }  # fmt: skip
    training = {"method": kind, "seed": seed, "samples": count, "latents": latents, "k": found.k}
    return found.but(
        card=Card(
            rows.places, rows.places, reference=reference, data=dict(rows.manifest),
            training=training | found.card.training, versions=_versions(),
        )
    )  # fmt: skip


def _versions() -> dict[str, str]:
    names = ("torch", "scikit-learn")
    return {"cutaway": __version__, **{name: importlib.metadata.version(name) for name in names}}


def _learn(name: str, part: str, **options: Any) -> Any:
    """A class of scikit-learn, made."""
    try:
        module = importlib.import_module(f"sklearn.{part}")
    except ImportError:
        raise ResourceError(
            "Classical decompositions need scikit-learn, which is not installed; pip install cutaway[analysis]."
        ) from None
    return getattr(module, name)(**options)


@contextmanager
def _quietly(told: dict[str, Any]) -> Iterator[None]:
    """Notes in `told` whether a method that iterates came to its end, which scikit-learn says as a warning."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    told["converged"] = not any("onverge" in str(one.message) for one in caught)


def _fitted(model: Any, rows: np.ndarray) -> tuple[Any, dict[str, Any]]:
    told: dict[str, Any] = {}
    with _quietly(told):
        model.fit(rows)
    return model, told


def _single(array: np.ndarray) -> Tensor:
    return torch.tensor(np.ascontiguousarray(array), dtype=torch.float32)


def _made(kind: str, rule: str, k: int, told: dict[str, Any], **weights: np.ndarray) -> Dictionary:
    tensors = {name: _single(array) for name, array in weights.items()}
    return Dictionary(kind, rule, tensors, k, card=Card(training=told))


def _pca(rows: np.ndarray, latents: int, k: int, seed: int) -> Dictionary:
    center, axes, _ = (part.numpy() for part in principal(torch.tensor(rows), latents))
    return _made("pca", "identity", 0, {}, encoder=axes, decoder=axes, center=center, decoder_bias=center)


def _ica(rows: np.ndarray, latents: int, k: int, seed: int) -> Dictionary:
    model = _learn("FastICA", "decomposition", n_components=latents, whiten="unit-variance", random_state=seed,
                   max_iter=1000)  # fmt: skip
    model, told = _fitted(model, rows)
    return _made("ica", "identity", 0, told, encoder=model.components_, decoder=model.mixing_.T, center=model.mean_,
                 decoder_bias=model.mean_)  # fmt: skip


def _factors(rows: np.ndarray, latents: int, k: int, seed: int) -> Dictionary:
    """The coordinates are the factors' expected values given the row, a linear map."""
    model, told = _fitted(_learn("FactorAnalysis", "decomposition", n_components=latents, random_state=seed), rows)
    scaled = model.components_ / model.noise_variance_
    expected = np.linalg.solve(np.eye(latents) + scaled @ model.components_.T, scaled)
    return _made("factor-analysis", "identity", 0, told, encoder=expected, decoder=model.components_,
                 center=model.mean_, decoder_bias=model.mean_)  # fmt: skip


def _means(rows: np.ndarray, latents: int, k: int, seed: int) -> Dictionary:
    """The nearest centre is the one with the largest x·c − |c|²/2."""
    model, told = _fitted(_learn("KMeans", "cluster", n_clusters=latents, random_state=seed, n_init=4), rows)
    middle = rows.mean(0)
    centres = model.cluster_centers_ - middle  # about the mean row, for exactness in single precision
    return _made("k-means", "onehot", 1, told, encoder=centres, encoder_bias=-np.square(centres).sum(1) / 2,
                 decoder=centres, center=middle, decoder_bias=middle)  # fmt: skip


def _nonnegative(rows: np.ndarray, latents: int, k: int, seed: int) -> Dictionary:
    model = _learn("NMF", "decomposition", n_components=latents, init="nndsvda", random_state=seed, max_iter=1000)
    model, told = _fitted(model, rows)
    return _made("nmf", "nnls", 0, told, encoder=model.components_, decoder=model.components_)


def _sparse_coding(rows: np.ndarray, latents: int, k: int, seed: int) -> Dictionary:
    """Atoms are learned from LASSO codes of about the wanted sparsity, and used with k of them at a time."""
    middle = rows.mean(0)
    scale = float(np.sqrt(np.square(rows - middle).sum(1).mean()))
    model = _learn("MiniBatchDictionaryLearning", "decomposition", n_components=latents, random_state=seed,
                   fit_algorithm="cd", alpha=scale / k**0.5 / 2, batch_size=256, max_iter=20)  # fmt: skip
    model, told = _fitted(model, rows - middle)
    atoms = model.components_ / np.linalg.norm(model.components_, axis=1, keepdims=True).clip(1e-12)
    return _made("sparse-coding", "omp", min(k, latents), told, encoder=atoms, decoder=atoms, center=middle,
                 decoder_bias=middle)  # fmt: skip


@dataclass(frozen=True)
class _Kind:
    """How it is fitted; whether it has at most as many latents as the width; whether it takes no negative numbers."""

    fit: Fit
    complete: bool = False
    positive: bool = False


KINDS: dict[str, _Kind] = {
    "pca": _Kind(_pca, complete=True),
    "ica": _Kind(_ica, complete=True),
    "nmf": _Kind(_nonnegative, positive=True),
    "factor-analysis": _Kind(_factors, complete=True),
    "k-means": _Kind(_means),
    "sparse-coding": _Kind(_sparse_coding),
}
