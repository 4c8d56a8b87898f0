"""A temperature that follows what models say of held-out training samples, instead of a schedule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.graph.schedule import Curve, Schedule, Spec
from kdkit.registry import KdkitError, nearest


@dataclass(frozen=True)
class Control:
    """`{control: entropy, target: 1.7}` or `{control: nll}`: moved by at most `by` at the end of every epoch.

    `entropy`: to the value, of T − by, T and T + by, at which the mean entropy of softmax(teacher / T) is closest to
    `target`. `nll`: a climb; on in the same direction while the learner's mean NLL falls, else the last move is taken
    back and the next one goes the other way. Both look at held-out training samples (`data.val_split`), never at test
    data. Every teacher and learner of an edge have a temperature of their own.

    Attributes:
        control: what it follows.
        target: nats; for `entropy` alone.
        start: first value.
        by: size of a move.
        low: least value.
        high: greatest value.

    Raises:
        KdkitError: a word is missing, unknown or out of range.
    """

    control: Literal["entropy", "nll"]
    target: float | None = None
    start: float = 1.0
    by: float = 0.5
    low: float = 1.0
    high: float = 8.0

    def __post_init__(self) -> None:
        if self.control not in ("entropy", "nll"):
            raise KdkitError(f"control must be 'entropy' or 'nll', got {self.control!r}")
        for word in ("target", "start", "by", "low", "high"):
            value = getattr(self, word)
            number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
            if not (number and value > 0) and not (word == "target" and value is None):
                raise KdkitError(f"control: {word} must be a number above 0, got {value!r}")
        if (self.target is None) == (self.control == "entropy"):
            raise KdkitError("control: target, in nats, goes with `control: entropy` and with nothing else")
        if not self.low <= self.start <= self.high:
            raise KdkitError(f"control: start must lie in [{self.low:g}, {self.high:g}], got {self.start:g}")

    @classmethod
    def parse(cls, spec: Mapping[str, Any]) -> Control:
        """Read the words of a recipe."""
        known = [f.name for f in fields(cls)]
        for word in spec:
            if word not in known:
                raise KdkitError(f"control: unknown word {word!r}{nearest(str(word), known)}")
        return cls(**spec)

    def bind(self, epochs: float) -> Curve:
        """Where it begins, as a schedule says it."""
        return partial(_flat, value=float(self.start))

    def extremes(self, epochs: float) -> tuple[float, float]:
        """What a constructor has to accept."""
        return self.low, self.high

    @property
    def constant(self) -> bool:
        """No schedule moves it."""
        return True

    def __str__(self) -> str:
        return f"held by {self.control}{'' if self.target is None else f' at {self.target:g}'}"


def _flat(t: float, value: float) -> float:
    return value


def moving(spec: Spec | Control) -> Schedule | Control:
    """A number, a schedule, or what is controlled."""
    if isinstance(spec, Control):
        return spec
    return Control.parse(spec) if isinstance(spec, Mapping) and "control" in spec else Schedule.parse(spec)


class Climb(nn.Module):
    """What a climb remembers of every call; a checkpoint keeps it.

    Attributes:
        last: the learner's NLL an epoch ago; infinite before the first.
        up: whether the next move goes up.
    """

    last: Tensor
    up: Tensor

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.register_buffer("last", torch.full((calls,), math.inf))
        self.register_buffer("up", torch.ones(calls, dtype=torch.bool))

    def move(self, i: int, now: float, nll: float, control: Control) -> float:
        """The next temperature of the i-th call, from this one and what was seen with it."""
        if math.isfinite(float(self.last[i])) and not nll < float(self.last[i]):
            self.up[i] = ~self.up[i]
        self.last[i] = nll
        step = control.by if self.up[i] else -control.by
        new = min(max(now + step, control.low), control.high)
        if new == now:  # it stands at an end
            self.up[i] = ~self.up[i]
        return new


def entropy(logits: Tensor, temperature: float) -> float:
    """Mean entropy of softmax(logits / T) in nats."""
    log_p = F.log_softmax(logits.double() / temperature, -1)
    return float(-(log_p.exp() * log_p).sum(-1).mean())


def towards(now: float, logits: Tensor, control: Control) -> float:
    """Of T − by, T and T + by within the limits, the one whose entropy is closest to the target."""
    assert control.target is not None
    target = control.target
    moves = {min(max(now + step, control.low), control.high) for step in (-control.by, 0.0, control.by)}
    return min(sorted(moves), key=lambda T: (abs(entropy(logits, T) - target), abs(T - now)))
