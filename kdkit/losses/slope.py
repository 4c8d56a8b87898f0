"""Values whose gradient is written out beside them, where autograd would keep more than it needs or may not look."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def with_slope(value: Tensor, x: Tensor, slope: Tensor) -> Tensor:
    """`value`, a scalar, as a function of `x` whose derivative is `slope`: once, for `slope` is no function of `x`.

    To differentiate again raises, where a constant slope would quietly give a wrong number. It can be mapped and
    compiled; there is no forward-mode derivative.
    """
    if torch.compiler.is_compiling():  # AOTAutograd, which all but debugging backends have, refuses that itself
        # Inductor writes into the saved slope and reads it afterwards (torch 2.11 to 2.15), but not so:
        along: Tensor = ((x - x.detach()) * slope).sum()
        return value + along
    return _WithSlope.apply(x, value, slope)  # type: ignore[no-any-return]


class _WithSlope(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, value: Tensor, slope: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        x, _, slope = inputs
        ctx.save_for_backward(x, slope)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, slope = ctx.saved_tensors
        return grad * _Once.apply(slope, x), None, None


class _Once(torch.autograd.Function):
    """The slope, told that it depends on `x`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(slope: Tensor, x: Tensor) -> Tensor:
        return slope.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None: ...

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        raise RuntimeError(
            "the gradient of this loss is written out and cannot be differentiated again; leave it out of what needs a "
            "second derivative"
        )
