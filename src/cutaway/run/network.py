"""A network as Cutaway holds it: the user's module, how text becomes its inputs, and what the last runs looked like."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..basis import Basis
from ..errors import CutawayError, DivergenceError, InputError, ModelError, SiteError
from ..graph import Graph
from ..site import Site
from .follow import Guide, follow, form
from .interventions import Intervention
from .keep import Checkpoints, Kept
from .record import Edits, record_tape
from .splice import Attachment
from .structure import fresh, tensors
from .trace import Trace, receipts
from .untouched import Seal, Snapshot
from .views import written_through

_MOST_SUMMED = 1 << 30  # bytes of weights that are summed up when they are opened, in a quarter of a second
_COMPRESSED = (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc)
_MOST_GUIDES = 8  # forms of inputs whose last recording is remembered


class Tokenizer(Protocol):
    """What is needed of a tokenizer: text to ids, and an id to text."""

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, special tokens included as the model expects them."""

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""

    def token(self, text: str) -> list[int]:
        """Token ids of a continuation, no special tokens added."""


class Network:
    """A module, opened. Made by `cutaway.open`; the module itself is never changed."""

    def __init__(
        self,
        module: nn.Module,
        *,
        name: str,
        source: str,
        tokenizer: Tokenizer | None = None,
        processor: Callable[..., Any] | None = None,
        defaults: dict[str, Any] | None = None,
        lifter: Callable[[Trace], Any],
    ) -> None:
        self.module = module
        self.name = name
        self.source = source
        self.tokenizer = tokenizer
        self.processor = processor
        self.defaults = defaults or {}
        self.lifter = lifter
        self.attachments: tuple[Attachment, ...] = ()
        self.attacher: Callable[..., Network] | None = None
        self.notes: list[str] = []  # what is to be known of what is attached
        self.pending: list[Callable[[Trace], str]] = []  # checks of what is attached, for the first run; each a note
        small = sum(parameter.nbytes for parameter in module.parameters() if not parameter.is_meta) <= _MOST_SUMMED
        self._seals = [
            (inner._parameters, key, f"{path}.{key}".lstrip("."), Seal(parameter, *[_MOST_SUMMED] * small))
            for path, inner in module.named_modules()
            if isinstance(inner._parameters, dict)  # compiled TorchScript inside makes new tensors whenever asked
            for key, parameter in inner._parameters.items()
            if parameter is not None
        ]
        self._fingerprint: str | None = None
        self._guides: dict[Any, Guide] = {}

    def __repr__(self) -> str:
        count = sum(parameter.numel() for parameter in self.module.parameters())
        return f"Network({self.name!r}, {type(self.module).__name__}, {count:,} parameters)"

    @property
    def fingerprint(self) -> str:
        """sha256 over names, dtypes, shapes and bytes of the state dict, the first 16 hex digits."""
        if self._fingerprint is None:
            digest = hashlib.sha256()
            for name, tensor in sorted(self.module.state_dict().items()):
                if not isinstance(tensor, Tensor):
                    continue
                digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
                flat = tensor.detach().cpu().contiguous().flatten()
                digest.update(flat.view(torch.uint8).numpy().data if flat.numel() else b"")
            self._fingerprint = digest.hexdigest()[:16]
        return self._fingerprint

    def check_weights(self) -> None:
        """Raises DivergenceError when a parameter is no longer what it was when the network was opened."""
        for owner, key, name, seal in self._seals:
            if owner.get(key) is not seal.tensor or seal.broken():
                raise DivergenceError(f"'{name}' changed since '{self.name}' was opened; open it and record again.")

    def renew_seals(self) -> None:
        """After a run that wrote into its weights and put them back: their versions have moved on."""
        self._seals = [(owner, key, name, seal.renewed()) for owner, key, name, seal in self._seals]

    def plans(self, graph: Graph) -> dict[Any, Any]:
        """What was worked out for runs of this graph; kept as long as new runs follow it."""
        guide = next((guide for guide in self._guides.values() if guide.tape.graph is graph), None)
        return guide.plans if guide is not None else {}

    # ---- inputs

    def encode(self, texts: str | Sequence[str]) -> Tensor:
        """Texts to token ids [batch, pos]. Raises InputError for an empty batch or texts of different lengths."""
        if self.tokenizer is None:
            raise InputError(f"'{self.name}' has no tokenizer; give tensors, or open it with tokenizer=….")
        listed = [texts] if isinstance(texts, str) else list(texts)
        if not listed:
            raise InputError("The batch is empty; give at least one text.")
        rows = [self.tokenizer.encode(text) for text in listed]
        if any(len(row) != len(rows[0]) for row in rows):
            odd = next(place for place, row in enumerate(rows) if len(row) != len(rows[0]))
            raise InputError(
                f"Text {odd} has {len(rows[odd])} tokens and text 0 has {len(rows[0])}; padding would change what the "
                "network sees, so give texts of the same number of tokens."
            )
        if not rows[0]:
            raise InputError("The text has no tokens; give at least one word.")
        return torch.tensor(rows)

    def tokens(self, text: str) -> list[str]:
        """The tokens of a text, as text."""
        return [self.token_text(int(token)) for token in self.encode(text)[0]]

    def token_text(self, token: int) -> str:
        """One token as text, or its number without a tokenizer."""
        return self.tokenizer.decode([token]) if self.tokenizer is not None else str(token)

    def token_id(self, text: str) -> int:
        """The id of a text that is exactly one token. Raises InputError otherwise."""
        if self.tokenizer is None:
            raise InputError(f"'{self.name}' has no tokenizer; give token ids or class numbers instead of {text!r}.")
        ids = self.tokenizer.token(text)
        if len(ids) != 1:
            parts = " + ".join(repr(self.token_text(token)) for token in ids) or "no tokens"
            raise InputError(f"{text!r} is not a single token here but {parts}; choose another word (mind the space).")
        return ids[0]

    def _inputs(self, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if self.processor is not None and inputs and not any(isinstance(item, Tensor) for item in inputs):
            made = self.processor(*inputs)
            inputs, kwargs = ((), {**made, **kwargs}) if isinstance(made, Mapping) else ((made,), kwargs)
        args = tuple(self._input(item) for item in inputs)
        found = list(tensors((args, kwargs)))
        if not found and not inputs:
            raise InputError("Nothing to run on; give a text, a list of texts or tensors.")
        if any(isinstance(item, Iterator) for item in (*args, *kwargs.values())):
            raise InputError("An input is an iterator, which can be read only once; give a list of its items.")
        for tensor in found:
            if tensor.is_meta:
                raise InputError("An input is on the meta device and holds no numbers; give one with numbers.")
            if tensor.is_nested:
                if tensor.layout is torch.strided:
                    raise InputError(
                        "An input is a nested tensor of the old layout, whose parts torch does not show; make it with "
                        "layout=torch.jagged, or give its parts one by one."
                    )
                continue
            if tensor.ndim and tensor.shape[0] == 0:
                raise InputError("The batch is empty; give at least one example.")
            plain = tensor.values() if tensor.layout in _COMPRESSED else tensor
            if plain.is_floating_point() and torch.isnan(plain).any():
                raise InputError("An input holds NaN; clean the data first.")
        # Copies, so that a buffer that is used again does not change what was recorded.
        args, kwargs = fresh((args, kwargs))
        return args, {**self.defaults, **kwargs}

    def _input(self, item: Any) -> Any:
        text = isinstance(item, str) or (isinstance(item, (list, tuple)) and all(isinstance(x, str) for x in item))
        return self.encode(item) if text else item

    # ---- runs

    def record(
        self,
        *inputs: Any,
        keep: str | Iterable[str] = "all",
        interventions: Sequence[Intervention] = (),
        **kwargs: Any,
    ) -> Trace:
        """Run once and record. Inputs are texts or whatever the module's forward takes.

        `keep`: "all", "none", "checkpoints" (what is alive at 16 moments, for long runs), or sites whose values to keep
        (shell patterns allowed); others are made again when read.
        `interventions` are made during the run. Raises InputError, ModelError, SiteError.
        """
        args, kwargs = self._inputs(inputs, kwargs)
        if interventions:  # the plain run says where the sites lie
            plain = self._record(args, kwargs, True)
            return (
                plain.replay(*interventions) if _inside(plain, interventions) else self.run_live(plain, interventions)
            )
        kept = self._keep(keep, args, kwargs)
        found = self._record(args, kwargs, kept)
        if isinstance(kept, Kept):
            kept.check(found.graph)
        if self.pending:
            self._check_attached(found)
        return found

    def attach(self, basis: Basis, site: str | Sequence[str] | None = None, **options: Any) -> Network:
        """A network with a dictionary's latents as sites; see `cutaway.features.attach`. This one stays as it is."""
        if self.attacher is None:
            raise InputError(
                "This network was made without cutaway.open; use cutaway.features.attach(net, dictionary)."
            )
        return self.attacher(self, basis, site, **options)

    def _check_attached(self, trace: Trace) -> None:
        checks, self.pending = self.pending, []  # reading values may record again
        try:
            self.notes += [note for check in checks if (note := check(trace))]
        except CutawayError:
            self.pending = checks
            raise

    def _record(
        self,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        keep: Kept | Checkpoints | bool,
        edits: Edits | None = None,
    ) -> Trace:
        self.check_weights()
        key = None if edits else form(args, kwargs)
        guide = self._guides.pop(key, None) if key is not None else None
        if guide is not None and not isinstance(keep, Checkpoints) and guide.snapshot.same():
            own_args, own_kwargs = fresh((args, kwargs))
            found = follow(self.module, guide, own_args, own_kwargs, keep)
            if found is not None:
                self._guides[key] = guide
                return Trace(self, found[0], args, kwargs, found[1])
        snapshot = Snapshot(self.module)
        try:
            # What a run writes into its inputs, a cache for example, stays its own.
            own_args, own_kwargs = fresh((args, kwargs))
            tape, output = record_tape(self.module, own_args, own_kwargs, keep, edits, snapshot, (args, kwargs))
        finally:
            self.renew_seals()
        if tape.graph.outputs and not tape.graph.rooted():
            raise ModelError(
                f"Nothing of '{self.name}' can be recorded: no torch call of this thread leads from its inputs or "
                "weights to its output, so its forward runs in another thread or process, in compiled code or outside "
                "torch; open the module that does the work."
            )
        if key is not None and (recorded := Guide.of(tape, snapshot)) is not None:
            self._guides[key] = recorded
            while len(self._guides) > _MOST_GUIDES:
                del self._guides[next(iter(self._guides))]
        return Trace(self, tape, args, kwargs, output)

    def _keep(
        self, keep: str | Iterable[str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Kept | Checkpoints | bool:
        if isinstance(keep, str) and keep == "checkpoints":
            return Checkpoints()
        if isinstance(keep, str) and keep in ("all", "none"):
            return keep == "all"
        names = [keep] if isinstance(keep, str) else list(keep) if isinstance(keep, Iterable) else [keep]
        if odd := [name for name in names if not isinstance(name, str)]:
            raise InputError(f"keep= takes 'all', 'none', 'checkpoints' or sites as text, not {odd[0]!r}.")
        raw = [name for name in names if "/" in name or "*" in name]
        if lifted := [name for name in names if name not in raw]:
            reference = self._record(args, kwargs, False)
            for name in lifted:
                address = reference.locate(Site(Site.parse(name).name)).address.split("//")[0]
                value, _ = reference._find(reference.tape, address)
                raw.append(reference.graph.site(value))
        return Kept(raw)

    def run_live(self, plain: Trace, interventions: Sequence[Intervention]) -> Trace:
        """The network run again with the edits made on the way (no replay)."""
        _, _, edits, fired = plain._edits(interventions, set())
        addresses = [plain.locate(what.site).address for what in interventions]
        if inner := [address for address in addresses if "//" in address]:
            raise SiteError(
                f"'{inner[0]}' lies inside an op that only a replay can open; edit it by a replay of a trace."
            )
        table: Edits = {}
        for address, edit in zip(addresses, edits, strict=True):
            if address.startswith(("param:", "buffer:", "const:")) or "/alias." in address:
                raise SiteError(f"'{address}' is not made by a call of the network; edit it by a replay of a trace.")
            if written_through(plain.tape, address):
                raise SiteError(f"'{address}' is a view that is written through; edit it by a replay of a trace.")
            table.setdefault(address if address.startswith("input:") else address.removesuffix(":0"), []).append(edit)
        found = self._record(plain.args, plain.kwargs, True, table)
        found.receipt = receipts(fired)
        found.interventions = tuple(interventions)
        found.live = True
        return found


def accepts(module: nn.Module, name: str) -> bool:
    """Whether a module's forward takes a keyword of this name."""
    return name in inspect.signature(module.forward).parameters


def _inside(trace: Trace, interventions: Sequence[Intervention]) -> bool:
    addresses = [trace.locate(what.site).address for what in interventions]
    return any("//" in address or written_through(trace.tape, address) for address in addresses)
