"""The verb that evaluates a dictionary."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..formats.reading import file_size, strict_json
from ..report.evaluate_text import evaluated
from .verb import Argument, Result, verb

if TYPE_CHECKING:
    from torch import Tensor

    from ..features.store import Activations
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
    inputs: Annotated[
        str,
        Argument("The arrays that were collected, where the folder does not hold them: .npy and so on.", shown="FILE"),
    ] = "",
    texts: Annotated[str, Argument("The texts that were collected, likewise.", shown="FILE")] = "",
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

    if (texts or inputs or letters) and not network:
        raise InputError("Inputs, texts and letters are for runs of a network; name it with --network.")
    net, rows = open_model(network) if network else None, open_activations(on)
    concepts = {**(_labels(labels) if labels else {}), **(first_letters(net, rows) if net and letters else {})}
    found = evaluate_dictionary(
        load_dictionary(dictionary), rows, net=net,
        inputs=None if net is None else _inputs(net, rows, (texts, inputs), examples, seed),
        labels=concepts, seeds=[load_dictionary(path) for path in other],
        samples=samples, examples=examples, seed=seed, progress=report,
    )  # fmt: skip
    return found.to_dict()


def _inputs(
    net: Network, rows: Activations, files: tuple[str, str], most: int, seed: int
) -> list[dict[str, Tensor]] | None:
    """Some of the examples that rows were collected from, by position or keyword; None where they lie with the rows."""
    from ..features import seen
    from .subject import inputs_again

    given = inputs_again(net, rows, *files)
    if given is None:
        return None
    found = seen.inputs_again(rows, given, net)
    return [found[number] for number in random.Random(seed).sample(sorted(found), min(most, len(found)))]


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
