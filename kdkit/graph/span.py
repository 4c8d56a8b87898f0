"""When a node or an edge takes part: from one time of the run to another."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdkit.registry import KdkitError, nearest


@dataclass(frozen=True)
class Span:
    """Active from `start` (included) to `end` (excluded), in epochs, or in shares of the run where below 1.

    Attributes:
        start: first moment; 0 is the beginning.
        end: the moment it stops; `None` is the end of the run.
    """

    start: float = 0.0
    end: float | None = None

    @classmethod
    def parse(cls, spec: Span | Mapping[str, Any] | None) -> Span:
        """Read `{from: 10, to: 40}`; either side may be left out."""
        if spec is None:
            return cls()
        if isinstance(spec, Span):
            return spec
        if not isinstance(spec, Mapping):
            raise KdkitError(f"when: must be {{from: …, to: …}} in epochs, got {spec!r}")
        for word, value in spec.items():
            if word not in ("from", "to"):
                raise KdkitError(f"when: unknown word {word!r}{nearest(str(word), ['from', 'to'])}")
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
                raise KdkitError(f"when.{word} must be a time of 0 or more, got {value!r}")
        span = cls(spec.get("from", 0.0), spec.get("to"))
        if span.end is not None and (span.start < 1) == (span.end < 1) and span.end <= span.start:
            raise KdkitError(f"when: must end after it starts, got {spec!r}")
        return span

    def bind(self, epochs: float) -> tuple[float, float]:
        """Both moments in epochs.

        Raises:
            KdkitError: where it never begins in a run of `epochs`.
        """
        start, end = (None if time is None else _moment(time, epochs) for time in (self.start, self.end))
        if start is None or start >= epochs:
            raise KdkitError(f"when.from: epoch {self.start:g} never comes in a run of {epochs:g} epochs")
        if end is not None and end <= start:
            raise KdkitError(f"when: must end after it starts, got epochs {start:g} to {end:g} of {epochs:g}")
        return start, float("inf") if end is None else end


def _moment(time: float, epochs: float) -> float:
    """In epochs; a share of the run that rounding sets beside an epoch is that epoch."""
    if time >= 1:
        return time
    moment = time * epochs
    return float(round(moment)) if abs(moment - round(moment)) < 1e-9 else moment
