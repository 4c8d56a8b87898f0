"""NVIDIA DALI on the CPU: the pipelines that `benchmarks.data` times beside kdkit's workers.

Its crops are drawn by generators of its own, so a view can be like kdkit's and never the same. What can be compared
without a draw is: whole images, decoded and resized, by the mean distance of their pixels.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from kdkit.data.data_facts import IMAGENET_MEAN, IMAGENET_STD
from kdkit.data.pixels import read_rgb
from kdkit.registry import KdkitError

Made = Callable[[Any], Any]
Pass = Callable[[torch.device], None]
LEVELS = 1.0
"""Mean distance, of 255, at which images are no longer alike."""


class Dali:
    """DALI out of the folder that `pip install --target` made."""

    def __init__(self, site: Path) -> None:
        sys.path.append(str(site))
        from nvidia.dali import fn, pipeline_def, types

        self.fn, self.define, self.types = fn, pipeline_def, types

    def pipeline(self, paths: Sequence[str], batch: int, threads: int, made: Made, shuffle: bool = False) -> Any:
        """Batches of what `made` makes of the encoded files; 0 threads: one, that nothing runs beside."""

        def graph() -> Any:
            encoded, _ = self.fn.readers.file(files=list(paths), random_shuffle=shuffle)
            return made(encoded)

        words = {"batch_size": batch, "num_threads": max(1, threads), "device_id": None, "seed": 0}
        if not threads:
            words |= {"exec_pipelined": False, "exec_async": False, "prefetch_queue_depth": 1}
        built = self.define(graph)(**words)
        built.build()
        return built

    def decode(self, encoded: Any) -> Any:
        """Whole images."""
        return self.fn.decoders.image(encoded, device="cpu", output_type=self.types.RGB)

    def resize(self, encoded: Any, size: int) -> Any:
        """Whole images, made square."""
        return self._resize(self.decode(encoded), size)

    def crop(self, encoded: Any, size: int, floats: bool, whole: bool) -> Any:
        """Random crops, mirrored half the time: HWC uint8, or normalised CHW fp32; of images decoded whole or not."""
        area = {"random_area": [0.08, 1.0], "random_aspect_ratio": [3 / 4, 4 / 3]}
        if whole:
            words = {"size": [size, size], "interp_type": self.types.INTERP_LINEAR, "antialias": True}
            pixels = self.fn.random_resized_crop(self.decode(encoded), **area, **words)
        else:
            part = self.fn.decoders.image_random_crop(encoded, device="cpu", output_type=self.types.RGB, **area)
            pixels = self._resize(part, size)
        mirror = self.fn.random.coin_flip()
        if not floats:
            return self.fn.flip(pixels, horizontal=mirror)
        mean, std = ([255 * value for value in values] for values in (IMAGENET_MEAN, IMAGENET_STD))
        words = {"mean": mean, "std": std, "dtype": self.types.FLOAT, "output_layout": "CHW"}
        return self.fn.crop_mirror_normalize(pixels, mirror=mirror, **words)

    def _resize(self, pixels: Any, size: int) -> Any:
        return self.fn.resize(pixels, size=[size, size], interp_type=self.types.INTERP_LINEAR, antialias=True)

    def compare(self, paths: Sequence[str], size: int) -> dict[str, float]:
        """Mean distance of a pixel from kdkit's, 0 to 255; raises where images are not alike."""
        decoded = self.pipeline(paths, len(paths), 0, self.decode).run()[0]
        resized = self.pipeline(paths, len(paths), 0, lambda encoded: self.resize(encoded, size)).run()[0]
        ours = [read_rgb(path) for path in paths]
        square = [v2.functional.resize(image, [size, size], antialias=True) for image in ours]
        pairs = {"decoded": (ours, decoded), "resized": (square, resized)}
        found = {
            what: sum(apart(one, torch.from_numpy(other.at(k))) for k, one in enumerate(several)) / len(paths)
            for what, (several, other) in pairs.items()
        }
        if max(found.values()) > LEVELS:
            raise KdkitError(f"DALI makes other images, {max(found.values()):.2g} levels away in the mean; not timed")
        return {what: float(f"{value:.2g}") for what, value in found.items()}

    def passes(self, paths: Sequence[str], size: int, batch: int, threads: int, floats: bool) -> dict[str, Pass]:
        """An epoch to a device, by what decodes: the crop's part of the image, or all of it."""

        def each(whole: bool) -> Pass:
            run = self.pipeline(paths, batch, threads, lambda encoded: self.crop(encoded, size, floats, whole), True)
            return lambda device: read(run, len(paths) // batch, 2 if threads else 1, device)

        return {"DALI": each(False), "DALI, decoded whole": each(True)}


def apart(one: Tensor, other: Tensor) -> float:
    """Mean distance of (C, H, W) from (H, W, C), both uint8."""
    return float((one.permute(1, 2, 0).int() - other.int()).abs().float().mean())


def read(pipeline: Any, batches: int, most: int, device: torch.device) -> None:
    """So many batches, as tensors on a device; at most so many are begun, and none at the end: others would pay."""
    left, ahead = batches, 0
    for _ in range(batches):
        while left and ahead < most:
            pipeline.schedule_run()
            left, ahead = left - 1, ahead + 1
        torch.from_numpy(pipeline.share_outputs()[0].as_array()).to(device)
        pipeline.release_outputs()
        ahead -= 1
