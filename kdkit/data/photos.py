"""Random views of photographs: torchvision's crops and mirror, drawn per (seed, epoch, sample)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

RATIO = (3 / 4, 4 / 3)  # narrowest and widest crop, in width to height
TRIES = 10  # crops drawn until one fits; then the middle


@dataclass(frozen=True)
class ResizedCrop:
    """A crop of any size and shape made `size` pixels a side, and mirrored half the time.

    Equal in distribution to torchvision's `RandomResizedCrop(size, scale)` and `RandomHorizontalFlip()`, and pixel by
    pixel under the same crop of a tensor (on a CPU without AVX2 but for a level).

    Attributes:
        size: pixels a side.
        scale: smallest and largest share of the image's area.
        flip: mirror every second view.
        policy: what else is done to the view, as an image of PIL; it draws from torch's generator, which is left as it
            was.
    """

    size: int
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    policy: Callable[[Any], Any] | None = None

    def draw(self, height: int, width: int, numbers: Iterator[float]) -> tuple[int, int, int, int]:
        """Top, left, height and width of a crop of an image, from uniform numbers in [0, 1)."""
        (small, large), (narrow, wide) = self.scale, RATIO
        for _ in range(TRIES):
            area = height * width * (small + (large - small) * next(numbers))
            ratio = exp(log(narrow) + log(wide / narrow) * next(numbers))
            h, w = round(sqrt(area / ratio)), round(sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(next(numbers) * (height - h + 1)), int(next(numbers) * (width - w + 1)), h, w
        h, w = min(height, round(width / narrow)), min(width, round(height * wide))
        return (height - h) // 2, (width - w) // 2, h, w

    def __call__(self, image: Tensor, numbers: Iterator[float]) -> Tensor:
        """The view (3, size, size) of an image (3, height, width), uint8, that follows from uniform numbers."""
        top, left, height, width = self.draw(image.shape[1], image.shape[2], numbers)
        part = image[None, :, top : top + height, left : left + width]
        view = interpolate(part, (self.size, self.size), mode="bilinear", antialias=True)[0]
        view = view.flip(-1) if self.flip and next(numbers) < 0.5 else view
        return view if self.policy is None else self._changed(view, next(numbers))

    def _changed(self, view: Tensor, number: float) -> Tensor:
        from torchvision.transforms.v2.functional import pil_to_tensor, to_pil_image

        state = torch.get_rng_state()
        try:  # not torch.manual_seed, which would seed the accelerators, too
            torch.default_generator.manual_seed(int(number * 2**32))
            return pil_to_tensor(self.policy(to_pil_image(view)))  # type: ignore[misc, no-any-return]
        finally:
            torch.set_rng_state(state)
