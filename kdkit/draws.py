"""Random numbers as a function instead of a history: every draw is a hash of what it is for.

Which samples form a batch, which crop an image gets, which negatives a sample meets: each follows from (seed, purpose,
epoch or step, sample id). There is no generator state to save, so resume is exact, the number of workers or ranks
changes nothing, and two methods with one seed see the same images.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterator
from itertools import count

import torch
from torch import Tensor


def key(*parts: int | str) -> int:
    """A signed 32-bit integer from any parts, the same on every machine: `key(seed, "crop", epoch)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little", signed=True)


def uniforms(*parts: int | str) -> Iterator[float]:
    """Endless independent numbers in [0, 1), the same on every machine: `uniforms(seed, "view", epoch, sample)`."""
    for block in count():
        digest = hashlib.blake2b(repr((*parts, block)).encode()).digest()
        yield from (number / 2**32 for number in struct.unpack("<16I", digest))


def bits(key: int | Tensor, ids: Tensor) -> Tensor:
    """32 random bits for each id: int32, in the shape of `ids`; under one key no two ids below 2³² get the same.

    Murmur3's finaliser, applied twice, the key going in before each.

    Args:
        key: what the draw is for, from `key`, or an int32 tensor that broadcasts against `ids`: a draw made before, so
            that `bits(bits(key, rows)[:, None], columns)` is a matrix of independent bits.
        ids: integers below 2³² that tell the draws under one key apart.
    """
    # Mixed before any product: Inductor writes arange × constant as C++ arithmetic that overflows, and comes out wrong.
    return _finalise(_finalise(ids.to(torch.int32) ^ key).add_(key))


def below(key: int | Tensor, ids: Tensor, high: int | Tensor) -> Tensor:
    """A uniform int64 in [0, high) for each id; `high`, at most 2³¹, may be a tensor that broadcasts against `ids`."""
    return (bits(key, ids).to(torch.int64).bitwise_and_(0xFFFFFFFF) * high).bitwise_right_shift_(32)


def permutation(key: int | Tensor, n: int, device: torch.device | str = "cpu") -> Tensor:
    """A random order of 0…n−1."""
    return torch.argsort(bits(key, torch.arange(n, device=device)))


def _finalise(x: Tensor) -> Tensor:
    """Mix `x` in place, which takes less than half the time; `>>` keeps the sign, so the mask makes it logical."""
    for shift, mask, factor in ((16, 0xFFFF, -2048144789), (13, 0x7FFFF, -1028477387)):
        x.bitwise_xor_((x >> shift).bitwise_and_(mask)).mul_(factor)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
