"""A small data set that lives on the device: no worker, no copy, no Python per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.data.order import Order
from kdkit.data.views import CropFlip, Normalise


class DeviceLoader:
    """Batches out of one uint8 tensor on the device.

    Order and views follow from (seed, epoch, sample), so a saved position is all that an exact resume needs. It is a
    plain iterable and no `DataLoader`: Lightning leaves it alone, and moves `batch_sampler` from epoch to epoch.

    Args:
        images: (n, C, H, W) uint8, moved to `device`.
        labels: (n,) int64.
        order: the batches.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        views: random crops and flips; None: the images as they are.
        with_index: hand out `(x, y, index)` instead of `(x, y)`.
        device: where the images live and the batches appear.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        order: Order,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        views: CropFlip | None = None,
        with_index: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.batch_sampler = order
        self.views = views
        self.with_index = with_index
        self.device = device
        self.normalise = Normalise(mean, std, device)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        order = self.batch_sampler
        for position, index in order.batches(self.device):
            images = self.images.index_select(0, index)
            if self.views is not None:
                images = self.views(images, order.epoch, index)
            batch = self.normalise(images), self.labels.index_select(0, index)
            order.position = position
            yield (*batch, index) if self.with_index else batch

    def set_epoch(self, epoch: int) -> None:
        """See `Order.set_epoch`."""
        self.batch_sampler.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the epoch stands."""
        return self.batch_sampler.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there."""
        self.batch_sampler.load_state_dict(state)
