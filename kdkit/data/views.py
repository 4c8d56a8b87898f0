"""Crops and flips of a whole batch of raw pixels, drawn per (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kdkit import draws


def crop_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor, padding: int) -> Tensor:
    """Each image zero-padded on all sides, cropped to its old size at its own offset, then mirrored where asked.

    Per image the same as torchvision's `pad`, `crop`, `hflip`.

    Args:
        images: (B, C, H, W), raw pixels.
        top: (B,) int64 in [0, 2·padding].
        left: (B,) int64 in [0, 2·padding].
        flip: (B,) bool.
        padding: pixels added on each side.

    Returns:
        (B, C, H, W) of the same dtype.
    """
    B, C, H, W = images.shape
    across = torch.arange(W, device=images.device)
    rows = top[:, None] + torch.arange(H, device=images.device)
    columns = left[:, None] + torch.where(flip[:, None], W - 1 - across, across)
    padded = F.pad(images, [padding] * 4)
    bands = padded.gather(2, rows[:, None, :, None].expand(B, C, H, W + 2 * padding))
    return bands.gather(3, columns[:, None, None, :].expand(B, C, H, W))


@dataclass(frozen=True)
class CropFlip:
    """The padded random crop and mirror of the CIFAR protocols: a view follows from (seed, epoch, sample).

    Equal in distribution to torchvision's `RandomCrop(size, padding)` and `RandomHorizontalFlip()`: every offset in
    [0, 2·padding] is equally likely in each direction, every second image is mirrored.
    """

    seed: int
    padding: int
    flip: bool

    def keys(self, epoch: int) -> list[int]:
        """What an epoch's (top, left, flip) are drawn by."""
        return [draws.key(self.seed, purpose, epoch) for purpose in ("top", "left", "flip")]

    def draw(self, epoch: int | Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(top, left, flip) of each sample, each (B,), in an epoch or, by an int32 tensor, in that of these `keys`."""
        keys = epoch if isinstance(epoch, Tensor) else self.keys(epoch)
        highs = 2 * self.padding + 1, 2 * self.padding + 1, 2 if self.flip else 1
        top, left, flip = (draws.below(key, index, high) for key, high in zip(keys, highs, strict=True))
        return top, left, flip.bool()

    @property
    def count(self) -> int:
        """How many views an image has: 162 with 4 pixels of padding and mirroring."""
        return (2 * self.padding + 1) ** 2 * (2 if self.flip else 1)

    def number(self, epoch: int | Tensor, index: Tensor) -> Tensor:
        """Which of its views each sample has in one epoch, told as to `draw`: (B,) in [0, count)."""
        top, left, flip = self.draw(epoch, index)
        offset = top * (2 * self.padding + 1) + left
        return 2 * offset + flip if self.flip else offset

    def numbered(self, images: Tensor, number: Tensor) -> Tensor:
        """The views of those numbers of `images` (B, C, H, W)."""
        offset, flip = (number // 2, number % 2) if self.flip else (number, torch.zeros_like(number))
        side = 2 * self.padding + 1
        return crop_flip(images, offset // side, offset % side, flip.bool(), self.padding)

    def __call__(self, images: Tensor, epoch: int | Tensor, index: Tensor) -> Tensor:
        """The views of `images` (B, C, H, W) in one epoch, told as to `draw`."""
        return crop_flip(images, *self.draw(epoch, index), self.padding)


class Normalise:
    """`(pixels / 255 − mean) / std` in float32, bit-equal to torchvision's `ToTensor` and `Normalize`."""

    def __init__(self, mean: Sequence[float], std: Sequence[float], device: torch.device | str = "cpu") -> None:
        # A tensor, as CUDA multiplies by the reciprocal of a Python number and is off by one bit then.
        self.scale = torch.tensor(255.0, device=device)
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, H, W) or (C, H, W) uint8 → float32."""
        return pixels.float().div_(self.scale).sub_(self.mean).div_(self.std)
