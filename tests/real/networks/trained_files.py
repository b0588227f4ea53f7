"""Reading what the trained networks lie in: checkpoints through the package's own reader, images, and ONNX weights."""

from __future__ import annotations

import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cutaway.formats import open_checkpoint


def load(module: nn.Module, path: Path, prefix: str = "", skip: tuple[str, ...] = ()) -> nn.Module:
    """`module` with the tensors of a checkpoint whose names begin with `prefix`, in eval mode; nothing is executed.

    Every tensor must find its place and every parameter its tensor, apart from names that contain one of `skip`.
    """
    checkpoint = open_checkpoint(path)
    state = {
        name.removeprefix(prefix): torch.from_numpy(np.array(checkpoint.read(name)))
        for name in checkpoint.tensors
        if name.startswith(prefix) and not any(part in name for part in skip)
    }
    missing, unexpected = module.load_state_dict(state, strict=False)
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    assert not missing and not unexpected, (missing, unexpected)
    return module.eval()


def mnist(data: Path, count: int, start: int = 0) -> tuple[Tensor, Tensor]:
    """Test images [count, 1, 28, 28] in 0..1 and their digits, from the official files."""
    folder = data / "data-vision"
    with gzip.open(folder / "t10k-images-idx3-ubyte.gz") as file:
        file.seek(16 + start * 784)
        pixels = np.frombuffer(file.read(count * 784), np.uint8)
    with gzip.open(folder / "t10k-labels-idx1-ubyte.gz") as file:
        file.seek(8 + start)
        labels = np.frombuffer(file.read(count), np.uint8)
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).astype(np.float32)) / 255
    return images, torch.from_numpy(labels.astype(np.int64))


def cifar(data: Path, mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """The 100 lossless test images [100, 3, 32, 32], normalised, and their classes."""
    rows = np.loadtxt(data / "data-vision" / "cifar10_test_100.csv", delimiter=",", dtype=np.int64)
    images = torch.from_numpy(rows[:, 1:].reshape(-1, 32, 32, 3).astype(np.float32)).permute(0, 3, 1, 2) / 255
    images = (images - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    return images.contiguous(), torch.from_numpy(rows[:, 0])


def picture(path: Path, size: tuple[int, int] | None = None, centre: bool = False) -> Tensor:
    """An image [3, height, width] in 0..1, resized; `centre` crops it square first. Skips where Pillow is absent."""
    image = pytest.importorskip("PIL.Image").open(path).convert("RGB")
    if centre:
        side = min(image.size)
        left, top = ((length - side) // 2 for length in image.size)
        image = image.crop((left, top, left + side, top + side))
    if size is not None and image.size != size:
        image = image.resize(size, 2)
    return torch.from_numpy(np.array(image, np.float32)).permute(2, 0, 1).contiguous() / 255


def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Share of images whose largest output is their label."""
    with torch.no_grad():
        return float((module(images).argmax(-1) == labels).float().mean())


def onnx_weights(path: Path) -> dict[str, Tensor]:
    """The float32 initialisers of an ONNX file by name. The package has no reader for ONNX; this is the protobuf wire
    format, where field 7 of a model is its graph, field 5 of a graph a tensor, and fields 1, 8 and 9 of that its
    shape, name and bytes."""
    found: dict[str, Tensor] = {}
    for tensor in (value for number, value in _fields(_only(path.read_bytes(), 7)) if number == 5):
        parts = list(_fields(tensor))
        shape = [value for number, value in parts if number == 1]
        raw = np.frombuffer(_only(tensor, 9), "<f4").reshape(shape)
        found[_only(tensor, 8).decode()] = torch.from_numpy(raw.copy())
    return found


def _only(message: bytes, wanted: int) -> bytes:
    return next(value for number, value in _fields(message) if number == wanted)


def _fields(message: bytes) -> Iterator[tuple[int, Any]]:
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = message[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(message):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
        else:
            size = varint() if key & 7 == 2 else struct.calcsize({1: "<q", 5: "<i"}[key & 7])
            yield key >> 3, message[place : place + size]
            place += size
