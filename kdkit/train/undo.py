"""What a step changes, as it was before the step, so that a step that is left out leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


class Undo:
    """Copies of tensors that a step may change.

    Args:
        distiller: in training.
        what: `forward`: what forward passes change (running statistics, memory banks); `all`: weights and optimisers
            too; `copies`: the slow copies (EMA) alone.
    """

    def __init__(self, distiller: Any, what: str) -> None:
        self.optimizers = distiller.optimizers().optimizer
        self.distiller, self.what = distiller, what
        self.tensors = list(self._changing())
        self.before = [tensor.detach().clone() for tensor in self.tensors]
        self.places = {} if what == "copies" else _places(distiller.graph)
        self.known = self._states()

    def _changing(self) -> Iterator[Tensor]:
        graph = self.distiller.graph
        if self.what == "copies":
            for name, node in graph.nodes.items():
                if node.kind == "ema":
                    yield from (*graph.models[name].parameters(), *graph.models[name].buffers())
            return
        yield from graph.buffers()
        if self.what == "all":
            yield from graph.parameters()
            for optimizer in self.optimizers.of.values():
                for state in optimizer.state.values():
                    yield from (value for value in state.values() if isinstance(value, Tensor))
            scaler = getattr(self.distiller.trainer.precision_plugin, "scaler", None)
            held = (getattr(scaler, "_scale", None), getattr(scaler, "_growth_tracker", None))
            yield from (value for value in held if isinstance(value, Tensor))

    def _states(self) -> set[tuple[str, Any]]:
        return {(name, key) for name, optimizer in self.optimizers.of.items() for key in optimizer.state}

    @torch.no_grad()
    def back(self) -> None:
        """Put everything back, a buffer that was assigned anew or is new too."""
        now = _places(self.distiller.graph) if self.places else {}
        for module, name in now.keys() - self.places.keys():
            delattr(module, name)
        for place, held in self.places.items():
            if now.get(place) is not held:
                setattr(*place, held)
        for tensor, value in zip(self.tensors, self.before, strict=True):
            tensor.copy_(value)
        if self.what == "all":
            for name, key in self._states() - self.known:
                del self.optimizers.of[name].state[key]
        self.distiller.graph.train(self.distiller.graph.training)  # what follows from buffers is looked up again

    @torch.no_grad()
    def back_unless(self, good: Tensor) -> None:
        """Put everything back where `good`, which the device knows, is false; nobody waits for it.

        Only a step that makes an optimiser's first state, or a buffer of another shape, is waited for.
        """
        now = _places(self.distiller.graph) if self.places else {}
        anew = [(place, tensor) for place, tensor in now.items() if tensor is not self.places.get(place)]
        alike = all(_look(tensor) == _look(self.places.get(place)) for place, tensor in anew)
        if (self.what == "all" and self._states() != self.known) or not alike:
            if not bool(good):
                self.back()
            return
        for tensor, value in zip(self.tensors, self.before, strict=True):
            tensor.copy_(torch.where(good, tensor, value))
        for place, now_there in anew:
            setattr(*place, torch.where(good, now_there, self.places[place]))  # type: ignore[arg-type]


def _places(graph: nn.Module) -> dict[tuple[nn.Module, str], Tensor | None]:
    """Every buffer by where it hangs: a forward pass may put another tensor there."""
    return {(part, name): held for part in graph.modules() for name, held in part._buffers.items()}


def _look(tensor: Tensor | None) -> Any:
    return tensor if tensor is None else (tensor.shape, tensor.dtype, tensor.device)
