"""What in the configuration of a Keras model would run code, or ask for code, when Keras loads it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cutaway.formats.checkpoint import Risk
from cutaway.formats.reading import entries, shown

_OWN = ("keras", "tensorflow", "tf_keras", "builtins")


def layer_risks(config: Any, where: str) -> list[Risk]:
    """Lambda layers (marshalled bytecode, CVE-2024-3660 and later) and classes that Keras does not have itself."""
    return list(dict.fromkeys(_found(config, where)))[:100]


def _found(config: Any, where: str) -> Iterator[Risk]:
    for key, value in entries(config):
        if key == "class_name" and value in ("Lambda", "__lambda__"):
            yield Risk("high", f"{where}: a Lambda layer holds Python bytecode, which runs when Keras loads the model")
        elif key == "registered_name" and isinstance(value, str) and ">" in value:
            yield Risk("medium", f"{where}: the class {shown(value)} comes from elsewhere and runs its own code")
        elif key == "module" and isinstance(value, str) and value.split(".")[0] not in _OWN:
            yield Risk("high", f"{where}: the module {shown(value)} would be imported")
