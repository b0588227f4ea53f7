"""Plain layers (linear, convolution, norm, recurrent, embedding) read off shapes, and whether they form a chain."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from cutaway.weights.shapes import Shape, Shapes, general

# The first of a recurrent layer's weights has so many rows for each unit.
_GATES = {4: "LSTM", 3: "GRU", 1: "RNN"}
_EMBEDDING = ("embed", "emb", "wte", "token", "vocab")


def chain(shapes: Mapping[str, Shape]) -> tuple[list[dict[str, Any]], list[str]]:
    """(the layers in an order that fits, norms last; those that do not take what the one before gives); no layers
    where some tensor belongs to none."""
    modules: dict[str, dict[str, Shape]] = {}
    for name, shape in shapes.items():
        path, _, part = name.rpartition(".")
        modules.setdefault(path, {})[part] = shape
    layers = [layer for path, parts in modules.items() if (layer := _layer(path, parts)) is not None]
    if len(layers) < len(modules) or not layers:
        return [], []
    own = [layer for layer in layers if layer["kind"] not in _NORMS]  # a norm may follow any layer of its width
    order = min((own, _found(own)), key=lambda rows: len(_linked(rows)))
    breaks = _linked(order)
    widths = {layer["out"] for layer in own}
    breaks += [layer["name"] for layer in layers if layer["kind"] in _NORMS and layer["in"] not in widths]
    return order + [layer for layer in layers if layer["kind"] in _NORMS], breaks


_NORMS = ("norm", "batch norm")
_TRIES = 5000


def _linked(layers: list[dict[str, Any]]) -> list[str]:
    """The layers that do not take what the one before gives; the others are told how they do."""
    width, breaks = None, []
    for layer in layers:
        layer.pop("groups", None), layer.pop("places", None)
        into = layer["in"]
        if width is not None and layer["kind"] != "embedding" and into != width:
            if "kernel" in layer and width % into == 0:
                layer["groups"] = width // into
            elif layer["kind"] == "linear" and into % width == 0:
                layer["places"] = into // width  # an image flattened: so many places for each channel
            else:
                breaks.append(layer["name"])
        width = layer["out"]
    return breaks


def _found(layers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """An order in which each takes exactly what the one before gives, or a linear layer a flattened image; some formats
    sort tensors by name. The given order when none is found soon."""
    tries = 0

    def after(path: list[dict[str, Any]], rest: list[dict[str, Any]]) -> list[dict[str, Any]] | None:
        nonlocal tries
        tries += 1
        if not rest or tries > _TRIES:
            return path if not rest else None
        for layer in rest:
            flat = layer["kind"] == "linear" and path and "kernel" in path[-1] and layer["in"] % path[-1]["out"] == 0
            if not path or layer["in"] == path[-1]["out"] or flat:
                if found := after([*path, layer], [other for other in rest if other is not layer]):
                    return found
        return None

    return (after([], layers) if len(layers) <= 100 else None) or layers


def _layer(path: str, parts: Mapping[str, Shape]) -> dict[str, Any] | None:
    """What one module is, by the shapes of its own tensors."""
    if (first := parts.get("weight_ih_l0")) is not None:
        units = parts["weight_hh_l0"][-1] if "weight_hh_l0" in parts else 0
        kind = _GATES.get(first[0] // units) if units and first[0] % units == 0 else None
        both = "weight_ih_l0_reverse" in parts
        layers = sum(part.startswith("weight_ih_l") and not part.endswith("_reverse") for part in parts)
        found = {"name": path, "kind": kind, "in": first[1], "out": units * (1 + both), "layers": layers}
        return found | {"both_ways": both, "bias": "bias_ih_l0" in parts} if kind else None
    weight = parts.get("weight")
    if weight is None or not set(parts) <= {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}:
        return None
    bias = "bias" in parts
    if len(weight) == 1:
        kind = "batch norm" if "running_mean" in parts else "norm"
        return {"name": path, "kind": kind, "in": weight[0], "out": weight[0], "bias": bias}
    if len(weight) == 2:
        if not bias and any(word in path.lower() for word in _EMBEDDING):
            return {"name": path, "kind": "embedding", "in": weight[0], "out": weight[1], "bias": False}
        return {"name": path, "kind": "linear", "in": weight[1], "out": weight[0], "bias": bias}
    if len(weight) in (3, 4, 5):
        kind = f"convolution {len(weight) - 2}d"
        return {
            "name": path, "kind": kind, "in": weight[1], "out": weight[0], "kernel": list(weight[2:]), "bias": bias,
        }  # fmt: skip
    return None


def facts_of(shapes: Shapes) -> dict[str, Any]:
    """What sizes alone suggest of an unknown network: repeated layers, the commonest width, a likely vocabulary."""
    widths = Counter(size for shape in shapes.shapes.values() for size in shape if size > 1)
    stacks = Counter(
        general(name).partition(".#")[0] for name in shapes.shapes if ".#" in general(name) or name[:1].isdigit()
    )
    tables = [
        shape for name, shape in shapes.shapes.items()
        if len(shape) == 2 and shape[0] > 2 * shape[1] and any(word in name.lower() for word in _EMBEDDING)
    ]  # fmt: skip
    found: dict[str, Any] = {}
    if stacks:
        path = stacks.most_common(1)[0][0]
        found |= {"stack": path, "layers": shapes.count(f"{path}.#")}
    if widths:
        found["commonest_size"] = widths.most_common(1)[0][0]
    if tables:
        found["vocabulary"] = max(shape[0] for shape in tables)
    return found
