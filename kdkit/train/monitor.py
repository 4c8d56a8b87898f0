"""What losses tell of themselves on the validation data, beside their value."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from kdkit.graph.bound import BoundEdge
from kdkit.graph.graph import Graph


class Monitor:
    """Means over an epoch's validation data of what the active losses tell by a method `monitor`.

    `monitor(student, labels)` gives `{word: one value for each sample, (B,) or (B, L)}`; a loss that has it learns from
    labels alone. The columns are `monitor/<model>/<loss>/<word>`, with `/1`, `/2`, … where there are L of them.

    Args:
        graph: bound, or not (then nothing is told).
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = {}

    def _telling(self, name: str) -> list[tuple[BoundEdge, int]]:
        edges = self.graph.phase.edges if self.graph.phase is not None else ()
        return [
            (edge, i)
            for edge in edges
            for i, call in enumerate(edge.calls)
            if call.target == name and len(call.links) == 1 and hasattr(edge.losses[i], "monitor")
            if name in self.graph.now.readers  # of a cohort it may be absent
        ]

    def run(self, name: str, forward: Callable[[], Tensor], labels: Tensor) -> Tensor:
        """The node's logits by `forward`, whose inside is read where a loss tells of it."""
        telling = self._telling(name)
        if not telling:
            return forward()
        reader = self.graph.now.readers[name]
        with reader.open():
            values = reader.take(logits := forward())
        for edge, i in telling:
            words = edge.losses[i].monitor(values[edge.calls[i].links[0].target.tap], labels)  # type: ignore[operator]
            for word, value in words.items():
                self._add(f"monitor/{name}/{edge.name}/{word}", value)
        return logits

    def _add(self, key: str, value: Tensor) -> None:
        columns = {key: value} if value.ndim == 1 else {f"{key}/{i + 1}": v for i, v in enumerate(value.unbind(1))}
        for column, values in columns.items():
            total = values.sum(dtype=torch.float64 if values.device.type == "cpu" else torch.float32)
            self.sums[column] = self.sums[column] + total if column in self.sums else total
            self.counts[column] = self.counts.get(column, 0) + len(values)

    def means(self) -> dict[str, Tensor]:
        """By column."""
        return {column: (total / self.counts[column]).float() for column, total in self.sums.items()}
