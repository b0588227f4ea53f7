"""Which opener takes which path. A new format is one more file with `detect` and `open`, and one more row here."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Protocol

from cutaway.errors import FormatError
from cutaway.formats import (
    gguf_file,
    hdf5_file,
    hf_folder,
    keras_file,
    numpy_file,
    onnx_file,
    safetensors_file,
    safetensors_index,
    tflite_file,
    torch_legacy,
    torch_zip,
    zip_bundle,
)
from cutaway.formats.checkpoint import Checkpoint
from cutaway.formats.reading import HEAD_BYTES, file_size, read_range


class Opener(Protocol):
    """What every format's file offers."""

    def detect(self, path: Path, head: bytes) -> bool:
        """Whether this format is meant, by the name and the first bytes."""

    def open(self, path: Path) -> Checkpoint:
        """Read the headers; raises FormatError."""


# The order matters: a folder first, then what has a clear mark, then any zip and any pickle.
OPENERS: tuple[Opener, ...] = (
    hf_folder, safetensors_index, gguf_file, hdf5_file, tflite_file, numpy_file, keras_file, torch_zip, zip_bundle,
    torch_legacy, safetensors_file, onnx_file,
)  # fmt: skip

# Files people have that are something else; the sentence says what to do.
_STRANGERS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "is a Git LFS pointer and not the file itself; fetch it with `git lfs pull`"),
    (b"<!DOCTYPE", "is a web page and not a checkpoint; the download went wrong"),
    (b"<html", "is a web page and not a checkpoint; the download went wrong"),
    (b"\x1f\x8b", "is compressed with gzip; unpack it first"),
)


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a checkpoint file or folder without executing anything from it and without reading its tensors.

    Raises FormatError, with one sentence, for anything that is not a sound checkpoint of a known format.
    """
    if not str(path):
        raise FormatError("The path of the checkpoint is empty; give the path of a file or a folder.")
    path = Path(path)
    try:
        is_folder = path.is_dir()
        exists = is_folder or path.exists()
    except (OSError, ValueError) as error:
        raise FormatError(f"{str(path)[:200]!r} is not a path that can be opened ({error}).") from error
    if not exists and path.is_symlink():
        raise FormatError(f"{path} is a link that leads nowhere; give the path of the file itself.")
    if not exists:
        raise FormatError(f"There is no file {path}{_near(path)}")
    head = b"" if is_folder else read_range(path, 0, min(file_size(path), HEAD_BYTES))
    for mark, sentence in _STRANGERS:
        if head.startswith(mark):
            raise FormatError(f"{path} {sentence}.")
    for opener in OPENERS:
        if opener.detect(path, head):
            try:
                return opener.open(path)
            except OSError as error:
                raise FormatError(f"{path} cannot be read ({error.strerror or error}).") from error
            except FormatError as error:
                if path.name in str(error) or str(path) in str(error):
                    raise
                raise FormatError(f"{path}: {error}") from error
    known = "safetensors, a Hugging Face folder, PyTorch, GGUF, ONNX, Keras and HDF5, TensorFlow Lite and NumPy"
    raise FormatError(f"{path} is in no format that is known here; those are {known}.")


def _near(path: Path) -> str:
    try:
        near = difflib.get_close_matches(path.name, [entry.name for entry in path.parent.iterdir()], n=3)
    except OSError:
        return "; its folder cannot be listed."
    return f"; did you mean {', '.join(near)}?" if near else "."
