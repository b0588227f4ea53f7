"""Opening a network: a bundled organism, a module, a local Hugging Face folder, or a hub id."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import torch
from torch import nn

from .. import organisms
from ..errors import FormatError, InputError, ModelError
from ..formats import open_checkpoint
from .network import Network, Tokenizer, accepts
from .trace import Trace


class Vocabulary:
    """A tokenizer for a fixed list of words separated by spaces."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._ids = {word: place for place, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """Ids of the words of a text; raises ModelError for a word outside the vocabulary."""
        parts = text.split()
        if missing := [word for word in parts if word not in self._ids]:
            raise ModelError(f"'{missing[0]}' is not in the vocabulary: {' '.join(self.words)}.")
        return [self._ids[word] for word in parts]

    token = encode

    def decode(self, ids: Sequence[int]) -> str:
        """The words of ids."""
        return " ".join(self.words[place] for place in ids)


class _Transformers:
    """A transformers tokenizer seen as ours."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        found = self.tokenizer(text, verbose=False)  # a text is longer than the model takes before it is cut
        return _unpadded(list(found["input_ids"]), found.get("attention_mask"))

    def token(self, text: str) -> list[int]:
        """The ids of a text as it would continue another one.

        Some tokenizers put a space before whatever they are given, so a text that begins with one gets two.
        """
        alone, before, after = (
            list(self.tokenizer(part, add_special_tokens=False)["input_ids"]) for part in (text, "a", f"a{text}")
        )
        continues = text[:1].isspace() and after[: len(before)] == before and len(after) > len(before)
        return min(after[len(before) :], alone, key=len) if continues else alone

    def decode(self, ids: Sequence[int]) -> str:
        if len(ids) != 1:
            return str(self.tokenizer.decode(list(ids)))
        return str(self.tokenizer.convert_ids_to_tokens(ids[0])).replace("▁", " ").replace("Ġ", " ").replace("Ċ", "\n")


def open_network(
    what: Any,
    *,
    lifter: Callable[[Trace], Any],
    tokenizer: Any = None,
    processor: Callable[..., Any] | None = None,
    name: str | None = None,
    trust_remote_code: bool = False,
    config: dict[str, Any] | None = None,
) -> Network:
    """Open `what`: an organism's name, a module, a folder with config.json and safetensors, a file of weights whose
    network can be recovered for certain, or a hub id.

    `config` are fields of a config that a bare file of weights leaves open.
    `processor` turns what is given to `record` into a tensor, or into a mapping of keyword arguments.

    Raises ModelError when it cannot be opened, FormatError when a file is not what it says.
    """
    if isinstance(what, Network):
        return what
    if isinstance(what, nn.Module):
        _refuse(what)
        label = name or type(what).__name__
        words = _tokenizer(tokenizer)
        return Network(what, name=label, source="module", tokenizer=words, processor=processor, lifter=lifter)
    if not isinstance(what, (str, os.PathLike)):
        hint = _UNPACKED.get(type(what).__name__, "give a module, a folder, a hub id or an organism's name")
        raise ModelError(f"Cannot open a {type(what).__name__}; {hint}.")
    text = os.fspath(what)
    if organisms.is_name(text):
        organism = organism_named(text)
        words = Vocabulary(organism.vocabulary) if organism.vocabulary else None
        return Network(organism.module, name=text, source=f"organism:{text}", tokenizer=words, lifter=lifter)
    if os.path.isfile(text):
        net = _bare(text, lifter, _tokenizer(tokenizer), name, config)
    else:
        net = _hugging_face(text, lifter, _tokenizer(tokenizer), name, trust_remote_code)
    net.processor = processor
    return net


def organism_named(name: str) -> organisms.Organism:
    """The organism of a name. Raises ModelError for a program to be compiled that does not exist or does not fit."""
    try:
        return organisms.load(name)
    except (KeyError, ValueError) as error:
        raise ModelError(f"There is no organism '{name}': {error.args[0]}.") from None


# What holds a network without being one, to how it is taken out.
_UNPACKED = {
    "ExportedProgram": "it is a program without a forward; give its .module()",
    "PackageImporter": "it is an archive of code; give the module that its load_pickle returns",
    "ScriptFunction": "compiled TorchScript runs outside Python, where no call in it can be seen; give the function's "
    "source as a module",
}


def _refuse(module: nn.Module) -> None:
    """Raises ModelError for a module of which nothing can be recorded, with the reason."""
    name = type(module).__name__
    if isinstance(module, torch.jit.ScriptModule):
        raise ModelError(
            f"'{getattr(module, 'original_name', name)}' is compiled TorchScript, which runs outside Python, so no "
            "call in it can be seen; open the module that it was made from."
        )
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ModelError(f"'{path}' of {name} has no shape before the first run; run the module once, then open.")
        if tensor.is_inference():
            raise ModelError(f"'{path}' of {name} was made in inference mode and knows no gradients; make it outside.")
        if tensor.is_meta:
            raise ModelError(f"'{path}' of {name} is on the meta device and holds no numbers; load the weights first.")


