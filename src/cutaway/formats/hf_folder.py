"""A folder as Hugging Face libraries save it: config.json, tokenizer files, and weights in one of several forms.

Configuration is shown, never acted upon. What would run code in other programs is reported: Python files, `auto_map`
entries, kernels fetched from a hub, pickled weights. Chat templates are programs too: shown, and never rendered.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from cutaway.errors import FormatError
from cutaway.formats import (
    gguf_file,
    hdf5_file,
    keras_file,
    onnx_file,
    safetensors_file,
    safetensors_index,
    tflite_file,
    torch_legacy,
    torch_zip,
)
from cutaway.formats.checkpoint import Checkpoint, Risk
from cutaway.formats.reading import HEAD_BYTES, entries, file_size, read_json_file, read_range, shown

NAME = "Hugging Face folder"
CONFIG_BYTES = 10_000_000
TOKENIZER_BYTES = 40_000_000
TEMPLATE_BYTES = 100_000
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
        with os.scandir(path) as found:
            listed = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise FormatError(f"The folder {path} cannot be listed ({error.strerror}).") from error
    lost: list[str] = []
    names = [entry.name for entry in listed if _is_file(entry, lost)]
    if len(names) > FILES:
        raise FormatError(f"The folder {path} holds {len(names):,} files; give the path of a checkpoint in it.")
    weights = _weights(path, names)
    metadata = dict(weights.metadata)
    metadata["weights"] = weights.format
    for file in ("config.json", "generation_config.json"):
        if file in names:
            metadata[file.removesuffix(".json")] = read_json_file(path / file, CONFIG_BYTES)
    metadata["tokenizer_files"] = [name for name in names if name in TOKENIZER_FILES]
    metadata |= _tokenizer(path, names)
    risks = [*weights.risks, *_folder_risks(path, names, weights.paths)]
    risks += [Risk("low", f"{shown(name)} is a link that leads nowhere; skipped") for name in lost[:20]]
    return Checkpoint(NAME, [*weights.paths, *_configs(path, names)], weights.tensors, metadata, risks)


def _is_file(entry: os.DirEntry[str], lost: list[str]) -> bool:
    """Whether a folder's entry is a file or a link to one; links that lead nowhere, or in a circle, go to `lost`."""
    try:
        if not entry.is_symlink() or os.path.exists(entry.path):
            return entry.is_file()
    except OSError:
        pass  # what cannot even be asked about is named with the lost links
    lost.append(entry.name)
    return False


def _tokenizer(path: Path, names: list[str]) -> dict[str, Any]:
    """What kind of tokenizer it is, how large, and the chat templates as text."""
    found: dict[str, Any] = {}
    if "tokenizer.json" in names and file_size(path / "tokenizer.json") <= TOKENIZER_BYTES:
        read = read_json_file(path / "tokenizer.json")
        model = read.get("model") if isinstance(read, dict) else None
        if isinstance(model, dict):
            vocabulary, added = model.get("vocab"), read.get("added_tokens")
            found["tokenizer"] = {
                "type": shown(str(model.get("type")), 40),
                "vocabulary": len(vocabulary) if isinstance(vocabulary, (dict, list)) else None,
                "added": len(added) if isinstance(added, list) else 0,
            }
    templates = {}
    if "tokenizer_config.json" in names:
        config = read_json_file(path / "tokenizer_config.json", CONFIG_BYTES)
        templates["tokenizer_config.json"] = config.get("chat_template") if isinstance(config, dict) else None
    if "chat_template.jinja" in names:
        size = min(file_size(path / "chat_template.jinja"), TEMPLATE_BYTES)
        templates["chat_template.jinja"] = read_range(path / "chat_template.jinja", 0, size).decode("utf-8", "replace")
    shown_as = {name: str(text)[:TEMPLATE_BYTES] for name, text in templates.items() if text}
    return found | ({"chat_templates": shown_as} if shown_as else {})


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
        return _other_weights(path, names)
    if len(parts) > 1 and not all(part.path.name.startswith("pytorch_model-") for part in parts):
        raise FormatError(f"{path} holds {len(parts)} PyTorch files ({', '.join(preferred[:3])} …); name one of them.")
    merged = Checkpoint(parts[0].format, [], {}, {"imports": []})
    for part in parts:
        merged.paths += part.paths
        merged.tensors |= part.tensors
        merged.risks += part.risks
        merged.metadata["imports"] = sorted({*merged.metadata["imports"], *part.metadata["imports"]})
    return merged


def _other_weights(path: Path, names: list[str]) -> Checkpoint:
    """The only file of another format."""
    others = [(name, opener) for name in names for suffixes, opener in _OTHERS if name.endswith(suffixes)]
    if not others:
        raise FormatError(f"The folder {path} holds no weights that can be read: no safetensors and no PyTorch file.")
    if len(others) > 1:
        listed = ", ".join(name for name, _ in others[:3])
        raise FormatError(f"{path} holds {len(others)} files of weights ({listed} …); name one of them.")
    return others[0][1](path / others[0][0])


_OTHERS: tuple[tuple[str, Callable[[Path], Checkpoint]], ...] = (
    (".gguf", gguf_file.open), (".onnx", onnx_file.open), (".h5", hdf5_file.open), (".keras", keras_file.open),
    (".tflite", tflite_file.open),
)  # fmt: skip


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
        if (path / name).is_symlink() and not (path / name).resolve().is_relative_to(path.resolve()):
            yield Risk("low", f"{shown(name)} is a link to a file outside the folder")
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
