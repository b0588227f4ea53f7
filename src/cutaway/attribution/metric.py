"""Metrics: one number an example, read from a network's output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import CutawayError, InputError, MetricError
from ..run.network import Network
from ..run.trace import Trace

Answer = str | int | Sequence[str] | Sequence[int] | Tensor


@dataclass(frozen=True, eq=False)
class Metric:
    """A number an example. `read` takes (main output, network) to [batch]; `facts` say what it is, JSON-able.

    With a `position`, `read` is given the output at that position alone, [batch, classes].

    A behaviour is measured as the metric on the clean inputs minus that on the corrupted ones, so a larger value means
    more of the behaviour.
    """

    name: str
    read: Callable[[Tensor, Network], Tensor]
    facts: dict[str, Any]
    position: int | None = None

    def __call__(self, output: Float[Tensor, "batch *rest"], net: Network) -> Float[Tensor, " batch"]:
        """The metric of each example. Raises MetricError when the output cannot give it."""
        return self.of(output if self.position is None else at_position(output, self.position), net)

    def of(self, output: Float[Tensor, "batch *rest"], net: Network) -> Float[Tensor, " batch"]:
        """The metric from the output at its position: [batch, classes] or [batch, 1, classes]."""
        if self.position is not None and output.ndim == 3:
            output = output[:, 0]
        try:
            found = self.read(output, net)
        except CutawayError:
            raise
        except Exception as error:  # a function of the caller's own may raise anything
            reason = f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}"
            raise MetricError(f"The metric '{self.name}' fails on this output: {reason}") from error
        if not isinstance(found, Tensor):
            made = type(found).__name__
            raise MetricError(f"The metric '{self.name}' gave a {made}; return a tensor, one number an example.")
        if found.ndim != 1 or found.shape[0] != output.shape[0]:
            raise MetricError(
                f"The metric '{self.name}' gave shape {tuple(found.shape)} for {output.shape[0]} examples; "
                "return one number an example."
            )
        return found


def logit_difference(correct: Answer, wrong: Answer, position: int = -1, *, labels: bool = False) -> Metric:
    """logit(correct) - logit(wrong), at a position when the output has positions (higher means more of the behaviour).

    Answers are tokens as text, class numbers, or one of either an example. `labels` states that they come from the data
    and not from what this network predicts, which `verify` cannot see of a network that predicts them well.

    Raises MetricError, when it is first read, for a text that is not a single token or a position that is not there.
    """

    def read(rows: Tensor, net: Network) -> Tensor:
        right, other = class_ids(correct, rows, net), class_ids(wrong, rows, net)
        if bool((right == other).all()):
            raise MetricError(
                "The correct and the wrong answer are the same for every example; choose two that differ."
            )
        return rows.gather(1, right[:, None])[:, 0] - rows.gather(1, other[:, None])[:, 0]

    facts = {"kind": "logit_difference", "correct": _say(correct), "wrong": _say(wrong), "position": position}
    facts |= {"labels": True} if labels else {}
    return Metric("logit difference", read, facts, position)


def logit(answer: Answer, position: int = -1) -> Metric:
    """The logit of an answer minus the mean logit (higher means more of the behaviour)."""

    def read(rows: Tensor, net: Network) -> Tensor:
        return rows.gather(1, class_ids(answer, rows, net)[:, None])[:, 0] - rows.mean(1)

    return Metric("logit", read, {"kind": "logit", "answer": _say(answer), "position": position}, position)


def output_distance(reference: Trace) -> Metric:
    """Minus the mean squared difference of an example's output from a reference run's (0 is best: the same output)."""
    wanted = reference.logits.detach()

    def read(output: Tensor, net: Network) -> Tensor:
        _check_like(output, wanted)
        return -(output - wanted).square().flatten(1).mean(1)

    return Metric("output distance", read, {"kind": "output_distance", "direction": "closer to 0 is better"})


def kl_divergence(reference: Trace, position: int | None = None) -> Metric:
    """Minus the KL divergence in nats of an example's output from a reference run's (0 is best), mean over positions or
    at one position. Its gradient is zero at the reference itself."""
    wanted = reference.logits.detach() if position is None else at_position(reference.logits.detach(), position)
    wanted = wanted.log_softmax(-1)

    def read(output: Tensor, net: Network) -> Tensor:
        _check_like(output, wanted)
        apart = wanted.exp() * (wanted - output.log_softmax(-1))
        return -apart.sum(-1).flatten(1).mean(1) if apart.ndim > 2 else -apart.sum(-1)

    facts = {"kind": "kl_divergence", "position": position, "direction": "closer to 0 is better"}
    return Metric("KL divergence", read, facts, position)


def check_gradient(metric: Metric, found: Tensor) -> None:
    """Raise MetricError when a metric's value does not depend on the output by differentiable functions."""
    if not found.requires_grad:
        raise MetricError(
            f"The metric '{metric.name}' cuts the gradient off (detach, no_grad, numpy or argmax); "
            "write it with differentiable torch functions."
        )


def _check_like(output: Tensor, wanted: Tensor) -> None:
    if output.shape != wanted.shape:
        raise MetricError(
            f"The output has shape {tuple(output.shape)} and the reference run's {tuple(wanted.shape)}; "
            "record the reference on the same inputs."
        )


def as_metric(what: Any) -> Metric:
    """A metric as it is; a function as a custom one. Raises MetricError for anything else."""
    if isinstance(what, Metric):
        return what
    if callable(what):
        return custom(what, getattr(what, "__name__", "custom metric"))
    given = type(what).__name__
    raise MetricError(f"A {given} is no metric; give cutaway.logit_difference(…) or a function of the output.")


def custom(function: Callable[[Tensor], Tensor], name: str = "custom metric") -> Metric:
    """A metric of your own: a differentiable function of the main output to one number an example."""
    return Metric(name, lambda output, net: function(output), {"kind": "custom", "name": name})


def at_position(output: Tensor, position: int) -> Tensor:
    """[batch, classes] of an output [batch, classes] or [batch, pos, classes]."""
    if output.ndim == 2:
        return output
    if output.ndim != 3:
        raise MetricError(
            f"The output has shape {tuple(output.shape)}; logits at a position need [batch, classes] or "
            "[batch, pos, classes]. Give a metric of your own with cutaway.custom(function)."
        )
    if not -output.shape[1] <= position < output.shape[1]:
        raise MetricError(f"There is no position {position}; the output has {output.shape[1]}.")
    return output[:, position]


def class_ids(answer: Answer, rows: Float[Tensor, "batch classes"], net: Network) -> Tensor:
    """[batch]: the class of each example's answer. Raises MetricError for a class or a token that is not there."""
    listed: Any = answer.tolist() if isinstance(answer, Tensor) else answer
    if isinstance(listed, (str, int)):
        listed = [listed]
    try:
        ids = [net.token_id(item) if isinstance(item, str) else int(item) for item in listed]
    except InputError as error:
        raise MetricError(str(error)) from None
    if len(ids) == 1:
        ids = ids * rows.shape[0]
    if len(ids) != rows.shape[0]:
        raise MetricError(f"There are {len(ids)} answers for {rows.shape[0]} examples; give one each, or one for all.")
    if bad := [item for item in ids if not 0 <= item < rows.shape[1]]:
        raise MetricError(f"There is no class {bad[0]}; the output has {rows.shape[1]} classes.")
    return torch.tensor(ids, device=rows.device)


def _say(answer: Answer) -> Any:
    listed: Any = answer.tolist() if isinstance(answer, Tensor) else answer
    return listed if isinstance(listed, (str, int)) else list(listed)
