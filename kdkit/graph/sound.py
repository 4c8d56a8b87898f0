"""What a model of a watched cohort may say without being sick."""

from __future__ import annotations

from torch import Tensor

LARGEST = 1e5
"""No model that learns says more; squares, and squares of squares, of what is below stay finite in fp32."""


def sound(said: Tensor) -> Tensor:
    """Whether everything is finite and below `LARGEST`, as a flag on the device."""
    return said.detach().abs().amax() < LARGEST
