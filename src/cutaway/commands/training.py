"""The verb that trains a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from ..report.train_text import trained
from .verb import Argument, Result, verb

_KINDS = (
    "batchtopk", "topk", "matryoshka", "jumprelu", "gated", "relu", "transcoder", "skip-transcoder",
    "cross-layer-transcoder", "crosscoder",
)  # fmt: skip
NONE: list[str] = []


@verb("train", show=trained, chapter="Features")
def train(
    on: Annotated[str, Argument("A folder of collected activations.", positional=True, shown="FOLDER")],
    latents: Annotated[int, Argument("How many latents it has.", least=1)],
    k: Annotated[float, Argument("How many of them fire on a row, on average.")],
    out: Annotated[str, Argument("The file to write.", shown="FILE")],
    kind: Annotated[str, Argument("What is trained.", choices=_KINDS)] = "batchtopk",
    reads: Annotated[
        list[str], Argument("A site that it reads; the only one when left out, several times for more.", shown="SITE")
    ] = NONE,
    writes: Annotated[
        list[str], Argument("A site that it writes, where that is another (transcoders).", shown="SITE")
    ] = NONE,
    samples: Annotated[
        int, Argument("Rows to train on, repeated where there are fewer; 0: each at least once.", least=0)
    ] = 0,
    seed: Annotated[int, Argument("Of the first weights and of the order of the rows.")] = 0,
    device: Annotated[str, Argument("Where to train, such as cuda.", shown="DEVICE")] = "cpu",
) -> Result:
    """Train a dictionary (a sparse autoencoder, transcoder or crosscoder) on collected activations.

    The number of latents and how many fire on a row are all that it needs. An interrupted training leaves its state
    beside the file; the same command goes on from there.
    """
    import shutil

    from ..features.files import save_dictionary
    from ..features.store import open_activations
    from ..features.train import train_dictionary
    from .progress import report

    state = Path(out).with_name(f"{Path(out).name}.training")
    made = train_dictionary(
        open_activations(on), latents, k, kind=kind, reads=reads or None, writes=writes or None,
        samples=samples or None, seed=seed, folder=state, progress=report, device=device,
    )  # fmt: skip
    save_dictionary(made, out)
    shutil.rmtree(state, ignore_errors=True)
    card: dict[str, Any] = made.card.to_dict()
    return {
        "out": out, "kind": made.kind, "activation": made.activation, "latents": made.latents, "k": k,
        "reads": card["reads"], "writes": card["writes"], "network": made.card.network, "reference": card["reference"],
        "training": card["training"], "versions": card["versions"],
    }  # fmt: skip
