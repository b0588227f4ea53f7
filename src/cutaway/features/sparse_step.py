"""One step of training a TopK, BatchTopK or Matryoshka dictionary or transcoder, sparse where the algebra is sparse.

Of a row, only the latents that fire are decoded, only they have gradients, and their products with the error are all
that the encoder's gradient needs. So, with k of n latents firing, nothing but the search for them (see top) costs a
product of rows and dictionary. Gradients are made for some latents at a time and used up at once. The result is that of
automatic differentiation through the dense definition, and the same code runs on CPU and GPU.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from ..errors import InputError
from .codes import Codes
from .products import group_sums, offsets_of, sampled_products
from .row_adam import RowAdam
from .top import best_codes, better_precision, fast_precision, room_for

_CHUNK = 3 << 17  # numbers of a gradient that exist at once
_REVIVED = 2048  # dead latents that one step can revive
_PRECISIONS = ("int8", "bfloat16", "float32")
_NAMES = ("encoder", "encoder_bias", "decoder", "decoder_bias")


@dataclass(frozen=True)
class StepReport:
    """What a step found, before it changed anything. `loss` is the squared error of a row on average, summed over its
    numbers, `fvu` the fraction of the batch's variance that it is (both lower is better), `l0` latents that fire on a
    row, `fired` on how many rows each latent did, `redone` the fraction of rows that needed full precision."""

    loss: float
    fvu: float
    l0: float
    fired: Int[Tensor, "latents"]
    dead: int
    redone: float


@dataclass(frozen=True)
class Options:
    """How steps are made.

    `nested` are the sizes of a Matryoshka dictionary's parts, from small to all latents (Bussmann et al. 2025,
    arXiv:2503.17547); its loss is the mean of the parts'. A latent that has not fired for `dead_after` rows is dead:
    dead ones learn to reconstruct the others' error (AuxK, Gao et al. 2024, arXiv:2406.04093), `revive` of them a row
    at most (default: half the width), on the first eighth of the batch, with `weight`. `precision` is that of the
    search for the latents that fire, by default the fastest one here; values are in single precision for any. When it
    leaves too many rows unsure, steps go on with a more exact one.
    """

    nested: Sequence[int] = ()
    dead_after: int = 1_000_000
    revive: int | None = None
    weight: float = 1 / 32
    betas: tuple[float, float] = (0.9, 0.999)
    precision: Literal["int8", "bfloat16", "float32"] | None = None


class SparseStep:
    """A dictionary in training. Its weights are the given tensors, changed in place; the decoder's rows are brought to
    unit length, and stay there.

    It reads rows as they are given: centre and scale them before (and fold that into the finished weights).
    """

    def __init__(
        self,
        encoder: Float[Tensor, "latents d_in"],
        encoder_bias: Float[Tensor, "latents"],
        decoder: Float[Tensor, "latents d_out"],
        decoder_bias: Float[Tensor, "d_out"],
        *,
        k: int,
        rule: Literal["topk", "batchtopk"] = "topk",
        options: Options | None = None,
    ) -> None:
        self.options = options or Options()
        latents = len(encoder)
        self.nested = tuple(self.options.nested) or (latents,)
        if not 0 < k <= latents:
            raise InputError(f"k is {k}; it must be from 1 to the number of latents, {latents:,}.")
        if list(self.nested) != sorted(set(self.nested)) or self.nested[-1] != latents or self.nested[0] < 1:
            raise InputError(f"Nested sizes must grow up to the number of latents, {latents:,}; given {self.nested}.")
        decoder /= decoder.norm(dim=1, keepdim=True).clamp(min=1e-8)
        self.k, self.rule = k, rule
        self.parts = dict(zip(_NAMES, map(RowAdam.of, (encoder, encoder_bias, decoder, decoder_bias)), strict=True))
        self.idle = torch.zeros(latents, dtype=torch.long, device=encoder.device)
        self._room = room_for(encoder)
        self.threshold = 0.0
        self.steps = 0
        self.precision = self.options.precision or fast_precision(str(encoder.device))

    def weights(self) -> dict[str, Tensor]:
        """The encoder, decoder and biases as they are now: the tensors themselves."""
        return {name: part.weights for name, part in self.parts.items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that going on exactly from here needs, copied."""
        found = {f"{name}.{what}": getattr(part, what).clone() for name, part in self.parts.items() for what in _STATE}
        counts = [self.steps, self.threshold, _PRECISIONS.index(self.precision)]
        return {**found, "idle": self.idle.clone(), "counts": torch.tensor(counts, dtype=torch.double)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        for name, part in self.parts.items():
            for what in _STATE:
                getattr(part, what).copy_(state[f"{name}.{what}"])
        self.idle.copy_(state["idle"])
        steps, self.threshold, precision = state["counts"].tolist()
        self.steps, self.precision = int(steps), _PRECISIONS[int(precision)]

    @torch.no_grad()
    def step(self, x: Float[Tensor, "rows d_in"], y: Float[Tensor, "rows d_out"], lr: float) -> StepReport:
        """Learn from some rows: `x` is read, `y` is to be written (the same tensor for an autoencoder).

        Raises InputError, and changes nothing, when a number is not finite.
        """
        weights = self.weights()
        encoder, bias = weights["encoder"], weights["encoder_bias"]
        best = best_codes(x, encoder, bias, self.k, rule=self.rule, precision=self.precision, room=self._room)
        codes, bags, offsets = best.codes, *self._bags(best.codes)
        tails, error = self._errors(codes, offsets, y)
        loss = float(error.flatten().dot(error.flatten())) / len(x)
        if not loss < float("inf"):
            raise InputError(
                "The loss is not finite: a row holds a number that is not, or the learning rate is too high."
            )
        spread = float(y.flatten().dot(y.flatten())) / len(y) - float(y.mean(0).square().sum())
        fired = torch.bincount(codes.latents, minlength=codes.count)
        dead = (self.idle >= self.options.dead_after).nonzero()[:, 0]
        extra = self._revived(dead, x, error) if len(dead) else None
        tails.mul_(2 / (len(x) * len(self.nested)))  # the loss's gradient from here on; `error` may be the same numbers
        self.precision = better_precision(self.precision, best.redone)
        self.steps += 1
        self._change(x, tails, codes, bags, fired, extra, lr)
        total = tails.view(len(x), len(self.nested), -1)[:, 0].sum(0)
        self._adam("decoder_bias", slice(None), total, lr)
        self.idle += len(x)
        self.idle[fired > 0] = 0
        keep = 0.0 if self.steps == 1 else 0.99 if self.steps > 100 else 1 - 1 / self.steps
        self.threshold = keep * self.threshold + (1 - keep) * best.least
        return StepReport(loss, loss / max(spread, 1e-30), codes.l0, fired, len(dead), best.redone)

    def _bags(self, codes: Codes) -> tuple[Tensor, Tensor]:
        """(the bag of each entry, where each bag begins): a bag is a row's entries in one part of the nested sizes."""
        if len(self.nested) == 1:
            return codes.rows, codes.offsets
        bounds = torch.tensor(self.nested[:-1], device=codes.latents.device)
        bags = codes.rows * len(self.nested) + torch.bucketize(codes.latents, bounds, right=True)
        return bags, offsets_of(bags, len(codes) * len(self.nested))

    def _errors(self, codes: Codes, offsets: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """(for each bag the sum of the errors that its entries have a share in, the error of the whole)."""
        parts = group_sums(self.parts["decoder"].weights, offsets, codes.latents, codes.values)
        if len(self.nested) == 1:
            error = parts.add_(self.parts["decoder_bias"].weights).sub_(y)
            return error, error
        errors = parts.view(len(codes), len(self.nested), -1).cumsum(1)
        errors = errors.add_(self.parts["decoder_bias"].weights).sub_(y[:, None])
        return errors.flip(1).cumsum(1).flip(1).reshape(len(parts), -1), errors[:, -1]

    def _change(
        self, x: Tensor, tails: Tensor, codes: Codes, bags: Tensor, fired: Tensor,
        extra: tuple[Tensor, dict[str, Tensor]] | None, lr: float,
    ) -> None:  # fmt: skip
        """Change encoder and decoder, some latents at a time. Entries are sorted by latent once, for all products."""
        order = codes.latents.argsort(stable=True)
        rows, bags, values = codes.rows[order], bags[order], codes.values[order]
        starts = torch.zeros(codes.count + 1, dtype=torch.long, device=order.device)
        starts[1:] = fired.cumsum(0)
        decoder = self.parts["decoder"].weights
        size = max(_CHUNK // decoder.shape[1], 1)
        for start in range(0, codes.count, size):
            part = slice(start, min(start + size, codes.count))
            first, last = int(starts[part.start]), int(starts[part.stop])
            offsets, here = starts[part.start : part.stop + 1] - first, slice(first, last)
            towards = sampled_products(decoder[part], tails, offsets, bags[here])
            owner = torch.repeat_interleave(fired[part])
            gradients = {
                "decoder": group_sums(tails, offsets, bags[here], values[here]),
                "encoder": group_sums(x, offsets, rows[here], towards),
                "encoder_bias": towards.new_zeros(len(offsets) - 1).index_add_(0, owner, towards),
            }
            if extra is not None:
                ours = ((extra[0] >= part.start) & (extra[0] < part.stop)).nonzero()[:, 0]
                for name, gradient in gradients.items():
                    gradient[extra[0][ours] - start] += extra[1][name][ours]
            lengthwise = (gradients["decoder"] * decoder[part]).sum(1, keepdim=True)
            gradients["decoder"].addcmul_(lengthwise, decoder[part], value=-1)  # what would only change the length
            for name, gradient in gradients.items():
                self._adam(name, part, gradient, lr)
            decoder[part] /= decoder[part].norm(dim=1, keepdim=True)

    def _revived(self, dead: Tensor, x: Tensor, error: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(dead latents, gradients by which they learn to reconstruct what the others left over)."""
        if len(dead) > _REVIVED:
            dead = dead.roll(-self.steps * _REVIVED)[:_REVIVED].sort().values
        weights, rows = self.weights(), slice(0, max(len(x) // 8, 1))
        x, left = x[rows], -error[rows]
        encoder, decoder = weights["encoder"][dead], weights["decoder"][dead]
        pre = torch.addmm(weights["encoder_bias"][dead], x, encoder.T)
        best = pre.topk(min(self.options.revive or max(x.shape[1] // 2, 1), len(dead)), sorted=False)
        codes = torch.zeros_like(pre).scatter_(1, best.indices, best.values.relu())
        off = (codes @ decoder - left) * (2 * self.options.weight / len(x))
        towards = (off @ decoder.T) * (codes > 0)
        return dead, {"decoder": codes.T @ off, "encoder": towards.T @ x, "encoder_bias": towards.sum(0)}

    def _adam(self, name: str, rows: slice, gradient: Tensor, lr: float) -> None:
        self.parts[name].apply(rows, gradient, self.steps, lr, self.options.betas)


_STATE = ("weights", "first", "second")
