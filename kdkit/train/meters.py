"""What training says of itself: sums on the device, read once an epoch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.registry import KdkitError


class NonFiniteLossError(KdkitError):
    """A loss term became NaN or infinite."""


class TermSums:
    """Mean of each loss term over an epoch, without a read per step; saved with the checkpoint.

    Attributes:
        good: whether the step counts, where only the device knows.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}
        self.missed: dict[str, Tensor] = {}
        self.good: Tensor | None = None

    @torch.no_grad()
    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add one step's unweighted terms."""
        self.add_values(terms)
        self.count(terms)

    @torch.no_grad()
    def add_values(self, terms: Mapping[str, Tensor]) -> None:
        """The part of `add` that the device does, in place."""
        good = self.good
        for name, value in terms.items():
            held = (self.sums,) if good is None else (self.sums, self.missed)
            for sums in held:  # a checkpoint is read before the move
                if name not in sums or sums[name].device != value.device:
                    sums[name] = sums.get(name, torch.zeros(())).to(value.device)
            if good is None:
                self.sums[name].add_(value.detach().float())
            else:
                self.sums[name].add_(torch.where(good, value.detach().float(), 0.0))
                self.missed[name].add_((~good).float())

    def count(self, names: Iterable[str]) -> None:
        """The part of `add` that the host does."""
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """Mean of each term since the last `clear`; without those of which no step counted."""
        missed = torch.stack(list(self.missed.values())).tolist() if self.missed else []
        gone = dict(zip(self.missed, missed, strict=True))
        counts = {name: count - gone.get(name, 0.0) for name, count in self.counts.items()}
        return {name: self.sums[name] / count for name, count in counts.items() if count}

    def clear(self) -> None:
        """Begin anew."""
        for total in (*self.sums.values(), *self.missed.values()):
            total.zero_()
        self.counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts of what came since the last `clear`."""
        sums = {name: self.sums[name] for name in self.counts}
        return {"sums": sums, "counts": dict(self.counts), "missed": dict(self.missed)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])
        self.missed = {name: value.to(device) for name, value in state.get("missed", {}).items()}


def look_at_weights(models: Mapping[str, nn.Module], epoch: int) -> None:
    """Look at every weight, once an epoch: a finite loss can have an update that is not.

    Raises:
        NonFiniteLossError: a weight is NaN or infinite.
    """
    for name, model in models.items():
        fine = [parameter.detach().isfinite().all() for parameter in model.parameters()]
        if fine and not torch.stack(fine).all():
            raise NonFiniteLossError(
                f"the weights of {name!r} are not finite after epoch {epoch + 1}, though every loss was; "
                "training has stopped, and no checkpoint holds them"
            )
