"""Weights that are shares of the gradient: what is said of them, what is measured, and what they cannot be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit.graph.schedule import WORDS, Schedule, Spec
from kdkit.registry import KdkitError, nearest

if TYPE_CHECKING:
    from kdkit.graph.bound import BoundEdge
    from kdkit.graph.phase import Phase

STEPS = 100
"""Training steps over which a share becomes a weight."""


@dataclass(frozen=True)
class Share:
    """`{share: 0.5}`: the weight with which an edge has this share of all that its model is told.

    An edge tells a model ‖weight · ∂term/∂θ‖, θ being the trained weights of the models that the edge teaches. The sum
    runs over every edge that teaches them at that time. Whatever a loss divides by, wherever it is tapped and however
    large the batch is, the same share is the same pull on the model. Both sides are means over the first steps in which
    the edge takes part; what they come to then stays.

    Attributes:
        value: between 0 and 1.
        why: who asked for it, where no weight of the edge's own did.

    Raises:
        KdkitError: not between 0 and 1.
    """

    value: float
    why: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        number = isinstance(self.value, (int, float)) and not isinstance(self.value, bool)
        if not (number and 0 < self.value < 1):
            raise KdkitError(f"a share must lie between 0 and 1, got {self.value!r}")

    @classmethod
    def parse(cls, spec: Spec | Share) -> Share | Schedule:
        """A weight as it is said: `{share: 0.5}`, else a number or a schedule."""
        if isinstance(spec, Share):
            return spec
        if isinstance(spec, Mapping) and list(spec) == ["share"]:
            return cls(spec["share"])
        if isinstance(spec, Mapping) and len(spec) == 1 and not spec.keys() & WORDS.keys():
            (word,) = spec
            if near := nearest(str(word), ["share"]):
                raise KdkitError(f"unknown schedule {word!r}{near}")
        return Schedule.parse(spec)

    def __str__(self) -> str:
        return f"share {self.value:g}{f' ({self.why})' if self.why else ''}"


class Calibration(nn.Module):
    """What was measured of an edge with a share; a checkpoint keeps it.

    Attributes:
        own: sum of the norms of its unweighted gradient.
        whole: sum of what its models were told by all edges.
        steps: how many have begun.
        measuring: whether the step that runs now is measured.
    """

    own: Tensor
    whole: Tensor

    def __init__(self, share: Share) -> None:
        super().__init__()
        self.share, self.steps, self.measuring = share.value, 0, False
        self.register_buffer("own", torch.zeros(()))
        self.register_buffer("whole", torch.zeros(()))

    @property
    def open(self) -> bool:
        """Whether the weight may still move."""
        return self.measuring or self.steps < STEPS

    def begin(self) -> bool:
        """Begin a step; returns whether measuring has begun or ended with it."""
        before, self.measuring = self.measuring, self.steps < STEPS
        self.steps += self.measuring
        return before != self.measuring

    def add(self, own: Tensor, whole: Tensor) -> Tensor:
        """Take in a measurement, unless it tells nothing (fp16 overflows at first), and give the weight."""
        fine = own.isfinite() & whole.isfinite() & (own > 0) & (whole > 0)
        self.own += torch.where(fine, own, 0.0)
        self.whole += torch.where(fine, whole, 0.0)
        return torch.where(self.own > 0, self.share * self.whole / self.own, 0.0)

    def get_extra_state(self) -> Tensor:
        """The steps, which the host counts."""
        return torch.tensor(self.steps)

    def set_extra_state(self, state: Any) -> None:
        """Go on from a checkpoint."""
        self.steps = int(state)


def check_shares(phases: Sequence[Phase]) -> None:
    """Raise `KdkitError` where shares leave nothing to the others, or have no others."""
    seen: set[str] = set()
    for phase in phases:
        for edge in phase.edges:
            if edge.calibration is not None:
                if not any(phase.parts.get(name) for name in edge.targets):
                    whom = f"{' and '.join(sorted(edge.targets))} rest{'s' * (len(edge.targets) == 1)}"
                    raise KdkitError(
                        f"edge {edge.name!r}, {edge.edge.weight}: {whom} at epoch {phase.start:g}, so that there is no "
                        "gradient to share out; give it a number"
                    )
                _check(edge, [other for other in phase.edges if other.targets & edge.targets], edge.name in seen)
                seen.add(edge.name)


def _check(edge: BoundEdge, rivals: Sequence[BoundEdge], began: bool) -> None:
    """One edge among those that teach the same models in a phase, itself included."""
    shares = {other.name: other.calibration.share for other in rivals if other.calibration is not None}
    for other in rivals:
        if other.name in shares and other.targets != edge.targets:
            sides = (", ".join(sorted(some.targets)) for some in (edge, other))
            raise KdkitError(
                f"edges {edge.name!r} and {other.name!r}, {edge.edge.weight}: shares are of one whole; these teach "
                f"{' and '.join(sides)}; let them teach the same models, or none in common"
            )
    if sum(shares.values()) >= 1 - 1e-9:
        told = " + ".join(f"{value:g} ({name})" for name, value in shares.items())
        raise KdkitError(f"edge {edge.name!r}: shares must leave something to the other losses, got {told}")
    if not began and all(other.name in shares or other.silent for other in rivals):
        raise KdkitError(
            f"edge {edge.name!r}: {edge.edge.weight} needs a loss beside it with a plain weight, which "
            f"teaches {', '.join(sorted(edge.targets))} at the same time; give one of them a number"
        )
