"""How long gradients are: mean and largest by epoch and model, kept on the device; and what sticks out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from kdkit import ranks
from kdkit.train.optim import NodeOptimizers

log = logging.getLogger(__name__)

SPIKE = 10.0
"""So many times the median of the largest norms of former epochs, in which the same was learnt, is a spike."""

FORMER = 20


def scale_of(distiller: Any) -> Tensor | float:
    """What fp16 multiplies the loss with, on the device; the number 1 in other precisions."""
    scaler = getattr(distiller.trainer.precision_plugin, "scaler", None)
    if scaler is not None and scaler._scale is None:  # it is made when something is scaled
        scaler.scale(torch.zeros((), device=distiller.device))
    found: Tensor | None = getattr(scaler, "_scale", None)
    return 1.0 if found is None else found


def helps(distiller: Any) -> str:
    """What usually helps against gradients that are too long, and is not done yet."""
    clip = "" if distiller.borrow.clip_value else " or trainer.gradient_clip_val"
    return f"A lower learning rate{',' if clip else ' or'} a warm-up{clip} usually helps"


class GradientNorms:
    """‖∂loss/∂θ‖ of every trained node, with the heads that learn beside it, over all ranks and before clipping.

    What is not finite (fp16 overflows now and then, and its scaler leaves such a step out) is not counted.
    """

    def __init__(self) -> None:
        self.stats: dict[str, Tensor] = {}  # sum, how many, largest
        self.last: dict[str, Tensor] = {}
        self.former: dict[str, list[float]] = {}
        self.since = 0.0  # when the phase of the former ones began

    @torch.no_grad()
    def add(self, optimizers: NodeOptimizers, scale: Tensor | float = 1.0) -> dict[str, Tensor]:
        """Look at the active nodes' gradients, which are `scale` times too long; their norms."""
        found = {}
        for name in optimizers.active:
            groups = optimizers.of[name].param_groups
            grads = [p.grad for group in groups for p in group["params"] if p.grad is not None]
            if not grads:
                continue
            parts = [part.float() for part in torch._foreach_norm(grads)]
            length: Tensor = torch.linalg.vector_norm(torch.stack(parts))
            found[name] = length / scale
            if name not in self.stats:
                self.stats[name] = torch.zeros(3, dtype=torch.float32, device=length.device)  # on every rank
            self.last.setdefault(name, torch.zeros_like(length)).copy_(found[name])  # where every recording finds it
            fine = found[name].isfinite()
            value = torch.where(fine, found[name], 0.0)
            stats = self.stats[name]
            stats[:2].add_(torch.stack([value, fine.to(value.dtype)]))
            stats[2:].clamp_(min=value)
        return found

    def end(self, distiller: Any) -> dict[str, float]:
        """What is logged of an epoch; a spike is told."""
        names = list(distiller.graph.trained)
        rows = [self.stats.get(name, torch.zeros(3)).to(distiller.device) for name in names]
        whole = torch.stack(rows)
        if distiller.place.apart and ranks.count() > 1:
            dist.all_reduce(whole)
        if (start := distiller.graph.now.start) != self.since:  # other losses, or other weights: not to be compared
            self.since, self.former = start, {}
        scale = scale_of(distiller)
        found = {"scale/loss": float(scale)} if isinstance(scale, Tensor) else {}
        for name, (total, count, largest) in zip(names, whole.tolist(), strict=True):
            if count:
                found |= {f"gradient/{name}/mean": total / count, f"gradient/{name}/max": largest}
                found |= self._spike(name, largest, distiller) if start <= distiller.current_epoch else {}
        for stats in self.stats.values():
            stats.zero_()
        return found

    def _spike(self, name: str, largest: float, distiller: Any) -> dict[str, float]:
        former = self.former.setdefault(name, [])
        usual = median(former) if former else 0.0
        former.append(largest)
        del former[:-FORMER]
        if not usual:
            return {}
        if (times := largest / usual) > SPIKE:
            log.warning(
                "warning: epoch %d: a gradient of %s had the norm %.3g, %.0f times the usual largest (%.3g). %s",
                *(distiller.current_epoch + 1, name, largest, times, usual, helps(distiller)),
            )
        return {f"gradient/{name}/spike": times}

    def state_dict(self) -> dict[str, Any]:
        """The epoch so far, and what former ones came to."""
        former = {name: list(its) for name, its in self.former.items()}
        return {"stats": dict(self.stats), "former": former, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go on from a checkpoint."""
        self.stats = {name: value.to(device) for name, value in state["stats"].items()}
        self.former = {name: list(its) for name, its in state["former"].items()}
        self.since = state.get("since", 0.0)
