"""The verb that evaluates a dictionary."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..formats.reading import file_size, strict_json
from ..report.evaluate_text import evaluated
from .verb import Argument, Result, verb

if TYPE_CHECKING:
    from ..run.network import Network

_LARGEST = 64 << 20  # bytes of a file of labels
NONE: list[str] = []


@verb("evaluate", show=evaluated, chapter="Features")
def evaluate(
    dictionary: Annotated[str, Argument("The dictionary's file or folder.", positional=True)],
    on: Annotated[str, Argument("A folder of collected activations, best of data it was not trained on.")],
    network: Annotated[
        str, Argument("The network: its runs go on with the reconstruction, to see what they lose.", shown="MODEL")
    ] = "",
    texts: Annotated[str, Argument("Inputs of those runs, a file; those collected when left out.", shown="FILE")] = "",
    labels: Annotated[
        str,
        Argument(
            "JSON of concepts to probe for: by name a list of true and false, by row or by example.", shown="FILE"
        ),
    ] = "",
    letters: Annotated[bool, Argument("Probe for the first letter of tokens; needs --network.")] = False,
    other: Annotated[
        list[str],
        Argument("A dictionary of another seed, to match latents with; several times for more.", shown="FILE"),
    ] = NONE,
    samples: Annotated[int, Argument("Rows to evaluate on; as many others fit the controls.", least=4)] = 16_384,
    examples: Annotated[int, Argument("Inputs of spliced runs.", least=1)] = 64,
    seed: Annotated[int, Argument("Of the rows that are drawn, and of random controls.")] = 0,
) -> Result:
    """How good a dictionary is: sparsity, reconstruction, what the network loses, dead latents, concepts, stability.

    Every figure stands beside the same of a random dictionary and of principal components of the same size and L0.
    """
    from ..features.evaluate import evaluate_dictionary
    from ..features.letters import first_letters
    from ..features.opening import load_dictionary
    from ..features.store import open_activations
    from .progress import report
    from .subject import open_model

    if (texts or letters) and not network:
        raise InputError("Texts and letters are for runs of a network; name it with --network.")
    net, rows = open_model(network) if network else None, open_activations(on)
    concepts = {**(_labels(labels) if labels else {}), **(first_letters(net, rows) if net and letters else {})}
    found = evaluate_dictionary(
        load_dictionary(dictionary), rows, net=net,
        inputs=_inputs(net, texts, examples) if net is not None and texts else None,
        labels=concepts, seeds=[load_dictionary(path) for path in other],
        samples=samples, examples=examples, seed=seed, progress=report,
    )  # fmt: skip
    return found.to_dict()


def _inputs(net: Network, path: str, most: int) -> list[dict[str, Any]]:
    """The first examples in a file, by position or keyword."""
    from ..features.data import data_of

    found: list[dict[str, Any]] = []
    for batch in data_of(net, Path(path), limit=most).batches():
        inputs = batch.inputs()
        found += [{name: tensor[row] for name, tensor in inputs.items()} for row in range(len(batch.numbers))]
    return found[:most]


def _labels(path: str) -> dict[str, Any]:
    """Concepts in a file. Raises InputError for anything but lists of truth values or class numbers by name."""
    if file_size(Path(path)) > _LARGEST:
        raise InputError(f"{path!r} is larger than {_LARGEST >> 20} MiB; label fewer rows, or examples instead.")
    found = strict_json(Path(path).read_bytes(), path)
    good = isinstance(found, dict) and all(
        isinstance(given, list) and all(isinstance(one, (bool, int)) for one in given) for given in found.values()
    )
    if not good or not found:
        raise InputError(f"{path!r} must hold concepts by name, each a list of true or false or of class numbers.")
    return found
