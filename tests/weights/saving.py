"""Small checkpoints for tests, and a network's weights saved without its config."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from torch import nn

from cutaway.formats import Checkpoint, open_checkpoint


def saved(path: Path, tensors: Mapping[str, np.ndarray]) -> Checkpoint:
    """Arrays as a safetensors file, opened."""
    save_file({name: np.ascontiguousarray(array) for name, array in tensors.items()}, path)
    return open_checkpoint(path)


def bare(path: Path, module: nn.Module, outer: str = "") -> Checkpoint:
    """A module's state dict as a safetensors file, opened."""
    save_tensors({outer + name: tensor.clone().contiguous() for name, tensor in module.state_dict().items()}, path)
    return open_checkpoint(path)


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Standard normal numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def saved_by_torch(path: Path, tensors: Mapping[str, Any]) -> Checkpoint:
    """Tensors as torch.save writes them, opened."""
    torch.save(dict(tensors), path)
    return open_checkpoint(path)
