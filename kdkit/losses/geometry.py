"""Directions and Gram matrices that stay finite where samples coincide or vanish."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from kdkit.losses.squares import diagonal


def equal_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Two maps (B, C, H, W), the larger brought to the smaller by adaptive average pooling."""
    size = (min(one.shape[2], other.shape[2]), min(one.shape[3], other.shape[3]))
    one, other = (m if m.shape[2:] == size else pooled(m, size) for m in (one, other))
    return one, other


def pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps (B, C, H, W) averaged to that size.

    Equal windows are plain average pooling, for on CUDA the adaptive one has no deterministic gradient.
    """
    rows, columns = (n // m for n, m in zip(x.shape[2:], size, strict=True))
    if (rows * size[0], columns * size[1]) != tuple(x.shape[2:]):
        return F.adaptive_avg_pool2d(x, size)
    return F.avg_pool2d(x, (rows, columns))


def unit(x: Tensor, dim: int = -1) -> Tensor:
    """`x` scaled to length 1 along `dim`; a zero vector, or nearly, stays so and passes its gradient on unscaled.

    `F.normalize` divides a zero vector by its eps of 1e-12 and so multiplies the gradient of a dead sample by 1e12.
    One whose square overflows is NaN, to be seen; infinitely long, it would be a zero vector.
    """
    return x * inverse_length(x.square().sum(dim, keepdim=True))


def unit_of_powers(x: Tensor) -> Tensor:
    """`unit` of rows (B, D) of squares or higher powers, which are large where what they are made of is not yet.

    Rows above 1 are brought there first: their squares would overflow, and the cube of one over their length vanish.
    """
    return unit(x / x.detach().abs().amax(1, keepdim=True).clamp_min(1.0))


def brought_to_one(maps: Tensor) -> Tensor:
    """Maps (B, …) over each sample's largest absolute value, so that no power of them vanishes or overflows.

    For what no scaling changes. Maps of zeros, or nearly, stay as they are.
    """
    largest = maps.detach().abs().amax(tuple(range(1, maps.ndim)), keepdim=True)
    return maps / torch.where(largest > _least(maps) ** 0.25, largest, 1.0)


def inverse_length(square: Tensor) -> Tensor:
    """One over the lengths whose squares these are; 1 for a vector of zeros, and for one as good as zero."""
    square = torch.where(square > _least(square), square, 1.0)
    return square.masked_fill(square == torch.inf, torch.nan).rsqrt()


def centred_unit(x: Tensor, dim: int = -1) -> Tensor:
    """`x` about its mean along `dim`, scaled to length 1.

    What rounding cannot tell from a constant stays next to zero and passes its gradient on unscaled.
    """
    about, inverse = _about(x, dim)
    return about * inverse


def correlation(x: Tensor, y: Tensor, dim: int = -1) -> Tensor:
    """Pearson's, along `dim`; a constant correlates with nothing, nor does what hardly differs from 0."""
    (x, inverse_x), (y, inverse_y) = _about(x, dim), _about(y, dim)
    return (x * y).sum(dim, keepdim=True) * (inverse_x * inverse_y)


def _about(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Differences from the mean, and one over their length: 1 where they are nothing but rounding.

    So it is where a length is as good as zero.
    """
    mean = x.mean(dim, keepdim=True)
    about = x - mean
    square = about.square().sum(dim, keepdim=True)
    noise = (square + x.shape[dim] * mean.square()) * (8 * torch.finfo(x.dtype).eps) ** 2 + _least(x)
    return about, torch.where(square > noise, square, 1.0).rsqrt()


def _least(x: Tensor) -> float:
    """A length of 1e-12 (float32), squared; below it the gradient of `rsqrt`, its third power, overflows."""
    square: float = torch.finfo(x.dtype).tiny ** 0.625
    return square


def centred_gram(x: Tensor) -> Tensor:
    """Inner products of the rows of `x` (B, D) about their mean: (B, B).

    Centring changes no difference between rows, and so no distance and no angle, but it removes the common offset that
    costs fp32 up to 8e-3 of an angle's cosine.
    """
    x = x - x.mean(0)
    return x @ x.T


def squared_distances(gram: Tensor) -> Tensor:
    """Squared distances between all rows behind a Gram matrix: (B, B) → (B, B).

    What rounding cannot tell from zero is exactly zero, with no gradient: the square root of such noise has a huge one.
    NaN and what overflows are no noise and stay, to be seen in the loss.
    """
    norms = diagonal(gram)
    sums = norms + norms[:, None]
    square = sums - 2 * gram
    return torch.where(square < 16 * torch.finfo(gram.dtype).eps * sums, 0.0, square)
