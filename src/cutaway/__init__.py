"""Cutaway: reverse-engineer trained neural networks, and test every explanation causally.

The names below are loaded when they are first used, so `import cutaway` is light.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "Network": "run.network",
    "Trace": "run.trace",
    "Site": "site",
    "Directions": "basis",
    "Intervention": "run.interventions",
    "zero": "run.interventions",
    "mean": "run.interventions",
    "resample": "run.interventions",
    "patch": "run.interventions",
    "add": "run.interventions",
    "scale": "run.interventions",
    "project_out": "run.interventions",
    "apply": "run.interventions",
    "lift": "lift",
    "logit_difference": "attribution.metric",
    "logit": "attribution.metric",
    "output_distance": "attribution.metric",
    "kl_divergence": "attribution.metric",
    "custom": "attribution.metric",
    "Metric": "attribution.metric",
    "qk": "lift.weights",
    "ov": "lift.weights",
    "virtual_weights": "lift.weights",
    "composition": "lift.weights",
    "patch_sweep": "attribution.sweep",
    "forecast_sweep": "attribution.sweep",
    "strings": "reading",
    "score": "attribution.methods",
    "methods": "attribution.methods",
    "EdgeGraph": "attribution.edges",
    "path_patch": "attribution.paths",
    "path_to": "attribution.paths",
    "self_repair": "attribution.repair",
    "saliency": "attribution.saliency",
    "explain_attention": "attribution.qk",
    "find_circuit": "circuits.search",
    "forecast_circuit": "circuits.search",
    "CircuitForecast": "circuits.search",
    "searches": "circuits.searches",
    "alternatives": "circuits.alternatives",
    "optimal_baseline": "circuits.edge_pruning",
    "Circuit": "circuits.circuit",
    "save_circuit": "circuits.files",
    "read_circuit": "circuits.files",
    "load_circuit": "circuits.loading",
    "read_attribution_graph": "circuits.attribution_graph",
    "AttributionGraph": "circuits.attribution_graph",
    "plot": "drawing.figures",
    "verify": "claims.verify",
    "circuit_curve": "claims.curves",
    "stability": "claims.stability",
    "Claim": "claims.claim",
    "collect": "features.collect",
    "forecast_collect": "features.collect",
    "open_activations": "features.store",
    "train_dictionary": "features.train",
    "fit_dictionary": "features.classical",
    "evaluate_dictionary": "features.evaluate",
    "Dictionary": "features.dictionary",
    "load_dictionary": "features.opening",
    "load_dictionaries": "features.opening",
    "save_dictionary": "features.files",
    "save_sae_lens": "features.sae_lens",
    "check_fit": "features.fit",
    "build_index": "features.index",
    "open_index": "features.index",
    "feature_graph": "circuits.feature_graph",
    "Check": "run.check",
    "Project": "project",
    "errors": "errors",
    "CutawayError": "errors",
}

__all__ = [*_NAMES, "check", "open"]


def __getattr__(name: str) -> Any:
    if name not in _NAMES:
        raise AttributeError(f"module 'cutaway' has no attribute {name!r}")
    module = import_module(f".{_NAMES[name]}", __name__)
    found = module if name == "errors" else getattr(module, name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])


def open(
    what: Any,
    *,
    tokenizer: Any = None,
    processor: Any = None,
    name: str | None = None,
    trust_remote_code: bool = False,
    config: dict[str, Any] | None = None,
) -> Any:
    """Open a network: a bundled organism's name, a torch module, a local Hugging Face folder, a file of weights whose
    network can be recovered for certain (`config` says what it leaves open), or a hub id.

    `tokenizer` (for modules): a list of words, a transformers tokenizer, or an object with encode, decode and token.
    `processor`: a function from what you give to `record` (images, say) to a tensor or a mapping of keyword arguments.
    Returns a `Network`. Raises ModelError or FormatError when it cannot be opened.
    """
    from .lift import lift
    from .run.opening import open_network

    options = {"tokenizer": tokenizer, "processor": processor, "name": name, "trust_remote_code": trust_remote_code}
    net = open_network(what, lifter=lift, config=config, **options)
    net.attacher = lambda *given, **more: import_module(".features.attach", __name__).attach(*given, **more)
    return net


def check(what: Any, *inputs: Any, expected: Any = None, **kwargs: Any) -> Any:
    """Compare a network's recording, replay, gradients, edits and edges with plain PyTorch on some inputs.

    `what` is a Network or anything that `open` takes; `expected` may map components to their (units, calls). The result
    is a `Check`: `verified` is the verdict, `record()` everything as data.
    """
    from .attribution.checking import check_network

    return check_network(open(what), *inputs, expected=expected, **kwargs)
