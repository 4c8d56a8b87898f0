"""Stages: named spans of a run in which only some models, or parts of them, learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import nn

from kdkit.graph.span import Span
from kdkit.registry import KdkitError, nearest


@dataclass(frozen=True)
class Stage:
    """A named span, and who learns in it.

    Attributes:
        name: what it is called.
        when: its time.
        train: the nodes that learn in it, or parts of them by module path: `student`, `student.layer3`; `None`: all.
            What does not learn is in eval mode and has no gradient; its optimiser state waits.
    """

    name: str
    when: Span = field(default_factory=Span)
    train: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "when", Span.parse(self.when))
        if isinstance(self.train, str):
            object.__setattr__(self, "train", (self.train,))

    def parts(self, node: str) -> tuple[str, ...]:
        """Module paths in a node that learn; `("",)` is the whole, `()` nothing."""
        if self.train is None:
            return ("",)
        split = [end.partition(".")[::2] for end in self.train]
        return tuple(path for name, path in split if name == node)


def check_stages(stages: Sequence[Stage], trained: Mapping[str, nn.Module]) -> None:
    """Raise `KdkitError` where a stage trains what is no part of a trained model."""
    for stage in stages:
        for end in stage.train or ():
            node, _, path = end.partition(".")
            if node not in trained:
                known = nearest(node, list(trained)) or f"; trained: {', '.join(trained)}"
                raise KdkitError(f"stage {stage.name!r}: train: no trained model is called {node!r}{known}")
            modules = trained[node].named_modules()
            paths = [name for name, module in modules if next(module.parameters(), None) is not None]
            if path not in paths:
                known = nearest(path, paths) or f"; its parts: {', '.join(p for p in paths if p and '.' not in p)}"
                raise KdkitError(f"stage {stage.name!r}: train: {node!r} has no part {path!r} with weights{known}")


def inside(name: str, parts: Sequence[str]) -> bool:
    """Whether a parameter or module lies in one of the parts."""
    return any(part in ("", name) or name.startswith(f"{part}.") for part in parts)


def put_to_sleep(model: nn.Module, parts: Sequence[str]) -> None:
    """Eval mode for whatever is neither in a part that learns nor around one."""
    for name, module in model.named_modules():
        if not inside(name, parts) and not any(part.startswith(f"{name}." if name else "") for part in parts):
            module.training = False


class Rest:
    """Which parameters of trained models rest for a while; those that the user froze stay out of it.

    Args:
        models: the trained ones, by node.
    """

    def __init__(self, models: Mapping[str, nn.Module]) -> None:
        self.models = models
        self._resting: dict[str, set[str]] = {name: set() for name in models}

    def let_learn(self, parts: Mapping[str, Sequence[str]]) -> None:
        """Only these parts of each node learn; a node that is not named rests whole."""
        for node, model in self.models.items():
            resting = self._resting[node]
            for path, parameter in model.named_parameters():
                if parameter.requires_grad or path in resting:
                    learns = inside(path, parts.get(node, ()))
                    parameter.requires_grad_(learns)
                    (resting.discard if learns else resting.add)(path)

    def end(self) -> None:
        """Everything is as the user gave it."""
        self.let_learn(dict.fromkeys(self.models, ("",)))

    def learners(self, node: str) -> list[nn.Parameter]:
        """Parameters of a node that learn at some time."""
        resting = self._resting[node]
        return [p for path, p in self.models[node].named_parameters() if p.requires_grad or path in resting]
