"""A cascade whose backbone is cut into stages: each has belief modules of its own, and closes its own gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.models.beliefs import Beliefs
from kdkit.models.cuts import check_names, pooled, widths
from kdkit.registry import KdkitError

Close = Callable[[Tensor], None]
"""Gets the logits (B, L, N) of all modules, in which those of one stage have a graph, and computes its gradients."""


class StageBeliefs(nn.Module):
    """The modules of every stage; called with the logits of each, it gives all of them, (B, L, N).

    Args:
        parts: of each stage.
    """

    def __init__(self, parts: Iterable[Beliefs]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, rows: list[Tensor]) -> Tensor:
        """[(B, L_1, N), …] → (B, L, N)."""
        return torch.cat(rows, 1)


class IsolatedCascade(nn.Module):
    """A backbone cut at named layers into stages, and a cascade of belief modules that goes through all of them.

    A stage's modules read its output, averaged over places, and the last belief of the stage before. No gradient passes
    a cut: a stage learns from its own modules alone, and the next one reads a constant. While somebody has set `close`,
    a stage's gradients are computed as soon as its modules have spoken, and what autograd kept of it is released before
    the next stage runs; without, the stages' graphs stand side by side until one backward pass, which gives the same
    gradients and saves nothing. `kdkit.Distiller` sets it.

    The tap `beliefs` reads the logits (B, L, N) of all modules of all stages.

    Args:
        backbone: images → features (B, D).
        cuts: module paths in the backbone, in the order in which they run; a stage ends at the output of each.
        num_classes: N.
        features: D, read by the last stage's modules.
        modules: how many modules each stage has.
        words: of `kdkit.models.beliefs.Beliefs`.

    Raises:
        KdkitError: the backbone cannot be cut there.
    """

    eager = "its isolated stages learn while it runs, which cannot be compiled; leave `isolate` or `compile` out"

    def __init__(
        self,
        backbone: nn.Module,
        cuts: Sequence[str],
        num_classes: int,
        features: int,
        modules: int = 4,
        **words: Any,
    ) -> None:
        super().__init__()
        self.cuts = check_names(backbone, cuts)
        sizes = [*widths(backbone, self.cuts), features]
        self.backbone = backbone
        self.beliefs = StageBeliefs(Beliefs(size, num_classes, modules, **words) for size in sizes)
        self.close: Close | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Images → logits (B, N) of the last module."""
        rows: list[Tensor] = []
        handles = [
            self.backbone.get_submodule(path).register_forward_hook(partial(self._cut, rows, i), prepend=True)
            for i, path in enumerate(self.cuts)
        ]
        try:
            z = self.backbone(x)
        finally:
            for handle in handles:
                handle.remove()
        if len(rows) != len(self.cuts):
            raise KdkitError(f"sid: isolate: each of {', '.join(self.cuts)} must run in every forward, and did not")
        logits: Tensor = self.beliefs([*rows, self.speak(len(self.cuts), z, last_belief(rows))])
        return logits[:, -1]

    def speak(self, stage: int, z: Tensor, start: Tensor | None) -> Tensor:
        """Logits (B, L_i, N) of a stage's modules from its feature, and the belief before."""
        logits: Tensor = self.beliefs.parts[stage](z, start)
        return logits

    def _cut(self, rows: list[Tensor], stage: int, module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """End a stage: its modules speak, its gradient is closed, and the next one reads a constant."""
        if len(rows) != stage:
            raise KdkitError(f"sid: isolate: {self.cuts[stage]!r} must run once in a forward, after those before it")
        logits = self.speak(stage, pooled(self.backbone, output), last_belief(rows))
        if self.close is not None and torch.is_grad_enabled():
            ahead = (len(self.cuts) - stage) * logits.shape[1]
            nothing = logits.new_zeros(len(logits), ahead, logits.shape[-1])
            self.close(torch.cat([*(row.detach() for row in rows), logits, nothing], 1))
            logits = logits.detach()
        rows.append(logits)
        return output.detach()

    def get_classifier(self) -> nn.Module:
        """What reads the embedding: the last stage's modules."""
        return self.beliefs.parts[-1]

    def parameter_groups(self) -> list[list[nn.Parameter]]:
        """The parameters of each module, where they are its own."""
        return [group for part in self.beliefs.parts for group in part.groups()]  # type: ignore[operator]


def last_belief(rows: list[Tensor]) -> Tensor | None:
    """The belief that the stages so far have come to."""
    return rows[-1][:, -1].detach().softmax(-1) if rows else None
