"""Going back to how a run stood some steps ago."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdkit.train.captured import speed_up
from kdkit.train.snapshots import Ring

EVERY = 200
"""Steps from one snapshot to the next; there is one at the beginning of every epoch, too."""

KEEP = 2
"""On an accelerator what is wrong is known some steps later, when the last snapshot may hold it already."""

RUN = "run"


class Snapshots:
    """The last states of a whole run: weights, statistics, banks, slow copies, optimisers."""

    def __init__(self) -> None:
        self.ring = Ring(KEEP, None)

    def keep(self, distiller: Any, step: int, batch: int) -> None:
        """Take one where it is time, before a step that is the so-manieth of its epoch."""
        if batch % EVERY == 0:
            scaler = getattr(distiller.trainer.precision_plugin, "scaler", None)
            content = {
                "graph": distiller.graph.state_dict(),
                "optimizers": distiller.optimizers().optimizer.state_dict(),
                "scaler": {} if scaler is None else scaler.state_dict(),
            }
            self.ring.put(RUN, step, content)

    def back(self, distiller: Any, step: int) -> int | None:
        """Go back to the last one before a step; the step it was taken at, or `None` where there is none."""
        while taken := self.ring.take(RUN):
            at, content = taken
            if at <= step and _finite(content["graph"]):
                optimizers = distiller.optimizers().optimizer
                distiller.graph.load_state_dict(content["graph"])
                optimizers.load_state_dict(content["optimizers"])
                if content["scaler"]:
                    distiller.trainer.precision_plugin.scaler.load_state_dict(content["scaler"])
                if distiller.captured is not None:  # it knows the old optimiser's tensors
                    distiller.compiled, distiller.captured = speed_up(distiller)
                return at
        return None


def _finite(state: Mapping[str, Any]) -> bool:
    """Whether every weight is; a bank may say by NaN that it is empty."""
    return all(bool(value.isfinite().all()) for name, value in state.items() if name.startswith("models."))
