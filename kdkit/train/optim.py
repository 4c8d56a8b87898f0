"""Optimisers by name, one for each trained node, presented to Lightning as one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.graph.optimizers import OPTIMIZERS, check_optimizer
from kdkit.graph.schedule import Curve, Schedule, Spec
from kdkit.registry import KdkitError

RECORDED = {"SGD": ["fused"], "Adam": ["fused", "capturable"], "AdamW": ["fused", "capturable"]}
"""Optimisers whose step a CUDA graph may hold, and the options that this takes."""

MACHINERY = ("fused", "capturable", "foreach", "differentiable")
"""Options that say how a step is made; a checkpoint does not change them."""


def build_optimizer(
    spec: Mapping[str, Any], parameters: Iterable[Any], lr: float, recorded: torch.device | None = None
) -> torch.optim.Optimizer:
    """The optimiser that a checked spec names; what Python loops over tensors would cost is left to `foreach`.

    Args:
        spec: name and options.
        parameters: what it moves, or groups of it.
        lr: first learning rate.
        recorded: the device on which its steps are to be recorded, so that the learning rate must be a tensor there.
    """
    options = check_optimizer(spec)
    cls: Callable[..., torch.optim.Optimizer] = OPTIMIZERS[options.pop("name")]
    rate: float | Tensor = lr
    words = RECORDED.get(cls.__name__) if recorded is not None and not options.get("dampening") else None
    if words and not options.keys() & set(MACHINERY):
        rate = torch.tensor(lr, dtype=torch.float32, device=recorded)  # fused kernels read no other type
        options = {**dict.fromkeys(words, True), **options}
    try:
        made = cls(list(parameters), lr=rate, **options)
    except (ValueError, TypeError, RuntimeError) as error:
        raise KdkitError(f"optimizer: {error}") from error
    if isinstance(made, torch.optim.SGD):
        made.register_step_pre_hook(_begin_momentum)
    return made


def _begin_momentum(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Torch's fused SGD takes weights that begin to learn with all others or not at all; a first step is m·0 + ∇."""
    for group in optimizer.param_groups:
        for p in group["params"] if group["momentum"] and group["fused"] and not group["dampening"] else ():
            if p.grad is not None and optimizer.state[p].get("momentum_buffer") is None:
                optimizer.state[p]["momentum_buffer"] = torch.zeros_like(p)


def grouped(model: nn.Module, parameters: Sequence[nn.Parameter]) -> Sequence[Any]:
    """The parameters as they are, or in the groups that the model tells apart by a method `parameter_groups`.

    A group is moved and clipped as if it had an optimiser of its own.
    """
    tell = getattr(model, "parameter_groups", None)
    learn = {id(p): p for p in parameters}
    groups = [[learn.pop(id(p)) for p in group if id(p) in learn] for group in (tell() if callable(tell) else ())]
    if not groups:
        return parameters
    return [{"params": group} for group in (list(learn.values()), *groups) if group]


class NodeOptimizers(torch.optim.Optimizer):
    """Each trained node's own optimiser behind one face: one training step is one step to Lightning and its scaler.

    Attributes:
        of: optimiser by node.
        active: nodes that the next `step` moves.
        instead: a whole training step, which moves them itself; Lightning calls `step` and counts one.
    """

    def __init__(self, of: Mapping[str, torch.optim.Optimizer]) -> None:
        self.of = dict(of)
        self.instead: Callable[[], None] | None = None
        super().__init__(
            [p for optimizer in of.values() for group in optimizer.param_groups for p in group["params"]], {}
        )
        self.active = tuple(of)

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the active nodes: the very dicts that their optimisers hold."""
        return [group for name in self.__dict__.get("active", ()) for group in self.of[name].param_groups]

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:
        """The base class's own list is not used."""

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Groups belong to the nodes' optimisers."""

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move the active nodes, or do what stands `instead`."""
        result = None if closure is None else closure()
        if self.instead is not None:
            self.instead()
        else:
            self.move()
        return result

    def move(self) -> None:
        """Move the active nodes."""
        for name in self.active:
            self.of[name].step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of the active nodes, which have just moved."""
        for name in self.active:
            self.of[name].zero_grad(set_to_none)

    def clip(self, limit: float, *, by_value: bool = False) -> None:
        """Clip the gradients of each active node, or of each of its groups, by their norm or one by one."""
        clip = nn.utils.clip_grad_value_ if by_value else nn.utils.clip_grad_norm_
        for name in self.active:
            for group in self.of[name].param_groups:
                clip(group["params"], limit)

    def set_lr(self, name: str, lr: float) -> None:
        """Set a node's learning rate."""
        for group in self.of[name].param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr)
            else:
                group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """State by node, learning rates as numbers."""
        states = {name: optimizer.state_dict() for name, optimizer in self.of.items()}
        for state in states.values():
            for group in state["param_groups"]:
                group["lr"] = float(group["lr"])
        return states

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore every node's state; how its steps are made stays, and a learning rate that a recording reads."""
        for name, optimizer in self.of.items():
            groups, theirs = optimizer.param_groups, state_dict[name]["param_groups"]
            made = [{word: group[word] for word in MACHINERY if word in group} for group in groups]
            rates = [group["lr"] for group in groups]
            merged = [{**their, **mine} for their, mine in zip(theirs, made, strict=True)]
            optimizer.load_state_dict({**state_dict[name], "param_groups": merged})
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate.fill_(group["lr"]) if isinstance(rate, Tensor) else group["lr"]


def can_be_recorded(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a CUDA graph may hold its step, and follow its learning rate."""
    words = RECORDED.get(type(optimizer).__name__)
    groups = optimizer.param_groups
    return words is not None and all(isinstance(g["lr"], Tensor) and all(g[word] for word in words) for g in groups)


def rate(name: str, own: Spec | None, common: Spec, epochs: float) -> Curve:
    """A node's learning rate over time, its own or the run's, which is never negative."""
    schedule = Schedule.parse(common if own is None else own)
    if schedule.extremes(epochs)[0] < 0:
        raise KdkitError(f"lr of {name!r}: must never be negative, got {schedule}")
    return schedule.bind(epochs)
