"""What `kdkit latency` tells, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.console import Group
from rich.text import Text

from kdkit.console import si, table


@dataclass(frozen=True)
class ModelRow:
    """One model.

    Attributes:
        name: what it is called here.
        arch: its architecture.
        parameters: all of them.
        macs: multiply-accumulates of one image.
        shape: (C, H, W) of one image.
        classes: width of the logits.
    """

    name: str
    arch: str
    parameters: int
    macs: int
    shape: tuple[int, ...]
    classes: int


@dataclass(frozen=True)
class TimeRow:
    """One model in one mode at one batch size.

    Attributes:
        name: of the model.
        mode: eager, compiled or exported.
        batch: images in a pass.
        median_ms: of one pass.
        p90_ms: nine of ten passes were no slower.
        images_per_second: batch over the median.
        passes: how many were timed.
        peak_bytes: weights and what a pass holds at its fullest; `None` where it was not measured.
    """

    name: str
    mode: str
    batch: int
    median_ms: float
    p90_ms: float
    images_per_second: float
    passes: int
    peak_bytes: int | None

    @classmethod
    def of(cls, name: str, mode: str, batch: int, times: Sequence[float], peak: int | None) -> TimeRow:
        """From the milliseconds of single passes."""
        median, p90 = (float(np.percentile(times, q)) for q in (50, 90))
        return cls(name, mode, batch, median, p90, 1000 * batch / median, len(times), peak)


@dataclass(frozen=True)
class LatencyReport:
    """Models beside each other.

    Attributes:
        device: what they ran on: `cpu`, `cuda:0`, ….
        machine: processor, threads, GPUs.
        torch: its version.
        models: the models.
        times: what was measured.
        left_out: (model, mode, batch, why) of what could not be.
    """

    device: str
    machine: dict[str, Any]
    torch: str
    models: tuple[ModelRow, ...]
    times: list[TimeRow]
    left_out: list[tuple[str, str, int, str]]

    def plain(self) -> dict[str, Any]:
        """As JSON has it."""
        return asdict(self)

    def __rich__(self) -> Group:
        """Sizes, then times; the last column says how much faster a model is than the first one."""
        sizes = [
            (m.name, m.arch, f"{m.parameters:,}", si(m.macs), "×".join(map(str, m.shape)), str(m.classes))
            for m in self.models
        ]
        first = {(row.mode, row.batch): row.median_ms for row in self.times if row.name == self.models[0].name}
        rows = []
        for row in self.times:
            base = first.get((row.mode, row.batch))
            rows.append(
                (
                    row.mode,
                    str(row.batch),
                    row.name,
                    f"{row.median_ms:.3g}",
                    f"{row.p90_ms:.3g}",
                    f"{row.images_per_second:,.0f}",
                    f"{si(row.peak_bytes)}B" if row.peak_bytes else "",
                    f"{base / row.median_ms:.2f}" if base and len(self.models) > 1 else "",
                    str(row.passes),
                )
            )
        heads = (
            "mode", ">batch", "model", ">median ms", ">p90 ms", ">images/s", ">peak memory", ">× first", ">passes",
        )  # fmt: skip
        kind, _, number = self.device.partition(":")
        gpus = dict(enumerate(self.machine.get("gpus") or []))
        on = gpus.get(int(number or 0), "") if kind == "cuda" else self.machine["processor"]
        threads = f"{self.machine['threads']} thread{'s' * (self.machine['threads'] != 1)}"
        notes = [f"on {self.device}: {on}, {threads}, torch {self.torch}"]
        whys = dict.fromkeys((name, mode, why) for name, mode, _, why in self.left_out)
        notes += [f"left out: {name}, {mode}: {why}" for name, mode, why in whys]
        return Group(
            table(("model", "architecture", ">parameters", ">MACs/image", "image", ">classes"), sizes),
            Text(),
            table(heads, rows),
            Text("\n".join(["", *notes])),
        )
