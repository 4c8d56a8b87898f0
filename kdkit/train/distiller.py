"""The Lightning module: runs a graph under a Trainer. Whatever a method is, it is said in nodes and edges, not here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from kdkit import draws
from kdkit.graph.batch import Adapter, Batch, Facts
from kdkit.graph.edge import Edge
from kdkit.graph.graph import Graph
from kdkit.graph.node import Node
from kdkit.graph.optimizers import check_optimizer
from kdkit.graph.schedule import Curve, Schedule, Spec
from kdkit.registry import KdkitError
from kdkit.train.example import example_batch
from kdkit.train.meters import FiniteWatch, TermSums
from kdkit.train.optim import NodeOptimizers, build_optimizer
from kdkit.train.scores import Scores
from kdkit.train.sync import average_gradients, share_buffers

SGD: dict[str, Any] = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}
STEPS: dict[str, Any] = {"multistep": {"start": 0.05, "at": [0.625, 0.75, 0.875]}}


class Distiller(pl.LightningModule):
    """Any teachers, any students and any losses as one Lightning module.

    Works with a plain `pl.Trainer` and any loader or data module whose batches are `(x, y)` or `(x, y, index)`.
    Optimisation is manual, always: gradients are averaged over ranks here, and the Trainer's `gradient_clip_val` and
    `accumulate_grad_batches` are taken over. Plain `strategy="ddp"` works for every graph.

    Args:
        nodes: models by name: `{"teacher": kdkit.frozen(t), "student": s}`; each is afterwards `distiller.<name>`, the
            very module that was passed in.
        edges: losses: `[kdkit.Edge("ce", weight=0.1), "kd"]`.
        optimizer: `{"name": "sgd", …}` for nodes that bring none of their own.
        lr: a number or a schedule, likewise. The defaults are those of the CIFAR-100 protocol of Tian et al. (2020).
        update: `simultaneous`: every node learns from what all predicted before the step; `sequential`: nodes are
            updated one after the other, each learning from the already updated ones (Zhang et al. 2018, Algorithm 1).
        channels_last: memory format of 4-d inputs and weights; faster on most machines, the same numbers.
        seed: heads, banks and draws follow from it.

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
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        for name in nodes:
            if hasattr(pl.LightningModule, name):
                raise KdkitError(f"model {name!r}: Lightning uses this name; choose another")
        if update not in ("simultaneous", "sequential"):
            raise KdkitError(f"update must be 'simultaneous' or 'sequential', got {update!r}")
        self.graph = Graph(nodes, edges, seed)
        if not self.graph.trained:
            raise KdkitError("no model is trained; leave out kdkit.frozen for the one that should learn")
        self.optimizer_spec = check_optimizer(SGD if optimizer is None else optimizer)
        self.lr = Schedule.parse(STEPS if lr is None else lr)
        self.update, self.channels_last, self.seed = update, channels_last, seed
        self.sums, self.watch = TermSums(), FiniteWatch()
        self.scores: Scores | None = None
        self.rates: dict[str, Curve] = {}
        self.clip_value: float | None = None
        self.clip_algorithm: str | None = None
        self.accumulate = 1

    def __getattr__(self, name: str) -> Any:
        """`distiller.student` is the module that was passed in."""
        graph = self.__dict__.get("_modules", {}).get("graph")
        if graph is not None and name in graph.nodes:
            return graph.model(name)
        return super().__getattr__(name)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the first trained node."""
        name = self.graph.trained[0]
        logits: Tensor = self.graph.model(name)(self.graph.adapters[name](x) if name in self.graph.adapters else x)
        return logits

    # -- before training -------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[pl.Callback]:
        """Take clipping and accumulation over from the Trainer, which refuses them in manual optimisation."""
        trainer = self.trainer
        self.clip_value, self.clip_algorithm = trainer.gradient_clip_val, trainer.gradient_clip_algorithm
        self.accumulate = trainer.accumulate_grad_batches
        trainer.gradient_clip_val, trainer.accumulate_grad_batches = None, 1
        return []

    def setup(self, stage: str) -> None:
        """Bind the graph to the data: one dry run sizes heads and finds what would fail."""
        facts = Facts.of(getattr(self.trainer, "datamodule", None))
        graph = self.graph
        if stage == "fit":
            batch = self._layout(example_batch(self.trainer))
            graph.bind(Batch.of(batch), facts, self._epochs())
            self.rates = {
                name: Schedule.parse(self.lr if (own := graph.nodes[name].lr) is None else own).bind(graph.epochs)
                for name in graph.trained
            }
            self._ddp_params_and_buffers_to_ignore = _unshared_buffers(self)
        elif not graph.adapters:
            graph.facts = facts
            graph.adapters = nn.ModuleDict({name: Adapter(node, facts) for name, node in graph.nodes.items()})
        if self.channels_last:
            for name in graph.nodes:
                graph.model(name).to(memory_format=torch.channels_last)
        self.scores = Scores(list(graph.nodes), list(graph.frozen))

    def _epochs(self) -> float:
        trainer = self.trainer
        if trainer.max_epochs is not None and trainer.max_epochs > 0:
            return float(trainer.max_epochs)
        if trainer.max_steps > 0:
            trainer.fit_loop.setup_data()  # counts the batches
            return trainer.max_steps / trainer.num_training_batches
        raise KdkitError("schedules need the length of the run; give the Trainer max_epochs or max_steps")

    def configure_optimizers(self) -> NodeOptimizers:
        """One optimiser for each trained node, with the heads and losses that learn with it."""
        made = {}
        for name in self.graph.trained:
            node = self.graph.nodes[name]
            own, beside = self.graph.parameters_of(name)
            made[name] = build_optimizer(node.optimizer or self.optimizer_spec, [*own, *beside], self.rates[name](0.0))
        return NodeOptimizers(made)

    # -- training --------------------------------------------------------------------------------------------------

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Images in the models' memory format."""
        return self._layout(batch)

    def _layout(self, batch: Any) -> Any:
        if (
            self.channels_last
            and isinstance(batch, (tuple, list))
            and isinstance(batch[0], Tensor)
            and batch[0].ndim == 4
        ):
            return (batch[0].contiguous(memory_format=torch.channels_last), *batch[1:])
        return batch

    def training_step(self, batch: Any, batch_idx: int) -> None:
        """One step: forward once, then for each turn: losses, backward, update."""
        graph, last = self.graph, self.trainer.num_training_batches
        t, step = self.current_epoch + batch_idx / last, int(self.current_epoch * last + batch_idx)
        graph.set_time(t)
        if graph.stochastic:  # dropout and the like are a function of the step, so that resume is exact
            torch.manual_seed(draws.key(self.seed, "step", step, self.global_rank) & 0x7FFFFFFF)
        data = Batch.of(batch)
        outputs = graph.outputs(data)
        turns = [graph.now.updates] if self.update == "simultaneous" else [(name,) for name in graph.now.updates]
        due = (batch_idx + 1) % self.accumulate == 0 or batch_idx + 1 == last
        for turn in turns:
            terms = graph.terms(turn, outputs, data)
            self.watch.look(terms, step)
            self._backward(graph.weighted(terms) / self.accumulate)
            self.sums.add(terms)
            if due:
                self._update(turn, t)
            if turn is not turns[-1]:
                self._refresh(turn[0], data, outputs)
        if due:
            graph.move_ema(t)

    def _backward(self, loss: Tensor) -> None:
        """Scaled where fp16 asks for it, without DDP's reducer: ranks are averaged by `average_gradients`."""
        self.trainer.precision_plugin.pre_backward(loss, self).backward()

    def _update(self, turn: tuple[str, ...], t: float) -> None:
        optimizer: Any = self.optimizers()
        raw: NodeOptimizers = optimizer.optimizer
        raw.active = turn
        for name in turn:
            raw.set_lr(name, self.rates[name](t))
        average_gradients(p for group in raw.param_groups for p in group["params"])
        optimizer.step()
        raw.active = tuple(raw.of)
        optimizer.zero_grad()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Clip as the Trainer was told to; gradients are unscaled by now."""
        if self.clip_value:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            if str(self.clip_algorithm or "norm").endswith("value"):
                nn.utils.clip_grad_value_(parameters, self.clip_value)
            else:
                nn.utils.clip_grad_norm_(parameters, self.clip_value)

    def _refresh(self, name: str, data: Batch, outputs: dict[Any, Tensor]) -> None:
        """An updated peer predicts again for those after it; its running statistics saw this batch already."""
        with torch.no_grad(), _still(self.graph.model(name)):
            self.graph.read(name, data, outputs, grad=False)

    def on_train_epoch_end(self) -> None:
        """The epoch's mean of every term, and the learning rates."""
        means = {f"loss/{name}": value for name, value in self.sums.means().items()}
        rates = {f"lr/{name}": curve(self.current_epoch) for name, curve in self.rates.items()}
        self.log_dict({**means, **rates}, sync_dist=True)
        self.sums.clear()

    # -- evaluation ------------------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Every rank evaluates the same models."""
        share_buffers(self.graph.models)

    def validation_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Top-1, top-5 and NLL of every node; frozen ones are looked at once."""
        self._score(batch)

    def test_step(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """As validation."""
        self._score(batch)

    def _score(self, batch: Any) -> None:
        data = Batch.of(batch)
        if self.scores is None or data.labels is None:
            return
        for name in self.scores.wanted:
            self.scores.update(name, self.graph.model(name)(self.graph.adapters[name](data.x)), data.labels)

    def on_validation_epoch_end(self) -> None:
        """Log under `val/<node>/<metric>`."""
        self._log_scores("val")

    def on_test_epoch_end(self) -> None:
        """Log under `test/<node>/<metric>`."""
        self._log_scores("test")

    def _log_scores(self, stage: str) -> None:
        if self.scores is not None:
            self.log_dict(
                {f"{stage}/{name}": v for name, v in self.scores.compute(keep=self.trainer.sanity_checking).items()}
            )

    # -- checkpoints -----------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """The running means go with it, and who still has to be scored."""
        wanted = self.scores.wanted if self.scores else None
        checkpoint["kdkit"] = {"sums": self.sums.state_dict(), "wanted": wanted}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on in the middle of an epoch."""
        self.sums.load_state_dict(checkpoint["kdkit"]["sums"], self.device)
        if self.scores and checkpoint["kdkit"]["wanted"] is not None:
            self.scores.wanted = checkpoint["kdkit"]["wanted"]


def _unshared_buffers(module: nn.Module) -> list[str]:
    """Full names of buffers that every rank keeps for itself (banks: DDP would broadcast them at each forward)."""
    return [
        f"{prefix}.{name}"
        for prefix, child in module.named_modules()
        for name in set(getattr(child, "ddp_ignore", ())) & dict(child.named_buffers()).keys()
    ]


class _still:  # noqa: N801
    """BatchNorm inside takes the batch's statistics and leaves its running ones alone."""

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    def __enter__(self) -> None:
        self.momenta = [norm.momentum for norm in self.norms]
        for norm in self.norms:
            norm.momentum = 0.0

    def __exit__(self, *_: object) -> None:
        for norm, momentum in zip(self.norms, self.momenta, strict=True):
            norm.momentum = momentum
