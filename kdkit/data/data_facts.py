"""What a data set is, before a single image of it is read."""

from __future__ import annotations

from dataclasses import dataclass

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DataFacts:
    """The facts that a graph is sized by.

    Attributes:
        num_classes: classes of the labels; 0 where there are no labels.
        num_samples: training samples, after `val_split` and `subset`; a batch's `index` lies below it.
        input_shape: (C, H, W) of one image as the model gets it.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
    """

    num_classes: int
    num_samples: int
    input_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
