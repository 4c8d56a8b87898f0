"""The Lightning module: runs a graph under a Trainer. Whatever a method is, it is said in nodes and edges, not here."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdkit import draws, generators
from kdkit.fault import own_line
from kdkit.graph.batch import Adapter, Batch
from kdkit.graph.closing import closing
from kdkit.graph.edge import Edge
from kdkit.graph.labels import check_labels, classes
from kdkit.graph.node import Node
from kdkit.graph.optimizers import check_optimizer
from kdkit.graph.schedule import Curve, Schedule, Spec
from kdkit.graph.stage import Stage
from kdkit.models.still import still
from kdkit.registry import KdkitError
from kdkit.train.adapt import adapt
from kdkit.train.balance import balanced_graph
from kdkit.train.borrow import Borrow
from kdkit.train.caching import Memory
from kdkit.train.captured import CapturedStep, backward, recordable, speed_up
from kdkit.train.checkpoint import add_to, take_from
from kdkit.train.eager import check_compile
from kdkit.train.evaluation import Evaluation
from kdkit.train.example import check_last, check_validation, example_batch, facts_of, tell_idle, tell_odd, tell_short
from kdkit.train.finite import FiniteWatch
from kdkit.train.late import seen, unread
from kdkit.train.layout import lay_out
from kdkit.train.length import run_epochs, steps_per_epoch
from kdkit.train.meters import TermSums, look_at_weights
from kdkit.train.norms import scale_of
from kdkit.train.onednn import no_wide_strides, overruns
from kdkit.train.optim import NodeOptimizers, build_optimizer, grouped, rate
from kdkit.train.pcgrad import backward_projected, check_pcgrad, tasks_of
from kdkit.train.place import Apart, Everywhere
from kdkit.train.scores import Scores
from kdkit.train.share import begin_step, measure, weights

SGD: dict[str, Any] = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
STEPS: dict[str, Any] = {"multistep": {"start": 0.05, "at": [0.625, 0.75, 0.875]}}


class Distiller(Evaluation):
    """Any teachers, any students and any losses as one Lightning module.

    Works with a plain `pl.Trainer` and any loader or data module whose batches are `(x, y)` or `(x, y, index)`.
    Optimisation is manual, always: gradients are averaged over ranks here, and the Trainer's `gradient_clip_val` and
    `accumulate_grad_batches` are taken over. Plain `strategy="ddp"` works for every graph. An epoch's last batch may be
    smaller than what a loss compares (one sample has no relations): that loss then sits it out, and the others go on.

    Args:
        nodes: models by name: `{"teacher": kdkit.frozen(t), "student": s}`; each is afterwards `distiller.<name>`, the
            very module that was passed in.
        edges: losses: `[kdkit.Edge("ce", weight=0.1), "kd"]`.
        optimizer: `{"name": "sgd", …}` for nodes that bring none of their own.
        lr: a number or a schedule, likewise. The defaults are those of the CIFAR-100 protocol of Tian et al. (2020).
        update: `simultaneous`: every node learns from what all predicted before the step; `sequential`: nodes are
            updated one after the other, each learning from the already updated ones (Zhang et al. 2018, Algorithm 1).
        channels_last: memory format of 4-d inputs and weights; faster on most machines, the same numbers. Left out on a
            CPU for models that its convolutions could not train so (`onednn.overruns`).
        compile: compile forward passes and losses, and on a GPU record the whole step as one CUDA graph. `auto`: the
            latter alone, and nothing on a CPU, where it gains nothing.
        seed: heads, banks and draws follow from it.
        stages: spans in which only some models, or parts of them, learn.
        pcgrad: take conflicts out of the gradients on weights that several taught places share (`kdkit.train.pcgrad`).
        balance: `equal_share`, `gradnorm` or `uncertainty`: the edges' weights move by themselves.
        on_nonfinite: what a term or a gradient that is not finite does: `stop`, `skip`, `rollback` (`FiniteWatch`).
        place: the rank that trains each model, under `strategy="ddp"`; left out: every rank trains all of them.

    Raises:
        KdkitError: anything that does not fit, before training starts.
    """

    def __init__(
        self,
        nodes: Mapping[str, Node | nn.Module],
        edges: Sequence[Edge | str | nn.Module],
        *,
        optimizer: Mapping[str, Any] | None = None,
        lr: Spec | None = None,
        update: Literal["simultaneous", "sequential"] = "simultaneous",
        channels_last: bool = True,
        compile: bool | Literal["auto"] = False,
        seed: int = 0,
        stages: Sequence[Stage] = (),
        place: Mapping[str, int] | None = None,
        pcgrad: bool = False,
        balance: str | None = None,
        on_nonfinite: str = "stop",
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        if update not in ("simultaneous", "sequential"):
            raise KdkitError(f"update must be 'simultaneous' or 'sequential', got {update!r}")
        self.graph = balanced_graph(nodes, edges, seed, stages, balance, update)
        check_compile(compile, update, self.graph)
        self.pcgrad = check_pcgrad(pcgrad, compile, self.graph)
        self.place = Everywhere() if place is None else Apart(place, self.graph, update, compile)
        if not self.graph.trained:
            raise KdkitError("no model is trained; leave out kdkit.frozen for the one that should learn")
        for spec in (node.optimizer for node in self.graph.nodes.values() if node.optimizer is not None):
            check_optimizer(spec)
        self.optimizer_spec = check_optimizer(SGD if optimizer is None else optimizer)
        self.lr = Schedule.parse(STEPS if lr is None else lr)
        self.update, self.channels_last, self.seed, self.compiles = update, channels_last, seed, compile
        self.sums, self.watch, self.borrow = TermSums(), FiniteWatch(on_nonfinite), Borrow()
        self.scores: Scores | None = None
        self.rates: dict[str, Curve] = {}
        self.memories: dict[str, Memory] = {}
        self.compiled: Any = None
        self.captured: CapturedStep | None = None
        for name in nodes:
            if hasattr(type(self), name) or name in self.__dict__ or name in self._modules:
                raise KdkitError(f"model {name!r}: Lightning or the Distiller uses this name; choose another")

    def __getattr__(self, name: str) -> Any:
        """`distiller.student` is the module that was passed in."""
        graph = self.__dict__.get("_modules", {}).get("graph")
        return graph.model(name) if graph is not None and name in graph.nodes else super().__getattr__(name)

    # -- before training -------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[pl.Callback]:
        """Take clipping and accumulation over from the Trainer for this run."""
        self.borrow.take(self.trainer)
        return [] if self.borrow in self.trainer.callbacks else [self.borrow]  # type: ignore[attr-defined]

    def setup(self, stage: str) -> None:
        """Bind the graph to the data: one dry run sizes heads and finds what would fail."""
        graph, facts = self.graph, facts_of(self.trainer)
        device, learning = self.trainer.strategy.root_device, {name: graph.model(name) for name in graph.trained}
        self.channels_last &= not (device.type == "cpu" and overruns(learning.values()))
        if stage == "fit":
            check_validation(self.trainer, graph.unbound)
            check_labels(facts.sample_labels, facts.num_classes)
            batch = Batch.of(self.on_after_batch_transfer(example_batch(self.trainer, graph.min_batch), 0))
            with no_wide_strides(learning, str(self.trainer.precision), device):
                graph.bind(batch, facts, run_epochs(self))
            tell_idle(graph)
            check_last(self.trainer, graph, batch)
            self.rates = {name: rate(name, graph.nodes[name].lr, self.lr, graph.epochs) for name in graph.trained}
            self.place.begin(self)
            module, precision = getattr(self.trainer, "datamodule", None), str(self.trainer.precision)
            self.memories = {name: Memory(graph, name, module, precision, self._laid_out) for name in graph.whole}
            graph.caches = {name: memory.cache for name, memory in self.memories.items()}
        elif not graph.adapters:
            graph.facts = facts
            graph.adapters = nn.ModuleDict({name: Adapter(node, facts) for name, node in graph.nodes.items()})
        if self.channels_last:
            lay_out(map(graph.model, graph.nodes))
        self.scores = Scores(list(graph.nodes), list(graph.frozen), facts.num_classes)

    def configure_optimizers(self) -> NodeOptimizers:
        """One optimiser for each trained node, with the heads and losses that learn with it."""
        made = {}
        for name in self.graph.trained:
            node, (own, beside) = self.graph.nodes[name], self.graph.parameters_of(name)
            spec, lr = node.optimizer or self.optimizer_spec, self.rates[name](0.0)
            parts, device = grouped(self.graph.model(name), [*own, *beside]), self.device if recordable(self) else None
            made[name] = build_optimizer(spec, parts, lr, recorded=device)
        return NodeOptimizers(made)

    # -- training --------------------------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Caches are filled, steps compiled and recorded, where that is asked for."""
        tell_odd(self.trainer, self.graph, steps_per_epoch(self.trainer) / self.borrow.accumulate)
        self.watch.begin(self)
        for memory in self.memories.values():
            memory.prepare(self.device, self.trainer.precision_plugin.forward_context)
        self.compiled, self.captured = speed_up(self)

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step: forward once, then for each turn: losses, backward, update."""
        graph, last, accumulate = self.graph, int(self.trainer.num_training_batches), self.borrow.accumulate
        t, step = self.current_epoch + batch_idx / last, int(self.current_epoch * last + batch_idx)
        graph.set_time(t, begun=self.current_epoch + batch_idx // accumulate * accumulate / last)
        if begin_step(graph):
            self.compiled, self.captured = speed_up(self)
        if graph.stochastic:  # dropout and the like are a function of the step, so that resume is exact
            generators.seed(draws.key(self.seed, "step", step, self.global_rank), self.device)
        data = batch if self.captured is not None and unread(batch) else seen(self, batch)
        with self.watch.step(self, data, step, batch_idx):
            if self.captured is not None:
                self._update(graph.now.updates, t, whole=partial(self._captured_step, self.captured, data))
                graph.move_ema(t)
            else:
                self._plain_step(data, step, t, due=(batch_idx + 1) % accumulate == 0 or batch_idx + 1 == last)

    def _plain_step(self, data: Batch, step: int, t: float, *, due: bool) -> None:
        graph, accumulate = self.graph, self.borrow.accumulate
        graph.loss_scale.fill_(1 / accumulate).mul_(scale_of(self))
        with closing(graph, data, lambda loss: self._backward(loss / accumulate)):
            outputs = self.place.outputs(graph, data, cached=self.compiled is not None)
        whole: dict[str, Tensor] = {}
        nodes = self.place.turn(graph.now.updates)
        turns = [nodes] if self.update == "simultaneous" else [(name,) for name in nodes]
        for turn in turns:
            with self.place.alone(), tasks_of(self) as tasks:
                loss, terms = self.lesson(turn, outputs, data, step)
            self.watch.look(terms, step)
            if loss is not None:
                project = partial(backward_projected, self, tasks, step)
                self._backward(loss / accumulate, project if self.pcgrad else backward)
                whole = {**whole, **{name: whole.get(name, 0) + value.detach() for name, value in terms.items()}}
            if due:
                self._update(turn, t)
            if turn is not turns[-1]:
                self._refresh(turn[0], data, outputs)
        self.sums.add(self.place.told(graph, self.watch.judged(whole)))
        if due and not self.watch.spoilt:
            graph.move_ema(t)

    def lesson(self, turn: tuple[str, ...], outputs: Any, data: Batch, step: int) -> tuple[Tensor | None, Any]:
        """The loss of a turn and its terms; none in a phase, or for a last batch, in which nothing can be taught."""
        graph = self.graph
        try:
            if self.compiled is not None:
                with graph.opened():
                    return self.compiled(data, outputs)  # type: ignore[no-any-return]
            measure(graph, terms := graph.terms(turn, outputs, data))
        except IndexError:
            check_labels(data.labels, classes(outputs, graph.facts))
            raise
        except ValueError as error:  # a last batch that is too small for a head, an index out of range
            raise KdkitError(f"step {step}: {error}\n  {own_line(error)}".rstrip()) from error
        return graph.weighted(terms) if terms else None, terms

    def _captured_step(self, captured: CapturedStep, data: Any) -> None:
        self.watch.terms = captured(self.graph.now.start, data)
        self.sums.count(self.watch.terms)

    def _backward(self, loss: Tensor, run: Callable[[Tensor], None] = backward) -> None:
        """Scaled where fp16 asks for it, without DDP's reducer: ranks are averaged by `average_gradients`."""
        run(self.trainer.precision_plugin.pre_backward(loss, self))
        self.trainer.precision_plugin.post_backward(loss, self)

    def _update(self, turn: tuple[str, ...], t: float, whole: Callable[[], None] | None = None) -> None:
        """Move the nodes of a turn, or do the `whole` step, which Lightning counts as one."""
        optimizer: Any = self.optimizers()
        raw: NodeOptimizers = optimizer.optimizer
        raw.active, raw.instead = turn, whole
        for name in turn:
            raw.set_lr(name, self.rates[name](t))
        moved = [p for group in raw.param_groups for p in group["params"] if p.grad is not None]
        try:
            if moved or whole or self.place.apart:
                self.place.average(moved)
                if whole is None:
                    self.watch.look_at_gradients(raw)
                if not self.watch.spoilt:
                    optimizer.step()
                optimizer.zero_grad()
        finally:
            raw.active, raw.instead = tuple(raw.of), None

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip as the Trainer was told to, each node by itself; gradients are unscaled by now."""
        raw: Any = getattr(optimizer, "optimizer", optimizer)
        if raw.instead is None:
            self.clip(raw)

    def clip(self, raw: NodeOptimizers) -> None:
        """Clip the gradients of the active nodes."""
        if self.borrow.clip_value:
            raw.clip(self.borrow.clip_value, by_value=self.borrow.by_value)

    def _refresh(self, name: str, data: Batch, outputs: dict[Any, Tensor]) -> None:
        """An updated peer predicts again for those after it; its running statistics saw this batch already."""
        with torch.no_grad(), still(self.graph.model(name)):
            self.graph.read(name, data, outputs, grad=False)

    def on_train_epoch_end(self) -> None:
        """Means of terms, learning rates, weights that are shares; what is not finite is never checkpointed."""
        tell_short(self.trainer)
        self.watch.drain()
        self.place.settle(self.graph)
        look_at_weights({name: self.graph.model(name) for name in self.graph.trained}, self.current_epoch)
        means = {f"loss/{name}": value for name, value in self.sums.means().items()}
        rates = {f"lr/{name}": curve(self.current_epoch) for name, curve in self.rates.items()}
        self.log_dict({**means, **rates, **self.watch.end(), **weights(self.graph), **adapt(self)}, sync_dist=True)
        self.sums.clear()

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The running means go with it, and what is remembered of numbers that were not finite."""
        add_to(checkpoint, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the middle of an epoch; outside fit, what only training needs is left in the file."""
        take_from(checkpoint, self)