class _Plain:
    """A tokenizer with encode and decode alone, such as one of the tokenizers library."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def encode(self, text: str) -> list[int]:
        found = self.tokenizer.encode(text)
        return _unpadded(list(getattr(found, "ids", found)), getattr(found, "attention_mask", None))

    token = encode

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids)))


def _unpadded(ids: list[int], mask: Sequence[int] | None) -> list[int]:
    """Token ids, when the tokenizer says that none of them is padding. Raises InputError otherwise."""
    if mask is not None and not all(mask):
        raise InputError(
            "The tokenizer pads its texts, and padding would change what the network sees; turn its padding off."
        )
    return ids


def _tokenizer(tokenizer: Any) -> Tokenizer | None:
    """Any of the tokenizers that `open` takes, as ours. Raises ModelError for what is none."""
    if tokenizer is None or all(hasattr(tokenizer, method) for method in ("token", "encode", "decode")):
        return tokenizer
    if isinstance(tokenizer, (list, tuple)):
        return Vocabulary(tokenizer)
    if hasattr(tokenizer, "convert_ids_to_tokens"):
        return _Transformers(tokenizer)
    if all(callable(getattr(tokenizer, method, None)) for method in ("encode", "decode")):
        return _Plain(tokenizer)
    raise ModelError(
        f"A {type(tokenizer).__name__} is no tokenizer; give a list of words, a transformers tokenizer, or an object "
        "with encode(text) and decode(ids). What prepares images or other inputs is given as processor=."
    )


def _bare(
    where: str,
    lifter: Callable[[Trace], Any],
    tokenizer: Tokenizer | None,
    name: str | None,
    config: dict[str, Any] | None,
) -> Network:
    """The network of a file of weights, when names and shapes say for certain which it is."""
    from ..weights.build import load

    try:
        module, found = load(open_checkpoint(where), config)
    except FormatError as error:
        raise FormatError(f"'{where}' is a file that no network can be opened from: {error}") from error
    unseen = found.match.unseen if found.match is not None else {}
    if unseen:
        words = ", ".join(f"{key} = {value}" for key, value in unseen.items())
        warnings.warn(f"'{where}' does not say {words}: taken from the family's defaults.", UserWarning, stacklevel=4)
    defaults = {"use_cache": False} if accepts(module, "use_cache") else {}
    source = f"file:{Path(where).resolve()}"
    return Network(
        module, name=name or Path(where).stem, source=source, tokenizer=tokenizer, defaults=defaults, lifter=lifter
    )


def _hugging_face(
    where: str, lifter: Callable[[Trace], Any], tokenizer: Tokenizer | None, name: str | None, trust: bool
) -> Network:
    folder = Path(where)
    local = folder.exists()
    if local and not (folder / "config.json").is_file():
        raise FormatError(f"'{where}' has no config.json, so nothing says what network it holds.")
    if not local and (where.startswith((".", "/", "~")) or where.count("/") > 1):
        raise ModelError(f"There is no folder '{where}'.")
    try:
        import transformers
    except ImportError:
        raise ModelError("Opening a Hugging Face model needs `pip install 'cutaway[hf]'`.") from None
    try:
        with _quiet(transformers):
            module = _load(transformers, where, local, trust)
    except Exception as error:  # transformers and safetensors raise whatever a bad file leads them into
        known = ", ".join(organisms.names())
        first = _first_line(error)
        hint = "" if local else f" It is neither a folder here nor an organism ({known}); as a hub id it failed:"
        raise ModelError(f"Cannot open '{where}'.{hint} {first}") from error
    if tokenizer is None:
        tokenizer = _load_tokenizer(transformers, where, local, trust)
    defaults = {"use_cache": False} if accepts(module, "use_cache") else {}
    label = name or folder.resolve().name if local else name or where
    source = f"folder:{folder.resolve()}" if local else f"hub:{where}"
    return Network(module, name=label, source=source, tokenizer=tokenizer, defaults=defaults, lifter=lifter)


def _load(transformers: Any, where: str, local: bool, trust: bool) -> nn.Module:
    """The module in eval mode, from safetensors only, with the class that its config names."""
    options: dict[str, Any] = {"trust_remote_code": trust, "local_files_only": local or not _hub_is_known()}
    config = transformers.AutoConfig.from_pretrained(where, **options)
    cls: Any = None
    for architecture in config.architectures or ():
        cls = cls or getattr(transformers, architecture, None)
    # A class that needs code from the folder goes through the Auto class, which refuses it unless it is trusted.
    cls = (
        cls if cls is not None and not trust else transformers.AutoModelForCausalLM if trust else transformers.AutoModel
    )
    options |= {"use_safetensors": True, "dtype": "float32"}
    options = options if trust else {key: value for key, value in options.items() if key != "trust_remote_code"}
    try:
        module, found = cls.from_pretrained(where, attn_implementation="sdpa", output_loading_info=True, **options)
    except (ValueError, ImportError):
        module, found = cls.from_pretrained(where, attn_implementation="eager", output_loading_info=True, **options)
    if absent := sorted(found["missing_keys"]) or sorted(str(key) for key in found["mismatched_keys"]):
        raise ValueError(
            f"{len(absent)} tensors of {type(module).__name__} are missing from its weights or have another shape, "
            f"the first being {absent[0]}; they would be random."
        )
    return module.eval()


def _load_tokenizer(transformers: Any, where: str, local: bool, trust: bool) -> Tokenizer | None:
    if local and not any(
        (Path(where) / file).is_file() for file in ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt")
    ):
        return None
    try:
        return _Transformers(
            transformers.AutoTokenizer.from_pretrained(
                where, trust_remote_code=trust, local_files_only=local or not _hub_is_known()
            )
        )
    except Exception as error:
        raise ModelError(f"The tokenizer of '{where}' cannot be loaded: {_first_line(error)}") from error


def _hub_is_known() -> bool:
    """Whether the hub's name resolves, or a proxy stands before it; if not, only what is cached can be opened, and
    trying again is of no use."""
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True
    host = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co")).hostname or ""
    try:
        socket.getaddrinfo(host, 443)
    except OSError:
        return False
    return True


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without transformers' progress bars and warnings: what matters in them becomes an error here."""
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
