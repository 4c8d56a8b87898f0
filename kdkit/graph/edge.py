"""Edges: the losses of a graph, from where knowledge comes to whom it reaches."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import nn

from kdkit.graph.control import moving
from kdkit.graph.coordinate import Coordination
from kdkit.graph.schedule import Schedule, Spec
from kdkit.graph.share import Share
from kdkit.graph.span import Span
from kdkit.registry import LOSSES, KdkitError, LossInfo, check_contract, constructor, nearest

Ends = str | Sequence[str] | None


class Edge:
    """One loss between nodes: `Edge("kd", weight=0.9, temperature=4)` or `Edge(KDLoss(4.0), source="teacher")`.

    Args:
        loss: a registered name, a class that keeps the contract, or a ready module.
        source: where knowledge comes from: `"teacher"`, `"teacher.stage2"`, a tap of the default node, or a list.
            Left out: the node named `teacher`, else the only frozen node.
        target: whom it reaches, likewise; left out: every trained node.
        among: peers that all teach each other, averaged over the K−1 others; instead of `source` and `target`.
        taps: where both ends are read, a name or a list; left out: the loss's natural taps.
        weight: a number, a schedule, or `{share: 0.5}`: set in the first steps so that the edge has this share of all
            that its model is told (`kdkit.graph.share.Share`); left out: the one that goes with the loss's reduction.
        head: projection on the student's side, a name or `{name: {options}}`; a loss that has heads of its own (`crd`)
            takes the word itself. `none` is no head.
        when: `{from: …, to: …}`, the time in which it is active.
        gather: gather both ends over all ranks before the loss (in-batch losses under DDP).
        clip: the largest norm of the gradient that this edge may send from one source into the student's tap, a number
            or a schedule.
        ensemble: several sources as one teacher: `arithmetic` mean (of probabilities, where logits are read) or
            `geometric` (of logits); with `among`, all the others are one (DML_e of Zhang et al. 2018).
        coordinate: `True` or `{scale: …, ema: …}`: peers teach in proportion to how well they do on held-out training
            samples, and the weak ones listen more (`kdkit.graph.coordinate.Coordination`).
        name: how the log and overrides call it; left out: the loss's name.
        options: the loss's constructor arguments; every number may be a schedule, a temperature also controlled
            (`kdkit.graph.control.Control`).

    Raises:
        KdkitError: unknown loss or option, or words that exclude each other.
    """

    def __init__(
        self,
        loss: str | type[nn.Module] | nn.Module,
        *,
        source: Ends = None,
        target: Ends = None,
        among: Sequence[str] | None = None,
        taps: Ends = None,
        weight: Spec | Share | None = None,
        head: str | Mapping[str, Any] | None = None,
        when: Span | Mapping[str, Any] | None = None,
        gather: bool = False,
        clip: Spec | None = None,
        ensemble: Literal["arithmetic", "geometric"] | None = None,
        coordinate: Coordination | Mapping[str, Any] | bool | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        given: dict[str, Any] = {
            "source": source,
            "target": target,
            "among": among,
            "taps": taps,
            "weight": weight,
            "head": head,
        }
        given |= {"when": when, "gather": gather or None, "clip": clip, "ensemble": ensemble, "coordinate": coordinate}
        self._given = {word: value for word, value in {**given, "name": name, **options}.items() if value is not None}
        self.loss: type[nn.Module] | nn.Module
        self.info: LossInfo | None = None
        _check_loss(loss)
        if isinstance(loss, str):
            import kdkit.losses  # noqa: F401  fills the registry

            self.info = LOSSES[loss]
            self.loss = self.info.cls
        else:
            self.loss = loss
            self.info = next((i for i in LOSSES.values() if i.cls is self.cls), None)
        check_contract(self.cls)
        self.name = name or (self.info.name if self.info else self.cls.__name__)
        if "." in self.name:
            raise KdkitError(f"edge {self.name!r}: a name may not contain '.'")
        self.source, self.target, self.among, self.taps = source, target, among, taps
        if among is not None and (source is not None or target is not None):
            raise KdkitError(f"edge {self.name!r}: `among` already says who teaches whom; leave out `from` and `to`")
        if ensemble not in (None, "arithmetic", "geometric"):
            raise KdkitError(f"edge {self.name!r}: ensemble must be 'arithmetic' or 'geometric', got {ensemble!r}")
        self.coordinate = Coordination.parse(coordinate)
        if self.coordinate is not None and (among is None or ensemble is not None):
            raise KdkitError(f"edge {self.name!r}: coordinate weighs each peer; it goes with `among`, no ensemble")
        self.when = Span.parse(when)
        self.gather = gather
        self.ensemble = ensemble
        default = self.info.weight if self.info else 1.0
        self.weight = Share.parse(default if weight is None else weight)
        self.clip = None if clip is None else Schedule.parse(clip)
        if self.clip is not None and isinstance(self.weight, Share):
            raise KdkitError(f"edge {self.name!r}: share and clip both say how hard it pulls; leave out one of them")
        own = "head" in constructor(self.cls)
        self.head = None if own or head == "none" else head
        self.options = self._check_options({**options, "head": head} if own and head is not None else options)

    def __repr__(self) -> str:
        """As it was written."""
        loss = repr(self.info.name) if self.info and isinstance(self.loss, type) else self.cls.__name__
        words = [f"{word}={value!r}" for word, value in self._given.items()]
        return f"Edge({', '.join([loss if isinstance(self.loss, type) else f'{loss}()', *words])})"

    @property
    def cls(self) -> type[nn.Module]:
        """The loss's class."""
        return self.loss if isinstance(self.loss, type) else type(self.loss)

    @property
    def natural_taps(self) -> list[str]:
        """Where the loss reads unless told otherwise; an own class says so by an attribute `tap`, a name or several."""
        tap = self.info.taps if self.info else getattr(self.cls, "tap", "logits")
        found = listed(tap) if isinstance(tap, (str, list, tuple)) else []
        if not found or not all(isinstance(name, str) and name for name in found):
            raise KdkitError(f"edge {self.name!r}: {self.cls.__name__}.tap must be a name or several, got {tap!r}")
        return found

    @property
    def min_batch(self) -> int:
        """The fewest samples that the loss can compare; it says so by an attribute `min_batch`."""
        return int(getattr(self.loss, "min_batch", 1))

    def _check_options(self, options: dict[str, Any]) -> dict[str, Any]:
        known = constructor(self.cls)
        if options and not isinstance(self.loss, type):
            raise KdkitError(
                f"edge {self.name!r}: {sorted(options)} given beside a ready module; give its class instead"
            )
        for word in options:
            if word not in known and word in ("from", "from_", "to"):
                right = "target" if word == "to" else "source"
                raise KdkitError(f"edge {self.name!r}: in Python a recipe's `{word.strip('_')}` is called `{right}`")
            if word not in known:
                words = [*known, *inspect.signature(type(self)).parameters]
                raise KdkitError(
                    f"edge {self.name!r}: {self.cls.__name__} has no option {word!r}{nearest(word, words)}"
                )
        return {word: _scheduled(known[word], value) for word, value in options.items()}


def listed(given: Ends) -> list[str]:
    """None, a name or several as a list."""
    if given is None:
        return []
    return [given] if isinstance(given, str) else list(given)


def _check_loss(loss: Any) -> None:
    """A name, a module or its class, and nothing else that Python can call."""
    if isinstance(loss, (str, nn.Module)) or (isinstance(loss, type) and issubclass(loss, nn.Module)):
        return
    if isinstance(loss, Mapping):
        name = next(iter(loss), "kd")
        raise KdkitError(f"a loss must be a name or an nn.Module, got a mapping; in Python: Edge({name!r}, weight=…)")
    raise KdkitError(
        f"a loss must be a name, an nn.Module or its class, got {getattr(loss, '__name__', repr(loss))!r}; write a "
        "class whose forward(self, student, teacher) returns one number"
    )


def _scheduled(parameter: inspect.Parameter, value: Any) -> Any:
    """A mapping given for a number is a schedule."""
    default = parameter.default
    number = isinstance(default, (int, float)) and not isinstance(default, bool)
    number = number or parameter.annotation in (float, "float", "float | Tensor")
    if not (number and isinstance(value, Mapping)):
        return value
    return moving(value) if parameter.name == "temperature" else Schedule.parse(value)
