"""The verb that collects activations."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ..errors import InputError
from ..report.collect_text import collected
from .looking import NOTHING, Model
from .verb import Argument, Result, verb

if TYPE_CHECKING:
    from ..run.network import Network


@dataclass(frozen=True)
class Inputs:
    """What the network is run on."""

    texts: Annotated[
        str, Argument("A text file, cut into contexts; or .json or .jsonl with a list of texts.", shown="FILE")
    ] = ""
    inputs: Annotated[str, Argument("A .npy, .npz or .safetensors file of arrays by example.", shown="FILE")] = ""
    examples: Annotated[int, Argument("Inputs of an organism's own, where no file is given.", least=1)] = 1024
    context: Annotated[int, Argument("Tokens of a context; 0: 128 of a text file, each text as it is.", least=0)] = 0
    limit: Annotated[int, Argument("Examples at most; 0: all.", least=0)] = 0

    def data(self, net: Network) -> Any:
        """As `collect` takes them. Raises InputError where there are none, or two kinds."""
        from .subject import own_inputs

        if self.texts and self.inputs:
            raise InputError("Both --texts and --inputs are given; give the one that this network takes.")
        if self.texts or self.inputs:
            return Path(self.texts or self.inputs)
        return own_inputs(net, self.examples)


@dataclass(frozen=True)
class Storing:
    """How rows are made and stored."""

    batch: Annotated[int, Argument("Examples that run together; 0: as many as suit.", least=0)] = 0
    skip_first: Annotated[int, Argument("Leave out so many first positions of each example.", least=0)] = 0
    dtype: Annotated[
        str, Argument("How numbers are stored.", choices=("float16", "bfloat16", "float32"))
    ] = "float16"  # fmt: skip
    seed: Annotated[int, Argument("For networks that draw random numbers.")] = 0


@verb("collect", show=collected, chapter="Features")
def collect(
    model: Model,
    out: Annotated[str, Argument("The folder to write; taken up again where it was left.", shown="FOLDER")],
    how: Storing,
    what: Inputs,
    site: Annotated[
        list[str], Argument("A site, as in resid.3; several times for more. `@*` is all steps.", shown="SITE")
    ] = NOTHING,
    forecast: Annotated[bool, Argument("Only say how many rows, bytes and seconds it would take.")] = False,
) -> Result:
    """Write the values at sites over a data set to a folder, to make dictionaries from.

    The network runs no further than the sites. A run that is interrupted goes on when it is called again.
    """
    from ..features.collect import collect as collecting
    from ..features.collect import forecast_collect
    from .progress import report
    from .subject import facts, open_model, suited_threads

    net = open_model(model)
    if not site:
        raise InputError(f"No site is given; 'cutaway lift {model}' lists some, such as --site resid.1.")
    data = what.data(net)
    given: dict[str, Any] = {
        "context": what.context or None, "batch": how.batch or None, "dtype": how.dtype, "seed": how.seed,
        "skip_first": how.skip_first, "limit": what.limit or None,
    }  # fmt: skip
    told: Result = {"model": model, "facts": facts(net), "out": out}
    with suited_threads(net):
        if forecast:
            return told | {"forecast": forecast_collect(net, data, site, out, **given).to_dict()}
        try:
            made = collecting(net, data, site, out, progress=report, **given)
        except KeyboardInterrupt as stop:
            raise KeyboardInterrupt(
                f"interrupted; what was collected stays in '{out}', and the same command goes on from there."
            ) from stop
    manifest = {key: value for key, value in made.manifest.items() if key not in ("shards", "normalisation")}
    norms = {name: figures["mean_norm"] for name, figures in made.manifest["normalisation"].items()}
    return told | {"manifest": manifest, "mean_norm": norms}
