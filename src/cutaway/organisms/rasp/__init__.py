"""Ground truth by compilation: RASP-like programs, and transformers whose weights compute them with a known circuit.

`language` and `interpret` are the language, `values`, `layout`, `weights`, `circuit` and `compile` the compiler,
`programs` what is bundled, `build` makes organisms. Only `transformer`, `circuit`, `compile` and `build` import torch.
"""

from __future__ import annotations

from .interpret import interpret
from .language import aggregate, constant, indices, map, select, selector_width, sequence_map, tokens
from .programs import PROGRAMS, Program

__all__ = [
    "PROGRAMS",
    "Program",
    "aggregate",
    "constant",
    "indices",
    "interpret",
    "map",
    "select",
    "selector_width",
    "sequence_map",
    "tokens",
]
