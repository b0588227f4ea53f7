"""A folder as Hugging Face libraries save it: config.json, tokenizer files, and weights in one of several forms.

Configuration is shown, never acted upon. What would run code in other programs is reported: Python files, `auto_map`
entries, kernels fetched from a hub, pickled weights. Chat templates are programs too, and are neither rendered nor run.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats import safetensors_file, safetensors_index, torch_legacy, torch_zip
from cutaway.formats.checkpoint import Checkpoint, Risk
from cutaway.formats.reading import HEAD_BYTES, entries, file_size, read_json_file, read_range, shown

NAME = "Hugging Face folder"
CONFIG_BYTES = 10_000_000
FILES = 10_000
TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json",
    "vocab.json", "vocab.txt", "merges.txt", "spiece.model", "chat_template.jinja", "preprocessor_config.json",
)  # fmt: skip
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def detect(path: Path, head: bytes) -> bool:
    """Any folder."""
    return path.is_dir()


def open(path: Path) -> Checkpoint:
    """Open the folder's weights (safetensors before pickles) and report on everything beside them. FormatError."""
    try:
        names = sorted(entry.name for entry in os.scandir(path) if entry.is_file())
    except OSError as error:
        raise FormatError(f"The folder {path} cannot be listed ({error.strerror}).") from error
    if len(names) > FILES:
        raise FormatError(f"The folder {path} holds {len(names):,} files; give the path of a checkpoint in it.")
    weights = _weights(path, names)
    metadata = dict(weights.metadata)
    metadata["weights"] = weights.format
    for file in ("config.json", "generation_config.json"):
        if file in names:
            metadata[file.removesuffix(".json")] = read_json_file(path / file, CONFIG_BYTES)
    metadata["tokenizer_files"] = [name for name in names if name in TOKENIZER_FILES]
    risks = [*weights.risks, *_folder_risks(path, names, weights.paths)]
    return Checkpoint(NAME, [*weights.paths, *_configs(path, names)], weights.tensors, metadata, risks)


def _configs(path: Path, names: list[str]) -> list[Path]:
    return [path / name for name in ("config.json", "generation_config.json") if name in names]


def _weights(path: Path, names: list[str]) -> Checkpoint:
    """The weights a library would load: an index, model.safetensors, the only safetensors file, else the pickles."""
    indices = [name for name in names if name.endswith(".safetensors.index.json")]
    plain = [name for name in names if name.endswith(".safetensors")]
    for candidates, opener in ((indices, safetensors_index.open), (plain, safetensors_file.open)):
        preferred = [name for name in candidates if name.startswith("model.")] or candidates
        if len(preferred) == 1:
            return opener(path / preferred[0])
        if preferred:
            raise FormatError(
                f"{path} holds {len(preferred)} sets of weights ({', '.join(preferred[:3])} …); name one."
            )
    pickles = [name for name in names if name.endswith(PICKLED)]
    preferred = [name for name in pickles if name.startswith("pytorch_model")] or pickles
    parts = [opened for name in preferred if (opened := _pickled(path / name))]
    if not parts:
        raise FormatError(f"The folder {path} holds no weights that can be read: no safetensors and no PyTorch file.")
    if len(parts) > 1 and not all(part.path.name.startswith("pytorch_model-") for part in parts):
        raise FormatError(f"{path} holds {len(parts)} PyTorch files ({', '.join(preferred[:3])} …); name one of them.")
    merged = Checkpoint(parts[0].format, [], {}, {"imports": []})
    for part in parts:
        merged.paths += part.paths
        merged.tensors |= part.tensors
        merged.risks += part.risks
        merged.metadata["imports"] = sorted({*merged.metadata["imports"], *part.metadata["imports"]})
    return merged


def _pickled(path: Path) -> Checkpoint | None:
    head = read_range(path, 0, min(file_size(path), HEAD_BYTES))
    for form in (torch_zip, torch_legacy):
        if form.detect(path, head):
            return form.open(path)
    return None


def _folder_risks(path: Path, names: list[str], opened: list[Path]) -> Iterator[Risk]:
    code = [name for name in names if name.endswith(".py")]
    if code:
        yield Risk(
            "high", f"the folder contains Python code ({', '.join(map(shown, code[:5]))}), run by trust_remote_code"
        )
    for name in names:
        if name.endswith(PICKLED):
            used = path / name in opened
            beside = "" if used else ", although the weights are there in a safe form too"
            yield Risk("medium", f"{shown(name)} may be a pickle, which runs code when other programs load it{beside}")
        if name.endswith(".json") and "config" in name and file_size(path / name) <= CONFIG_BYTES:
            yield from _config_risks(name, read_json_file(path / name, CONFIG_BYTES))
        if name.endswith(".jinja"):
            yield Risk("low", f"{name} is a Jinja template; it is a program, and was not rendered")


def _config_risks(name: str, config: Any) -> Iterator[Risk]:
    for key, value in entries(config):
        for wanted, test, severity, text in _RULES:
            if key == wanted and test(value):
                yield Risk(severity, f"{name}: {text} ({key} = {shown(str(value), 80)})")


def _names_a_repository(value: Any) -> bool:
    return isinstance(value, str) and "/" in value


# Which entries of a configuration make other libraries run code from elsewhere.
_RULES: tuple[tuple[str, Callable[[Any], bool], Any, str], ...] = (
    ("auto_map", bool, "high", "asks for Python code from the folder or a hub"),
    ("custom_pipelines", bool, "high", "asks for Python code from the folder or a hub"),
    ("_attn_implementation", _names_a_repository, "high", "names a kernel that is fetched from a hub and run"),
    ("attn_implementation", _names_a_repository, "high", "names a kernel that is fetched from a hub and run"),
    ("_attn_implementation_internal", _names_a_repository, "high", "names a kernel that is fetched from a hub and run"),
    ("chat_template", bool, "low", "holds a Jinja template, which is a program and was not rendered"),
)
