"""A small data set that lives on the device: no worker, no copy, no Python per image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from kdkit.data.order import Loader, Order
from kdkit.data.views import CropFlip, Normalise


class DeviceLoader(Loader):
    """Batches out of one uint8 tensor on the device.

    Args:
        images: (n, C, H, W) uint8, moved to `device`.
        labels: (n,) int64.
        order: the batches.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        views: random crops and flips; None: the images as they are.
        second: those of a second view; with it x is `{"view1": …, "view2": …}`.
        with_index: hand out `(x, y, index)` instead of `(x, y)`.
        device: where the images live and the batches appear.

    Attributes:
        late: hand out `(x, y, index)` as `LateBatch`es, of which a recorded step makes the images by itself.
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
        second: CropFlip | None = None,
        with_index: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(order)
        self.images = images.to(device)
        self.labels = labels.to(device)
        self.views, self.second = views, second
        self.with_index = with_index
        self.late = False
        self.device = device
        self.normalise = Normalise(mean, std, device)

    def numbered(self, index: Tensor, number: Tensor) -> Tensor:
        """The images `index` (B,) in the views of those numbers, as a batch would hold them."""
        images = self.images.index_select(0, index)
        return self.normalise(images if self.views is None else self.views.numbered(images, number))

    def made(self, index: Tensor, epoch: int | Tensor) -> tuple[Any, Tensor, Tensor]:
        """The batch `(x, y, index)` of these samples in an epoch, told as to `CropFlip.draw`."""
        images, labels = self.images.index_select(0, index), self.labels.index_select(0, index)
        if self.second is not None:
            one, other = (images if its is None else its(images, epoch, index) for its in (self.views, self.second))
            return {"view1": self.normalise(one), "view2": self.normalise(other)}, labels, index
        if self.views is not None:
            images = self.views(images, epoch, index)
        return self.normalise(images), labels, index

    def __iter__(self) -> Iterator[Sequence[Tensor]]:
        order, keys = self.batch_sampler, None
        for position, index in order.batches(self.device):
            if self.late and self.with_index:
                if keys is None and self.views is not None:
                    keys = torch.tensor(self.views.keys(order.epoch), dtype=torch.int32, device=self.device)
                batch: Sequence[Tensor] = LateBatch(self, index, order.epoch if keys is None else keys)
            else:
                batch = self.made(index, order.epoch)
            order.position = position
            yield batch if self.with_index else batch[:2]


class LateBatch(Sequence[Tensor]):
    """A batch `(x, y, index)` of which only `index` is there: the rest is made when somebody reads it.

    Args:
        loader: what makes it.
        samples: (B,), the index.
        epoch: as `CropFlip.draw` takes it; a tensor where there are random views.
    """

    def __init__(self, loader: DeviceLoader, samples: Tensor, epoch: int | Tensor) -> None:
        self.loader, self.samples, self.epoch = loader, samples, epoch
        self._made: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def unread(self) -> bool:
        """Nobody has seen, nor could have changed, what it holds."""
        return self._made is None

    def __len__(self) -> int:
        return 3

    def __getitem__(self, place: Any) -> Any:
        if self._made is None:
            self._made = self.loader.made(self.samples, self.epoch)
        return self._made[place]

    def to(self, device: torch.device, **_: Any) -> Sequence[Tensor]:
        """Itself where it lives on that device: so does Lightning move a batch without reading it."""
        return self if self.samples.device == torch.device(device) else tuple(part.to(device) for part in self)
