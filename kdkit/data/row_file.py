"""Rows of 16-bit words in one sparse, memory-mapped file, each behind its own checksum."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from kdkit import draws

CHECK = 2
"""Words of a checksum."""


def aligned(words: Tensor) -> Tensor:
    """A copy whose rows can be looked at as wider numbers; `contiguous()` makes none of a single row."""
    return words.clone(memory_format=torch.contiguous_format)


class RowFile:
    """A table on disk that is filled in any order, by any number of processes that would write the same numbers.

    A row that was never written is not there, and neither is one that a crash, a full disk or a flipped bit has spoilt:
    its checksum does not fit. Nobody needs to keep a list of what is valid, and there is nothing to repair.

    Args:
        path: of the file, made or lengthened where it is too short; what is not written takes no room on disk. One that
            is long enough may lie where nothing can be written: it is read.
        rows: number of rows.
        width: 16-bit words in a row.
    """

    def __init__(self, path: Path, rows: int, width: int) -> None:
        self.path, self.rows, self.width = path, rows, width
        size = rows * (width + CHECK)
        if not path.exists() or path.stat().st_size < 2 * size:
            with FileLock(f"{path}.lock"), path.open("ab") as file:  # it only ever grows: others may have it mapped
                if file.tell() < 2 * size:
                    file.truncate(2 * size)
        mapped = torch.from_file(str(path), shared=os.access(path, os.W_OK), size=size, dtype=torch.int16)
        self.words = mapped.view(rows, width + CHECK)
        self._factors = draws.bits(draws.key("row file"), torch.arange(width)) | 1

    @property
    def nbytes(self) -> int:
        """Its size where every row is written."""
        return 2 * self.words.numel()

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """The rows `ids` (m,): words (m, width) int16, and whether each is there (m,)."""
        found = self.words.index_select(0, ids)
        words, check = found[:, : self.width], aligned(found[:, self.width :])
        return words, check.view(torch.int32)[:, 0] == self._checksum(ids, words)

    def write(self, ids: Tensor, words: Tensor) -> None:
        """Put words (m, width) int16 into the rows `ids` (m,).

        Not through the map: a store that the disk has no room for kills the process, a write raises `OSError`. A disk
        that ends in the middle of one first takes a part of it, and refuses the rest.
        """
        check = self._checksum(ids, words)[:, None].view(torch.int16)
        whole, stride = torch.cat([words, check], 1).numpy(), 2 * (self.width + CHECK)
        breaks = [0, *(i for i, gap in enumerate(ids.diff().tolist(), 1) if gap != 1), len(ids)]
        with self.path.open("r+b", buffering=0) as file:
            for start, stop in pairwise(breaks):
                file.seek(int(ids[start]) * stride)
                left = memoryview(whole[start:stop].tobytes())
                while left:
                    left = left[file.write(left) :]

    def there(self, ids: Tensor) -> Tensor:
        """Whether each of the rows `ids` (m,) is there."""
        return self.read(ids)[1]

    def _checksum(self, ids: Tensor, words: Tensor) -> Tensor:
        """Σ word · odd factor + a hash of the row's number, odd, so that an empty row has none: (m,) int32."""
        total = (words.to(torch.int32) * self._factors).sum(1, dtype=torch.int32)
        return (total + draws.bits(draws.key("row"), ids)) | 1
