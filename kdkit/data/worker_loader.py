"""Images decoded by worker processes, with the device loader's guarantees."""

from __future__ import annotations

import gc
import signal
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from kdkit import draws
from kdkit.data.order import Loader, Order
from kdkit.data.pixels import read_rgb
from kdkit.data.views import Normalise
from kdkit.registry import KdkitError


class ImageFiles(Dataset[tuple[Tensor, int]]):
    """Decoded and transformed image files, each view seeded by (seed, epoch, sample), whichever worker makes it.

    Args:
        paths: the files.
        transform: (3, height, width) uint8 → (3, H, W) uint8; where there is a seed, it is handed uniform numbers, too.
        seed: of the views; None where the transform draws nothing.
    """

    def __init__(self, paths: Sequence[str], transform: Callable[..., Tensor], seed: int | None = None) -> None:
        self.paths = paths
        self.transform = transform
        self.seed = seed

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int]:
        epoch, index = item
        image = read_rgb(self.paths[index])
        if self.seed is None:
            return self.transform(image), index
        return self.transform(image, draws.uniforms(self.seed, "view", epoch, index)), index


class WorkerLoader(Loader):
    """Batches out of image files: decoded and cropped as uint8 in workers, made float and normalised on the device.

    Args:
        files: what is decoded.
        labels: (n,) int64.
        order: the batches.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        with_index: hand out `(x, y, index)` instead of `(x, y)`.
        num_workers: processes; 0: in this one. No batch depends on it.
        device: where the batches appear.
    """

    def __init__(
        self,
        files: ImageFiles,
        labels: Tensor,
        order: Order,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        with_index: bool = False,
        num_workers: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(order)
        self.files, self.labels = files, labels
        self.with_index = with_index
        self.device = torch.device(device)
        self.normalise = Normalise(mean, std, device)
        self._plan = _Plan(order)
        self._loader: DataLoader[tuple[Tensor, int]] = DataLoader(
            files,
            batch_sampler=self._plan,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=_keep_inherited,
            generator=torch.Generator(),  # else it would take a number from torch's own
        )
        # Workers that go as part of a reference cycle (a Trainer, a traceback) hold up the collector for 5 s each.
        weakref.finalize(self, _stop_workers, self._loader)

    def numbered(self, index: Tensor, number: Tensor) -> Tensor:
        """The images `index` (B,), which have one view each, as a batch would hold them."""
        with ThreadPoolExecutor(max(1, self._loader.num_workers)) as pool:
            pixels = torch.stack(list(pool.map(lambda i: self.files[0, i][0], index.tolist())))
        return self.normalise(pixels.to(self.device, non_blocking=True))

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        with _reported(), _no_alarm():
            batches = iter(self._loader)
        while True:
            with _reported():
                if (batch := next(batches, None)) is None:
                    return
            pixels, index = batch
            self.batch_sampler.position = self._plan.waiting.popleft()
            y = self.labels[index].to(self.device, non_blocking=True)
            told = self.normalise(pixels.to(self.device, non_blocking=True)), y
            yield (*told, index.to(self.device, non_blocking=True)) if self.with_index else told


class _Plan:
    """An `Order` as a `DataLoader` reads it, which is ahead of what has been handed out."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self.waiting: deque[int] = deque()  # positions of the batches that workers are at

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        self.waiting.clear()
        for position, index in self.order.batches():
            self.waiting.append(position)
            yield [(self.order.epoch, i) for i in index.tolist()]


@contextmanager
def _reported() -> Iterator[None]:
    """What befalls a worker is one error here."""
    try:
        yield
    except KdkitError as problem:  # it comes with its traceback as text
        raise KdkitError(str(problem).rsplit("KdkitError: ", 1)[-1].strip()) from None
    except RuntimeError as problem:
        if "DataLoader worker" not in str(problem):
            raise
        raise KdkitError(
            "data: a process that decodes images has died, as one does that is killed, or has no memory left; a fit "
            "goes on from its last checkpoint with --resume, and a lower data.num_workers takes less memory"
        ) from problem


@contextmanager
def _no_alarm() -> Iterator[None]:
    """A dead worker is told at the next batch; torch would tell of it anywhere, in the middle of a checkpoint too."""
    number = getattr(signal, "SIGCHLD", None)  # Windows has none
    before = None if number is None else signal.getsignal(number)
    yield
    if number is not None and before is not None and signal.getsignal(number) is not before:
        signal.signal(number, before)


def _keep_inherited(_: int) -> None:
    gc.freeze()  # else a forked worker may collect, and try to stop, its copy of another loader's workers


def _stop_workers(loader: DataLoader[Any]) -> None:
    running = getattr(loader, "_iterator", None)
    if running is not None:
        running._shutdown_workers()
