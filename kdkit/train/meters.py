"""What training says of itself: sums on the device, read once an epoch, and a watch for values that are not finite."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.registry import KdkitError


class NonFiniteLossError(KdkitError):
    """A loss term became NaN or infinite."""


class TermSums:
    """Mean of each loss term over an epoch, without a read per step; saved with the checkpoint."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    @torch.no_grad()
    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add one step's unweighted terms."""
        self.add_values(terms)
        self.count(terms)

    @torch.no_grad()
    def add_values(self, terms: Mapping[str, Tensor]) -> None:
        """The part of `add` that the device does, in place."""
        for name, value in terms.items():
            if name not in self.sums or self.sums[name].device != value.device:  # a checkpoint is read before the move
                self.sums[name] = self.sums.get(name, torch.zeros(())).to(value.device)
            self.sums[name].add_(value.detach().float())

    def count(self, names: Iterable[str]) -> None:
        """The part of `add` that the host does."""
        for name in names:
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, Tensor]:
        """Mean of each term since the last `clear`."""
        return {name: self.sums[name] / count for name, count in self.counts.items()}

    def clear(self) -> None:
        """Begin anew."""
        for total in self.sums.values():
            total.zero_()
        self.counts.clear()

    def state_dict(self) -> dict[str, Any]:
        """Sums and counts of what came since the last `clear`."""
        return {"sums": {name: self.sums[name] for name in self.counts}, "counts": dict(self.counts)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self.sums = {name: value.to(device) for name, value in state["sums"].items()}
        self.counts = dict(state["counts"])


class FiniteWatch:
    """Stops training at the first term that is not finite, naming it.

    On the CPU the values are looked at before the update. An accelerator is not made to wait: its flags are copied in
    the background and looked at when they have arrived, a step or two later.
    """

    def __init__(self) -> None:
        self._pending: tuple[torch.cuda.Event, Tensor, list[str], int] | None = None

    def look(self, terms: Mapping[str, Tensor], step: int) -> None:
        """Look at one step's terms.

        Raises:
            NonFiniteLossError: a term is NaN or infinite.
        """
        if not terms:
            return
        flags = torch.stack([value.detach().isfinite() for value in terms.values()])
        if flags.device.type != "cuda":
            self._judge(flags, list(terms), step)
            return
        if self._pending is not None and self._pending[0].query():
            self._judge(*self._pending[1:])
            self._pending = None
        if self._pending is None:
            here = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
            here.copy_(flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._pending = (event, here, list(terms), step)

    def drain(self) -> None:
        """Wait for flags that are still on their way; once an epoch, before its checkpoint is written."""
        if self._pending is not None:
            self._pending[0].synchronize()
            pending, self._pending = self._pending, None
            self._judge(*pending[1:])

    @staticmethod
    def look_at_weights(models: Mapping[str, nn.Module], epoch: int) -> None:
        """Look at every weight, once an epoch: a finite loss can have a gradient that is not.

        Raises:
            NonFiniteLossError: a weight is NaN or infinite.
        """
        for name, model in models.items():
            if not all(bool(parameter.isfinite().all()) for parameter in model.parameters()):
                raise NonFiniteLossError(
                    f"the weights of {name!r} are not finite after epoch {epoch + 1}, though every loss was; "
                    "training has stopped, and no checkpoint holds them"
                )

    @staticmethod
    def _judge(flags: Tensor, names: list[str], step: int) -> None:
        if not bool(flags.all()):
            bad = ", ".join(name for name, fine in zip(names, flags.tolist(), strict=True) if not fine)
            raise NonFiniteLossError(
                f"the loss {bad} is not finite at step {step}; training has stopped before any checkpoint of it. "
                "A lower learning rate, a warm-up or trainer.gradient_clip_val usually helps"
            )
