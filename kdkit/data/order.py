"""Which samples form which batch: a function of (seed, epoch), cut among ranks, that can be entered in the middle."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from kdkit import draws
from kdkit.registry import KdkitError


def rank_and_world() -> tuple[int, int]:
    """(rank, number of ranks) of the process group, (0, 1) without one; asked when batches are made, not before."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1


class Order:
    """The batches of one epoch after another, as index tensors.

    Batch k of an epoch holds `permutation[k·B : (k+1)·B]` however many ranks there are: rank r of W takes every W-th of
    these, from the r-th. B is therefore the batch of the whole run, as a paper states it, and must be a multiple of W.
    Where the epoch's last batch is not, it is filled up with the epoch's first samples (at most W − 1).

    It has a batch sampler's face (`batch_size`, `sampler.set_epoch`), so that any Lightning Trainer moves it from epoch
    to epoch. In a plain loop, an epoch that was read to its end is followed by the next one.

    Args:
        num_samples: n; the order is of 0…n−1.
        batch_size: B, over all ranks.
        seed: of the shuffling; None keeps the natural order and gives every rank everything (evaluation: exact counts).
        drop_last: leave out the last batch where it is not full.
        whole: every rank takes whole batches.

    Raises:
        KdkitError: no sample, or no batch, is left.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        *,
        seed: int | None = None,
        drop_last: bool = False,
        whole: bool = False,
    ) -> None:
        if num_samples < 1 or (drop_last and num_samples < batch_size):
            raise KdkitError(f"data: batch_size must be at most the {num_samples} samples there are, got {batch_size}")
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.whole = whole
        self.epoch = 0
        self.position = 0
        self._resumed = False

    @property
    def sampler(self) -> Order:
        """Itself: Lightning looks for `batch_sampler.sampler.set_epoch`."""
        return self

    def __len__(self) -> int:
        full, rest = divmod(self.num_samples, self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Start the given epoch at its first batch, or where a loaded state has left it."""
        if not (self._resumed and epoch == self.epoch):
            self.epoch, self.position, self._resumed = epoch, 0, False

    def state_dict(self) -> dict[str, Any]:
        """Epoch, and the number of its batches already handed out; the rest only guards against a changed recipe."""
        names = ("epoch", "position", "num_samples", "batch_size", "seed", "drop_last")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after the last batch of `state`; raises `KdkitError` where its batches were not these batches."""
        for name in ("num_samples", "batch_size", "seed", "drop_last"):
            if state[name] != (now := getattr(self, name)):
                raise KdkitError(
                    f"data: {name} must be {state[name]} as in the checkpoint, got {now}; start a new run to change it"
                )
        self.epoch, self.position, self._resumed = state["epoch"], state["position"], True

    def batches(self, device: torch.device | str = "cpu") -> Iterator[tuple[int, Tensor]]:
        """The rest of the epoch as (position behind the batch, this rank's share of it: int64 on `device`).

        A loader stores `position` when it hands the batch out: what only waits in a queue has not been seen.
        """
        if self.position >= len(self):
            self.epoch, self.position = self.epoch + 1, 0
        elif not self._resumed:
            self.position = 0
        self._resumed = False
        rank, world = (0, 1) if self.seed is None or self.whole else rank_and_world()
        if self.batch_size % world:
            raise KdkitError(
                f"data: batch_size must be a multiple of the {world} ranks, "
                f"got {self.batch_size}; it counts the images of all ranks"
            )
        order = self._permutation(device)
        for k in range(self.position, len(self)):
            batch = order[k * self.batch_size : (k + 1) * self.batch_size]
            if missing := -len(batch) % world:
                batch = torch.cat([batch, order[:missing]])
            yield k + 1, batch[rank::world]

    def _permutation(self, device: torch.device | str) -> Tensor:
        if self.seed is None:
            return torch.arange(self.num_samples, device=device)
        return draws.permutation(draws.key(self.seed, "order", self.epoch), self.num_samples, device)


class Loader:
    """An iterable over an `Order`'s batches, with what Lightning asks of a loader.

    It is no `DataLoader`, so that Lightning puts no sampler of its own into it, and `sampler` is missing on purpose: a
    loader that has one crashes in validation.
    """

    def __init__(self, order: Order) -> None:
        self.batch_sampler = order

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def set_epoch(self, epoch: int) -> None:
        """See `Order.set_epoch`."""
        self.batch_sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands: at the last batch handed out, however many have been prepared."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.batch_sampler.load_state_dict(state)
