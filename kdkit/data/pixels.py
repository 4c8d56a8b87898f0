"""Image files as pixels: plain JPEGs by torchvision, which is faster, all else by PIL; the pixels are PIL's."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from kdkit.data.files import printable
from kdkit.registry import KdkitError

if TYPE_CHECKING:
    from PIL import Image

NARROW = 100  # longer to shorter side: a strip whose shorter side is made 256 pixels takes gigabytes
JPEG = b"\xff\xd8\xff"
BARE = (*range(0xC0), *range(0xD0, 0xDA), 0xFF)  # markers that no length follows: another frame may hide behind it
RGB = 3  # torchvision's ImageReadMode
AHEAD = 1024  # files that threads are given at a time


def read_rgb(path: str) -> Tensor:
    """The file's pixels as RGB, (3, height, width) uint8; raises `KdkitError` naming it where it is no image."""
    try:
        return _read(path)
    except Exception as problem:  # a broken image can fail in any way
        raise KdkitError(
            f"data: {printable(path)} must be an image, got {problem}; mend or remove it "
            "(`kdkit check RECIPE --images` names all such files)"
        ) from None


def problems(paths: Sequence[str]) -> Iterator[str]:
    """What is wrong with each of many files in turn, empty where nothing is; a thread reads for each core."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for i in range(0, len(paths), AHEAD):
            yield from pool.map(_problem, paths[i : i + AHEAD])


def _problem(path: str) -> str:
    try:
        _read(path)
    except Exception as problem:
        return f"{printable(path)}: {problem}"
    return ""


def _read(path: str) -> Tensor:
    from PIL import Image

    if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
        raise ValueError("something that is no file")
    if (pixels := _plain_jpeg(path, Image.MAX_IMAGE_PIXELS or 0)) is not None:
        return pixels
    with Image.open(path) as image:
        if max(image.size) > NARROW * min(image.size):
            raise ValueError(f"{image.size[0]} × {image.size[1]} pixels, a strip that no crop is made of")
        image.load()
        if image.mode.startswith(("I", "F")):
            return _deep(image)
        return torch.from_numpy(np.array(image if image.mode == "RGB" else image.convert("RGB"))).permute(2, 0, 1)


def _deep(image: Image.Image) -> Tensor:
    """Grey levels of 16 bits as those of 8, which PIL would clip to white; others have no scale that one could know."""
    grey = np.array(image).astype(np.float64)
    if not (image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))):
        raise ValueError(f"grey levels from {grey.min():g} to {grey.max():g} in mode {image.mode}, which have no scale")
    return torch.from_numpy((grey / 257).round().astype(np.uint8)).expand(3, -1, -1).clone()


def _plain_jpeg(path: str, most: int) -> Tensor | None:
    """The pixels of a grey or coloured JPEG of at most so many; None: PIL reads the file, or says what is wrong."""
    import torchvision.io  # noqa: F401  registers the operation

    with open(path, "rb") as file:
        if (start := file.read(len(JPEG))) != JPEG:
            return None
        data = bytearray(start + file.read())
    height, width, colours = _frame(data)
    if colours not in (1, 3) or height * width > most or max(height, width) > NARROW * min(height, width):
        return None
    try:
        # The operation itself: since 0.29 torchvision warns at each call that this will move to torchcodec.
        return torch.ops.image.decode_jpeg(torch.frombuffer(data, dtype=torch.uint8), RGB)  # type: ignore[no-any-return]
    except Exception:  # broken, or a torchvision without it
        return None


def _frame(data: bytearray) -> tuple[int, int, int]:
    """Height, width and number of colours, as a JPEG of 8 bits and Huffman codes has them at its head; else zeros."""
    at = 2
    while at + 9 < len(data) and data[at] == 0xFF and data[at + 1] not in BARE:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if marker in (0xC0, 0xC1, 0xC2) and data[at + 4] == 8:  # baseline, extended, progressive
            height, width = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            return height, width, data[at + 9]
        at += 2 + length
    return 0, 0, 0
