"""The graph: nodes and edges bound to data, run step by step. It knows no method, only who reads what from whom."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from kdkit import taps as tapping
from kdkit.graph import checks
from kdkit.graph.batch import Adapter, Batch, Facts
from kdkit.graph.bound import BoundEdge
from kdkit.graph.classifiers import Classifiers
from kdkit.graph.cohort import Roster
from kdkit.graph.edge import Edge
from kdkit.graph.exact import apply_exactly
from kdkit.graph.links import End, links
from kdkit.graph.node import Node
from kdkit.graph.phase import Phase, phase_at, phases
from kdkit.graph.rehearse import rehearse
from kdkit.graph.share import check_shares
from kdkit.graph.stage import Rest, Stage, check_stages, put_to_sleep
from kdkit.registry import KdkitError

Self = TypeVar("Self", bound="Graph")
Cache = Callable[[Tensor, Callable[[], Mapping[str, Tensor]]], Mapping[str, Tensor]]
"""Of one model: values at its taps by their rows; the function computes them where they are not known yet."""


class Graph(nn.Module):
    """Models and losses as one module.

    Trained and EMA nodes are children; frozen ones are held outside the module tree, so that they are in no optimiser,
    no checkpoint and no DDP, and `.train()` does not reach them; `.to()` does.

    Args:
        nodes: models by name; a bare module is a trained node.
        edges: losses; a bare name is the registered loss with its defaults.
        seed: what heads, banks and draws follow from.
        stages: spans in which only some nodes and edges, or parts of them, learn.
    """

    progress: Tensor
    loss_scale: Tensor

    def __init__(
        self,
        nodes: Mapping[str, Node | nn.Module],
        edges: Sequence[Edge | str | nn.Module],
        seed: int = 0,
        stages: Sequence[Stage] = (),
    ) -> None:
        super().__init__()
        checks.check_kinds(nodes, edges, seed)
        self.stages = tuple(stages)
        self.nodes = {name: node if isinstance(node, Node) else Node(node) for name, node in nodes.items()}
        self.unbound = [edge if isinstance(edge, Edge) else Edge(edge) for edge in edges]
        self.seed = seed
        checks.check_names(self.nodes, self.unbound)
        checks.check_frozen(self.nodes)
        self.models = nn.ModuleDict()
        self.frozen: dict[str, nn.Module] = {}
        for name, node in self.nodes.items():
            if node.kind == "frozen" and node.module is not None:
                self.frozen[name] = node.module.eval().requires_grad_(False)
            elif node.module is not None:
                self.models[name] = node.module
        for name, node in list(self.nodes.items()):
            if node.kind == "ema":
                if node.of is None or node.of not in self.models:
                    raise KdkitError(
                        f"model {name!r}: ema must name a trained model, got {node.of!r}; trained: {list(self.models)}"
                    )
                self.models[name] = copy.deepcopy(self.models[node.of]).eval().requires_grad_(False)
                self.nodes[name] = node.reading_as(self.nodes[node.of])
        self.adapters = nn.ModuleDict()
        self.edges = nn.ModuleDict()
        self.watchers = nn.ModuleList()  # see kdkit.train.share.measure
        self.register_buffer("progress", torch.zeros(()), persistent=False)
        self.register_buffer("loss_scale", torch.ones(()), persistent=False)
        # What the user put to sleep inside a model that trains (a frozen BatchNorm) stays so.
        self._asleep = [
            part for model in self.models.values() if model.training for part in model.modules() if not part.training
        ]
        self.phases: list[Phase] = []
        self.phase: Phase | None = None
        self.cohort: Roster | None = None
        self.caches: dict[str, Cache] = {}
        self.rest = Rest()

    def model(self, name: str) -> nn.Module:
        """The module of a node."""
        return self.frozen[name] if name in self.frozen else self.models[name]

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the trained nodes."""
        return tuple(name for name, node in self.nodes.items() if node.kind == "trained")

    @property
    def min_batch(self) -> int:
        """The fewest samples that every loss can compare."""
        return max(edge.min_batch for edge in self.unbound)

    # -- binding ---------------------------------------------------------------------------------------------------

    @tapping.shared_runs()
    def bind(self, example: Batch, facts: Facts, epochs: float) -> None:
        """Resolve taps, size heads, build losses and check every schedule, by one dry run that leaves no trace.

        Args:
            example: a small real batch.
            facts: what is known of the data.
            epochs: length of the run.

        Raises:
            KdkitError: anything that would fail in training, before training.
        """
        self.facts, self.epochs = facts, epochs
        self.rest.end()
        self.adapters = nn.ModuleDict({name: Adapter(node, facts) for name, node in self.nodes.items()})
        views = {name: self.adapters[name](example.x) for name in self.nodes}
        found = {
            e.name: links(e, self.nodes, lambda n, t: tapping.expand(self.model(n), t, views[n])) for e in self.unbound
        }
        ends = {end for several in found.values() for link in several for end in (*link.sources, link.target)}
        readers = {name: self.taps(name, (e.tap for e in ends if e.node == name), views[name]) for name in self.nodes}
        shapes = {end: tuple(readers[end.node].shapes[end.tap]) for end in ends}
        classifiers = Classifiers({name: self.model(name) for name in self.nodes}, views)
        shared: dict[str, nn.Module] = {}
        before = copy.deepcopy(self.edges.state_dict())
        self.edges = nn.ModuleDict()
        for edge in self.unbound:
            checks.check_data(edge, example, facts)
            bound = BoundEdge(
                edge,
                found[edge.name],
                shapes=shapes,
                facts=facts,
                classifiers=classifiers,
                epochs=epochs,
                seed=self.seed,
                shared=shared,
            )
            checks.check_classifier(bound, self.nodes)
            if any(p.dtype == torch.float64 for call in bound.calls for p in self.models[call.target].parameters()):
                bound.double()
            self.edges[edge.name] = bound
        told = {edge.name: edge.parts_told() for edge in self.bound}
        check_stages(self.stages, self.nodes, {name: self.models[name] for name in self.trained}, told)
        checks.check_owners({name: self.parameters_of(name) for name in self.trained})
        own, new = ({k: getattr(v, "shape", 0) for k, v in s.items()} for s in (before, self.edges.state_dict()))
        if own == new:
            self.edges.load_state_dict(before)  # a second fit goes on with the heads and banks of the first
        self.decays = {name: checks.decay(name, n, epochs) for name, n in self.nodes.items() if n.kind == "ema"}
        self.phases = phases(self, views)
        check_shares(self.phases)
        self.whole = {
            name: self.taps(name, {tap for phase in self.phases for tap in phase.taps(name)}, views[name])
            for name, node in self.nodes.items()
            if node.cache is not False
        }
        self.caches = {}
        self.set_time(0.0)
        self.stochastic, self.set_anew = rehearse(self, example)

    def taps(self, node: str, names: Iterable[str], view: Tensor) -> tapping.Taps:
        """A reader of a node's taps, which errors name."""
        names = sorted(names)
        try:
            return tapping.Taps(self.model(node), names, view)
        except KdkitError as error:
            checks.check_ends(self.unbound, self.nodes, names, error)
            raise type(error)(f"model {node!r} (models: {', '.join(self.nodes)}): {error}") from error

    @property
    def bound(self) -> list[BoundEdge]:
        """The edges, bound."""
        return list(self.edges.values())  # type: ignore[arg-type]

    # -- running ---------------------------------------------------------------------------------------------------

    @property
    def now(self) -> Phase:
        """The phase that the graph is in."""
        if self.phase is None:
            raise KdkitError("the graph is not bound to data yet; call bind() or fit it with a Trainer")
        return self.phase

    def set_time(self, t: float, begun: float | None = None) -> None:
        """Move to time `t` in epochs: schedules, and who is active, as of the time when this update was `begun`."""
        phase = phase_at(self.phases, t if begun is None else begun)
        phase = phase if self.cohort is None else self.cohort.phase(phase)
        for edge in phase.edges:
            edge.set_time(t)
        self.progress.fill_(t / self.epochs)
        if phase is not self.phase:
            self.phase = phase
            if self.stages:
                models = [(self.models[name], phase.parts.get(name, ())) for name in self.trained]
                self.rest.let_learn([*models, *((edge, phase.beside.get(edge.name, ("",))) for edge in self.bound)])
            self.train(self.training)

    def train(self: Self, mode: bool = True) -> Self:
        """Set the mode; what does not learn now stays in eval mode."""
        super().train(mode)
        for part in self._asleep:
            part.training = False
        for name, model in self.models.items():
            if self.nodes[name].kind == "ema" or (self.phase is not None and name not in self.phase.updates):
                model.eval()
            elif self.phase is not None:
                put_to_sleep(model, self.phase.parts[name])
        for name, parts in {} if self.phase is None else self.phase.beside.items():
            put_to_sleep(self.edges[name], parts)
        return self

    def _live(self) -> list[str]:
        return [name for name in self.now.readers if name not in self.caches]

    def outputs(self, batch: Batch, *, cached: bool = False) -> dict[End, Tensor]:
        """Every tap that is read in this phase, or those of `cached` models alone; what learns keeps a graph."""
        found: dict[End, Tensor] = {}
        for name in self.caches.keys() & self.now.readers.keys() if cached else self.now.readers:
            self.read(name, batch, found, grad=name in self.now.updates)
        return found

    def read(self, name: str, batch: Batch, into: dict[End, Tensor], *, grad: bool) -> None:
        """Run one node, or look its values up, and put what is read of it into `into`."""
        reader = self.now.readers[name]
        if name in self.caches:
            values = self.caches[name](batch.rows[name], lambda: self.answer(name, batch.x))
        else:
            with torch.set_grad_enabled(grad and torch.is_grad_enabled()):
                values = reader(self.adapters[name](batch.x))
        into.update({End(name, tap): values[tap] for tap in reader.names})

    def answer(self, name: str, x: Any) -> dict[str, Tensor]:
        """What a node says at every tap that is read of it in any phase."""
        with torch.no_grad():
            return self.whole[name](self.adapters[name](x))

    def terms(self, nodes: tuple[str, ...], outputs: Mapping[End, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Unweighted value of each active edge that teaches one of `nodes`."""
        found = {}
        for edge in self.now.edges:
            taught = self.now.taught(edge, nodes)
            if (value := edge(taught, outputs, batch, self.progress, self.loss_scale)) is not None:
                found[edge.name] = value
        checks.check_terms(found)
        return found

    def weighted(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Σ weight · term."""
        return torch.stack([self.edges[name].weight * value for name, value in terms.items()]).sum()  # type: ignore[operator]

    @contextmanager
    def opened(self) -> Iterator[None]:
        """Every tap open, around `lesson`: hooks cannot be opened inside of what is compiled."""
        with ExitStack() as stack:
            for name in self._live():
                stack.enter_context(self.now.readers[name].open())
            yield

    def lesson(self, batch: Batch, known: Mapping[End, Tensor]) -> tuple[Tensor | None, dict[str, Tensor]]:
        """Σ weight · term of a step in which all learn at once, and the terms; `known` is what caches gave."""
        outputs = dict(known)
        for name in self._live():
            with torch.set_grad_enabled(name in self.now.updates):
                reader = self.now.readers[name]
                values = reader.take(self.model(name)(self.adapters[name](batch.x)))
            outputs.update({End(name, tap): value for tap, value in values.items()})
        terms = self.terms(self.now.updates, outputs, batch)
        return self.weighted(terms) if terms else None, terms

    @torch.no_grad()
    def move_ema(self, t: float) -> None:
        """θ ← decay·θ + (1 − decay)·θ_of; buffers are copied."""
        for name, curve in self.decays.items():
            mine, theirs = self.models[name], self.models[str(self.nodes[name].of)]
            torch._foreach_lerp_(list(mine.parameters()), list(theirs.parameters()), 1.0 - curve(t))
            for buffer, other in zip(mine.buffers(), theirs.buffers(), strict=True):
                buffer.copy_(other)

    def parameters_of(self, node: str) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """A node's own trainable parameters, and those of heads and losses that learn with it."""
        beside = dict.fromkeys(p for edge in self.bound for p in edge.parameters_of(node))
        learns = self.rest.learns
        return [p for p in self.models[node].parameters() if learns(p)], [p for p in beside if learns(p)]

    def _apply(self: Self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        numbers = [(self, "progress"), (self, "loss_scale")]
        apply_exactly(numbers, lambda: super(Graph, self)._apply(fn, recurse))  # type: ignore[no-untyped-call]
        for module in self.frozen.values():
            module._apply(fn)
        return self
