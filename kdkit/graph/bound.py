"""An edge bound to real models: its loss instances, heads and schedules, ready to be computed."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdkit import draws, ranks
from kdkit.graph.audience import Audience
from kdkit.graph.batch import Batch, Facts
from kdkit.graph.calls import Call, Shape, calls, check_classes, source_shape
from kdkit.graph.collect import clip_gradient, gather_rows, gather_rows_detached
from kdkit.graph.construct import check_control, check_sized, construct, filled, least_and_most
from kdkit.graph.control import Climb, Control
from kdkit.graph.coordinate import Standing
from kdkit.graph.edge import Edge
from kdkit.graph.ensemble import merged
from kdkit.graph.exact import apply_exactly
from kdkit.graph.factors import factored, heard
from kdkit.graph.heads import bind_head, charge
from kdkit.graph.links import End, Link
from kdkit.graph.schedule import Curve, Schedule
from kdkit.graph.share import Calibration, Share
from kdkit.graph.stage import with_weights
from kdkit.registry import KdkitError, constructor, reads

Self = TypeVar("Self", bound="BoundEdge")
Said = TypeVar("Said", Tensor, "Tensor | None")
Outputs = Mapping[End, Tensor]
LISTS = {"students", "teachers"}
NOBODY: frozenset[int] = frozenset()


class BoundEdge(nn.Module):
    """The loss of one edge over all its links; `forward` gives the unweighted sum for the nodes that a turn updates.

    `factors` holds a number for each call, 1 unless a callback sets it (`kdkit.graph.factors`).

    Args:
        edge: what the recipe says.
        found: its links, taps resolved.
        shapes: shape of every end, without the batch.
        facts: what is known of the data.
        classifiers: classifier of each node, for losses that read `teacher_classifier`.
        epochs: length of the run, for schedules.
        seed: the run's seed.
        shared: heads that several edges use, by name; filled as they are met.
    """

    weight: Tensor
    clip: Tensor
    factors: Tensor

    def __init__(
        self,
        edge: Edge,
        found: list[Link],
        *,
        shapes: Mapping[End, Shape],
        facts: Facts,
        classifiers: Mapping[str, nn.Module],
        epochs: float,
        seed: int,
        shared: dict[str, nn.Module],
    ) -> None:
        super().__init__()
        self.edge, self.name, self.reads = edge, edge.name, reads(edge.cls)
        self.start, self.end = edge.when.bind(epochs)
        self.calls = calls(found, bool(LISTS & set(self.reads)))
        self._first_head = [0, *accumulate(len(call.links) for call in self.calls)]
        self._classifiers = classifiers  # a plain dict: a teacher's classifier is not this module's child
        self.register_buffer("factors", torch.ones(len(self.calls)))
        self.numbers: list[tuple[nn.Module, str]] = [(self, "factors")]
        self.curves: list[tuple[nn.Module, str, Curve]] = []
        self.audience: Audience | None = None  # of a cohort whose models come and go
        self.controls = {word: value for word, value in edge.options.items() if isinstance(value, Control)}
        self.climb = Climb(len(self.calls)) if any(its.control == "nll" for its in self.controls.values()) else None
        spec, peers = edge.coordinate, list(edge.among or ())
        self.coordination = None if spec is None else Standing(spec, peers)
        self.parts: list[tuple[End, Tensor]] | None = None  # where it is a list, every call's value is kept
        self.calibration: Calibration | None = None
        self.silent = False
        if isinstance(edge.weight, Share):
            self.calibration = Calibration(edge.weight)
            self.register_buffer("weight", torch.zeros(()))
            self.numbers += [(self, "weight"), (self.calibration, "own"), (self.calibration, "whole")]
        else:
            self.silent = least_and_most("weight", edge, edge.weight, epochs) == (0.0, 0.0)
            self._schedule(self, "weight", edge.weight, epochs)
        if edge.clip is not None:
            least_and_most("clip", edge, edge.clip, epochs)
            self._schedule(self, "clip", edge.clip, epochs)
        check_control(edge, self.controls, self.calls)
        self.heads, self.losses = nn.ModuleList(), nn.ModuleList()
        for i, call in enumerate(self.calls):
            pairs = [(shapes[link.target], source_shape(edge.name, link, shapes)) for link in call.links]
            keys = [draws.key(seed, edge.name, "head", i, j) for j in range(len(pairs))]
            bound = [self._head(*pair, key, shared) for pair, key in zip(pairs, keys, strict=True)]
            if edge.head is None:
                check_classes(edge, call.links[0], *pairs[0], facts.num_classes)
            else:
                self.heads.extend(head for head, *_ in bound if head is not None)
            known = filled([b[1] for b in bound], [b[2] for b in bound], facts, draws.key(seed, edge.name, i))
            self.losses.append(self._loss(i, known, epochs))

    def _head(
        self, student: Shape, teacher: Shape | None, key: int, shared: dict[str, nn.Module]
    ) -> tuple[nn.Module | None, Shape, Shape | None]:
        try:
            return bind_head(self.edge.head, student, teacher, key=key, shared=shared)
        except KdkitError as error:
            raise KdkitError(f"edge {self.name!r}: {error}") from error

    def _loss(self, i: int, known: Mapping[str, Any], epochs: float) -> nn.Module:
        edge = self.edge
        if not isinstance(edge.loss, type):
            check_sized(edge, edge.loss)
            stateful = next(edge.loss.parameters(), None) is not None or next(edge.loss.buffers(), None) is not None
            return copy.deepcopy(edge.loss) if i and stateful else edge.loss
        moving = {word: value for word, value in edge.options.items() if isinstance(value, (Schedule, Control))}
        options = {word: value for word, value in edge.options.items() if word not in moving}
        for word, parameter in constructor(edge.cls).items():
            if word in known and word not in edge.options:
                if known[word] is not None:
                    options[word] = known[word]
                elif parameter.default is inspect.Parameter.empty:
                    raise KdkitError(f"edge {edge.name!r}: the loss needs `{word}`; give it as an option")
        with torch.random.fork_rng(devices=[]):
            picks = (max, min) if moving else (min,)  # both ends of every schedule are judged, the last one is kept
            for pick in picks:
                torch.default_generator.manual_seed(known["seed"])
                ends = {word: pick(schedule.extremes(epochs)) for word, schedule in moving.items()}
                loss = construct(edge, {**options, **ends})
        for word, schedule in moving.items():
            if word in getattr(loss, "fixed", ()) or not hasattr(loss, word):
                why = "is built by it" if hasattr(loss, word) else f"does not keep it as `{word}`"
                raise KdkitError(f"edge {edge.name!r}: {word} cannot be a schedule, for the loss {why}")
            delattr(loss, word)
            self._schedule(loss, word, schedule, epochs)
        return loss

    def _schedule(self, module: nn.Module, word: str, schedule: Schedule | Control, epochs: float) -> None:
        """A scheduled number is a 0-dim tensor on the device: compiled code and CUDA graphs see it move."""
        curve = schedule.bind(epochs)
        module.register_buffer(word, torch.tensor(curve(0.0)), persistent=isinstance(schedule, Control))
        self.numbers.append((module, word))
        if not schedule.constant:
            self.curves.append((module, word, curve))

    def set_time(self, t: float) -> None:
        """Move every schedule to time `t` in epochs."""
        for module, word, curve in self.curves:
            getattr(module, word).fill_(curve(t))

    @property
    def scheduled(self) -> bool:
        """Whether its weight is a schedule that moves."""
        return isinstance(self.edge.weight, Schedule) and not self.edge.weight.constant

    @property
    def targets(self) -> frozenset[str]:
        """The nodes that it teaches."""
        return frozenset(call.target for call in self.calls)

    def active(self, t: float) -> bool:
        """Whether it takes part at time `t`."""
        return self.start <= t < self.end

    def forward(
        self, nodes: tuple[str, ...], outputs: Outputs, batch: Batch, progress: Tensor, loss_scale: Tensor
    ) -> Tensor | None:
        """Unweighted value over the links whose target is among `nodes`; `None` where there is none.

        A batch of fewer samples than the loss compares (an epoch's last one) gives `None` too: the edge sits it out.
        `loss_scale` is what the loss will be multiplied with before backward, so that `clip` means unscaled gradients.
        """
        total: Tensor | None = None
        factors, idle, finite = self.factors, NOBODY, None
        if self.audience is not None:
            factors, idle = self.audience(factors, outputs), self.audience.idle
            finite = batch.finite() if self.audience.watch else None
        for i, call in enumerate(self.calls):
            if call.target in nodes and i not in idle and self.samples(call, outputs) >= self.edge.min_batch:
                value = self.value(i, outputs, batch, progress, loss_scale, factors[i])
                value = factored(value if call.share == 1.0 else value * call.share, factors[i])
                value = value if self.audience is None else self.audience.kept(value, finite)
                if self.parts is not None:
                    self.parts.append((call.links[0].target, value))
                total = value if total is None else total + value
        return total

    def samples(self, call: Call, outputs: Outputs) -> int:
        """How many samples the loss sees."""
        return len(outputs[call.links[0].target]) * (ranks.count() if self.edge.gather else 1)

    def value(
        self, i: int, outputs: Outputs, batch: Batch, progress: Tensor, scale: Tensor, factor: Tensor | None = None
    ) -> Tensor:
        """Value of the i-th call alone; the words are those of `forward`."""
        call, factor = self.calls[i], self.factors[i] if factor is None else factor
        students, teachers, penalties = [], [], []
        for j, link in enumerate(call.links):
            student, teacher = outputs[link.target], self._heard(self._teacher(link, outputs), factor)
            if self.edge.clip is not None:
                student = clip_gradient(student, self.clip * scale)
            if len(self.heads):
                head = self.heads[self._first_head[i] + j]
                student, teacher = head(student, teacher)
                if (penalty := charge(head)) is not None:
                    penalties.append(penalty)
            students.append(student)
            teachers.append(teacher)
        labels, index = batch.labels, batch.index
        if self.edge.gather:
            students, teachers = (
                [gather_rows(s) for s in students],
                [t if t is None else gather_rows_detached(t) for t in teachers],
            )
            labels, index = gather_rows_detached(labels), gather_rows_detached(index)
        words: dict[str, Any] = {
            "student": students[0],
            "teacher": teachers[0],
            "students": students,
            "teachers": teachers,
            "labels": labels,
            "index": index,
            "progress": progress,
        }
        link = call.links[0]
        for word in self.reads:
            if word == "student_logits":
                words[word] = self._gathered(outputs[End(link.target.node, "logits")])
            elif word == "teacher_logits":
                heads = [End(end.node, "logits") for end in link.sources]
                words[word] = self._gathered(self._heard(self._merged(heads, outputs), factor))
            elif word == "teacher_classifier":
                words[word] = self._classifiers[link.sources[0].node]
        value: Tensor = self.losses[i](**{word: words[word] for word in self.reads})
        return value + sum(penalties) if penalties else value

    def _teacher(self, link: Link, outputs: Outputs) -> Tensor | None:
        return self._merged(link.sources, outputs) if link.sources else None

    def _heard(self, teacher: Said, factor: Tensor) -> Said:
        """What a call is taught; a peer that is not listened to says nothing, not even NaN."""
        peers = self.edge.among is not None or self.audience is not None
        return heard(teacher, factor) if peers and teacher is not None else teacher

    def _gathered(self, x: Tensor) -> Tensor:
        return gather_rows(x) if self.edge.gather else x

    def _merged(self, ends: Sequence[End], outputs: Outputs) -> Tensor:
        """One teacher, or the mean of those who are there."""
        ends = [end for end in ends if end in outputs] or ends
        tensors = [outputs[end].detach() for end in ends]
        if len(tensors) == 1:
            return tensors[0]
        weights = None if self.audience is None else self.audience.weights(ends, tensors)
        T = getattr(self.losses[0], "temperature", 1.0)
        probabilities = self.edge.ensemble != "geometric" and ends[0].tap == "logits"
        return merged(tensors, weights, probabilities=probabilities, T=T)

    def ends(self) -> set[End]:
        """Every tap that it reads."""
        found = {end for call in self.calls for link in call.links for end in (*link.sources, link.target)}
        for call in self.calls:
            if "student_logits" in self.reads:
                found.add(End(call.target, "logits"))
            if "teacher_logits" in self.reads:
                found |= {End(end.node, "logits") for end in call.links[0].sources}
        return found

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        apply_exactly(self.numbers, lambda: super(BoundEdge, self)._apply(fn, recurse))  # type: ignore[no-untyped-call]
        return self

    def parameters_of(self, node: str) -> list[nn.Parameter]:
        """Parameters of the heads and losses that belong to a node's turn."""
        found: dict[nn.Parameter, None] = {}
        for i, call in enumerate(self.calls):
            if call.target == node:
                parts = self.losses[i], *self.heads[self._first_head[i] : self._first_head[i + 1]]
                found |= dict.fromkeys(p for part in parts for p in part.parameters())
        return list(found)

    def parts_told(self) -> dict[str, list[str]]:
        """Parts with weights by the names that a stage gives them, the loss's own and `head`; their module paths."""
        found: dict[str, list[str]] = {}
        for path in (path for path in with_weights(self) if "." in path):
            kind, _, *inner = path.split(".")
            told = ".".join(["head", *inner] if kind == "heads" else inner)
            found.setdefault(told, []).append(path)
        return {**found, "": [""]} if found else {}
