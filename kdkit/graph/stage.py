"""Stages: named spans of a run in which only some models and losses, or parts of them, learn."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
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
            What does not learn is in eval mode and has no gradient; its optimiser state waits. Heads and losses learn
            with the nodes that they teach; of one that is named here (`ft`, `ft.paraphraser`, `hint.head`) only that
            learns, and also where its node rests. A name that a node and an edge have is the node's.
    """

    name: str
    when: Span = field(default_factory=Span)
    train: Sequence[str] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "when", Span.parse(self.when))
        if isinstance(self.train, str):
            object.__setattr__(self, "train", (self.train,))

    def parts(self, name: str) -> tuple[str, ...]:
        """Module paths in a node or an edge that learn; `("",)` is the whole, `()` nothing."""
        if self.train is None:
            return ("",)
        split = [end.partition(".")[::2] for end in self.train]
        return tuple(path for its, path in split if its == name)

    def names(self, name: str) -> bool:
        """Whether it says of a node or an edge what learns."""
        return self.train is not None and bool(self.parts(name))


def with_weights(module: nn.Module) -> list[str]:
    """Paths of the parts of a module that have weights; `""` is the whole."""
    return [path for path, part in module.named_modules() if next(part.parameters(), None) is not None]


def check_stages(
    stages: Sequence[Stage],
    nodes: Collection[str],
    trained: Mapping[str, nn.Module],
    losses: Mapping[str, Iterable[str]],
) -> None:
    """Raise `KdkitError` where a stage trains what cannot learn; of the losses the parts with weights are given."""
    known = {name: list(parts) for name, parts in losses.items()}
    known |= {name: with_weights(model) for name, model in trained.items()}
    for stage in stages:
        for end in stage.train or ():
            name, _, path = end.partition(".")
            if not known.get(name, [""]):
                raise KdkitError(
                    f"stage {stage.name!r}: train: the loss {name!r} has no weights that could learn, for it has no "
                    "head; give it one (`head:`), or leave it out here"
                )
            if name not in known and name in nodes:
                message = "is trained at no time: it is frozen, or a slow copy of another one; leave it out"
                raise KdkitError(f"stage {stage.name!r}: train: the model {name!r} {message}")
            if name not in known:
                learn = [name for name, parts in known.items() if parts]
                told = nearest(name, learn) or f"; what learns: {', '.join(learn)}"
                raise KdkitError(f"stage {stage.name!r}: train: no trained model or loss is called {name!r}{told}")
            paths = known[name]
            if path not in paths:
                told = nearest(path, paths) or f"; its parts: {', '.join(p for p in paths if p and '.' not in p)}"
                raise KdkitError(f"stage {stage.name!r}: train: {name!r} has no part {path!r} with weights{told}")


def inside(name: str, parts: Sequence[str]) -> bool:
    """Whether a parameter or module lies in one of the parts."""
    return any(part in ("", name) or name.startswith(f"{part}.") for part in parts)


def put_to_sleep(model: nn.Module, parts: Sequence[str]) -> None:
    """Eval mode for whatever is neither in a part that learns nor around one."""
    for name, module in model.named_modules():
        if not inside(name, parts) and not any(part.startswith(f"{name}." if name else "") for part in parts):
            module.training = False


class Rest:
    """Which parameters rest for a while; those that the user froze stay out of it."""

    def __init__(self) -> None:
        self._resting: set[nn.Parameter] = set()

    def let_learn(self, parts: Sequence[tuple[nn.Module, Sequence[str]]]) -> None:
        """Only these parts of each module learn; none of them is that the whole module rests."""
        found = {p: False for module, _ in parts for p in module.parameters() if self.learns(p)}
        for module, paths in parts:
            found |= {p: True for path, p in module.named_parameters() if p in found and inside(path, paths)}
        for parameter, learns in found.items():
            parameter.requires_grad_(learns)
            (self._resting.discard if learns else self._resting.add)(parameter)

    def end(self) -> None:
        """Everything is as the user gave it."""
        for parameter in self._resting:
            parameter.requires_grad_(True)
        self._resting.clear()

    def learns(self, parameter: nn.Parameter) -> bool:
        """Whether it learns at some time."""
        return parameter.requires_grad or parameter in self._resting
