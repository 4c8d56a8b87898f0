"""What a Distiller adds to Lightning's checkpoint, and takes from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from kdkit.train.distiller import Distiller


def add_to(checkpoint: dict[str, Any], distiller: Distiller) -> None:
    """Running means and norms, who still has to be scored, what was not finite."""
    trainer, wanted = distiller.trainer, distiller.scores.wanted if distiller.scores else None
    if distiller.watch.drain():  # it went back just now: what Lightning put in is no more
        checkpoint["state_dict"] = trainer.strategy.lightning_module_state_dict()
        checkpoint["optimizer_states"] = [trainer.strategy.optimizer_state(one) for one in trainer.optimizers]
    distiller.place.save(distiller, checkpoint)
    sums, watch = distiller.sums.state_dict(), distiller.watch.state_dict()
    checkpoint["kdkit"] = {"sums": sums, "wanted": wanted, "watch": watch}


def _make_room(distiller: Distiller, state: Mapping[str, Any]) -> None:
    """Buffers that are None until a first forward, and were filled when this was written."""
    for path, part in distiller.named_modules():
        for name, buffer in part._buffers.items():
            if buffer is None and (value := state.get(f"{path}.{name}")) is not None:
                part._buffers[name] = torch.empty_like(value, device=distiller.device)


def take_from(checkpoint: dict[str, Any], distiller: Distiller) -> None:
    """Go on in the middle of an epoch; outside fit, what only training needs is left in the file."""
    _make_room(distiller, checkpoint["state_dict"])
    if not distiller.graph.phases:
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if not k.startswith("graph.edges.")}
        return
    held, distiller.watch.resumed = checkpoint["kdkit"], distiller.trainer.state.fn == "fit"
    distiller.sums.load_state_dict(held["sums"], distiller.device)
    if distiller.scores and held["wanted"] is not None:
        distiller.scores.wanted = held["wanted"]
    if "watch" in held:  # not in older ones
        distiller.watch.load_state_dict(held["watch"], distiller.device)
