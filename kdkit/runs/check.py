"""What a recipe would do, before an hour is spent: shapes, sizes and cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from kdkit.graph import Schedule
from kdkit.graph.alone import apart
from kdkit.graph.batch import Batch
from kdkit.graph.bound import BoundEdge
from kdkit.graph.graph import Graph
from kdkit.graph.links import End
from kdkit.graph.optimizers import check_optimizer
from kdkit.graph.phase import idle, missed
from kdkit.graph.slow import slow
from kdkit.graph.stage import Stage
from kdkit.models.published import fetched
from kdkit.recipe import Experiment, Recipe, source, tuning
from kdkit.runs.check_cohort import cohort_rows
from kdkit.runs.check_report import CheckReport, EdgeRow, LearnRow, NodeRow
from kdkit.runs.dry_run import dry_run
from kdkit.runs.teacher import saw_held_out, teacher_folder
from kdkit.runs.trained import device
from kdkit.train.balance import RATE
from kdkit.train.distiller import Distiller
from kdkit.train.onednn import emulated
from kdkit.train.scores import OTHER_CLASSES, UNSCORED
from kdkit.untouched import untouched

CUDA, MPS = torch.cuda.is_available, torch.backends.mps.is_available
GPUS: dict[str, tuple[Callable[[], bool], ...]] = {"gpu": (CUDA, MPS), "cuda": (CUDA,), "mps": (MPS,)}


def check(recipe: Recipe) -> CheckReport:
    """What a recipe would do, after a dry run of it.

    Raises:
        KdkitError: whatever does not fit.
    """
    tried = dry_run(recipe)
    experiment, distiller, batch = tried.experiment, tried.distiller, tried.batch
    data, graph, facts = experiment.datamodule, distiller.graph, experiment.datamodule.facts
    with untouched(graph):
        nodes = tuple(_node_row(recipe, graph, name, batch) for name in graph.nodes)
        images = min(data.batch_size, facts.num_samples)
        kept = activation_bytes(graph, batch) * images / len(batch.index)  # type: ignore[arg-type]
    grown = facts.num_samples / (tried.facts.num_samples or 1)
    moved = f" ({experiment.balance} moves it)" if experiment.balance in RATE else ""
    steps = _steps_per_epoch(facts.num_samples, data.batch_size, data.drop_last, recipe.trainer.limit_train_batches)
    return CheckReport(
        name=recipe.name,
        data=recipe.data.name,
        facts=facts,
        nodes=nodes,
        learning=tuple(_learn_row(distiller, name, steps) for name in graph.trained),
        edges=tuple(row for edge in graph.bound for row in _edge_rows(graph, edge, grown, moved)),
        batch_size=images,
        steps_per_epoch=steps,
        epochs=recipe.trainer.max_epochs,
        notes=(*_notes(recipe, experiment, graph, steps), *tried.stumbles),
        stages=tuple(_stage(stage, graph.epochs) for stage in graph.stages),
        cohort=tuple(
            cohort_rows(experiment.cohort, experiment.health, recipe.trainer.max_epochs, held_out=data.selects)
        ),
        activation_bytes=round(kept / (2 if recipe.trainer.precision in ("bf16-mixed", "16-mixed") else 1)),
    )


def count_macs(model: nn.Module, x: Tensor) -> int:
    """Multiply-accumulates of one forward pass over `x`: convolutions, matrix products and attention."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # it is one operation, of which the counter knows nothing
    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x)
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return int(counter.get_total_flops()) // 2


def activation_bytes(graph: Graph, batch: Batch) -> int:
    """Bytes that autograd keeps of one step, in the phase that keeps most; parameters and buffers are not counted."""
    own = {t.untyped_storage().data_ptr() for t in [*graph.parameters(), *graph.buffers()]}
    most = 0
    for phase in graph.phases:
        kept: dict[int, Tensor] = {}  # holding the tensors keeps their addresses from being used again

        def pack(tensor: Tensor, kept: dict[int, Tensor] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        graph.set_time(phase.start)
        with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            if terms := graph.terms(graph.now.updates, graph.outputs(batch), batch):  # a phase may teach nothing
                graph.weighted(terms)
        most = max(most, sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in own))
    return most


def _learn_row(distiller: Distiller, name: str, steps: int) -> LearnRow:
    node, curve, epochs = distiller.graph.nodes[name], distiller.rates[name], distiller.graph.epochs
    options = check_optimizer(node.optimizer or distiller.optimizer_spec)
    schedule = Schedule.parse(distiller.lr if node.lr is None else node.lr)
    word = "" if schedule.constant else schedule.word
    last = epochs - 1 / max(steps, 1)
    times = {0.0, last, *map(float, range(math.ceil(epochs))), *(epochs * i / 1000 for i in range(1000))}
    top = max(curve(time) for time in times if time <= last)  # schedules turn at whole epochs or at shares of the run
    return LearnRow(name, options.pop("name"), options, curve(0.0), top, curve(last), word)


def _notes(recipe: Recipe, experiment: Experiment, graph: Graph, steps: int) -> Iterator[str]:
    """What is not there, or larger than what is, and what has no part in it."""
    data, accelerator = experiment.datamodule, recipe.trainer.accelerator
    if missing := data.missing:
        yield f"data: {missing}"
    if data.batch_size > (there := data.facts.num_samples):
        yield f"data: a batch of {data.batch_size} is more than the {there} images; an epoch is one batch of {there}"
    if accelerator in GPUS and not any(has() for has in GPUS[accelerator]):
        yield f"trainer: accelerator {accelerator} is not on this machine, where `kdkit fit` refuses it"
    yield from (f"stages: {told}" for told in idle(graph))
    updates = steps / recipe.trainer.accumulate_grad_batches
    yield from (*missed(graph, updates), *slow(graph, updates * graph.epochs))
    yield from emulated(recipe.trainer.precision, device(recipe))
    yield from apart(graph, 1 if recipe.trainer.place else _processes(recipe))
    for name, spec in recipe.models.items():
        if spec.source == "pretrained" and not fetched(str(spec.arch)):
            yield f"{name}: the pretrained weights of {spec.arch} will be downloaded"
        if saw_held_out(recipe, name):
            yield f"{name}: was trained on the images that data.val_split holds out, too; the test's say how good it is"
        if not any(name in phase.readers for phase in graph.phases):
            yield f"{name}: no loss reads it; it is only scored"
        shapes = (phase.readers[name].shapes for phase in graph.phases if name in phase.readers)
        said = next((shape["logits"][-1] for shape in shapes if "logits" in shape), None)
        if said and (classes := data.facts.num_classes) and said != classes:
            yield UNSCORED % (name, OTHER_CLASSES % (said, classes))


def _processes(recipe: Recipe) -> int:
    devices = recipe.trainer.devices
    return (devices if isinstance(devices, int) and devices > 0 else 1) * recipe.trainer.num_nodes


def _steps_per_epoch(samples: int, batch_size: int, drop_last: bool, limit: int | float | None) -> int:
    batches = samples // batch_size if drop_last else math.ceil(samples / batch_size)
    if limit is None:
        return batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def _node_row(recipe: Recipe, graph: Graph, name: str, batch: Batch) -> NodeRow:
    spec, node, model = recipe.models[name], graph.nodes[name], graph.model(name).eval()
    macs = count_macs(model, graph.adapters[name](batch.x)[:1])
    parameters = sum(p.numel() for p in model.parameters())
    return NodeRow(name, node.kind, spec.arch or f"copy of {spec.ema}", parameters, macs, _weights(recipe, name))


def _weights(recipe: Recipe, name: str) -> str:
    spec = recipe.models[name]
    if spec.ema is not None:
        return ""
    maker = tuning(recipe, name) if spec.tune else source(recipe, name) if spec.source == "recipe" else None
    if maker is None:
        return spec.weights or "initial"
    there = "there" if teacher_folder(maker).complete else f"trained first, {maker.trainer.max_epochs} epochs"
    return f"{maker.name}: {there}"


def _edge_rows(graph: Graph, edge: BoundEdge, grown: float, moved: str) -> Iterator[EdgeRow]:
    shapes = {
        End(name, tap): shape
        for phase in graph.phases
        for name, taps in phase.readers.items()
        for tap, shape in taps.shapes.items()
    }
    said = edge.edge
    for i, call in enumerate(edge.calls):
        for j, link in enumerate(call.links):
            parts = [] if j else [edge.losses[i]]
            heads = [edge.heads[i * len(call.links) + j]] if len(edge.heads) else []
            yield EdgeRow(
                name=edge.name,
                weight=f"{said.weight}{moved}",
                source=" + ".join(map(str, link.sources)),
                source_shape=shapes[link.sources[0]] if link.sources else None,
                target=str(link.target),
                target_shape=shapes[link.target],
                head=_head(said.head),
                parameters=sum(
                    p.numel() for part in [*parts, *heads] for p in part.parameters() if graph.rest.learns(p)
                ),
                bank=sum(_bytes(b, graph.facts.num_samples, grown) for part in parts for b in part.buffers()),
                when=_when(edge.start, edge.end),
            )


def _bytes(buffer: Tensor, samples: int | None, grown: float) -> int:
    """Of a buffer, at the data's real size where it has a row for each sample."""
    return round(buffer.nbytes * (grown if samples in buffer.shape else 1))


def _head(spec: str | Mapping[str, Any] | None) -> str:
    return spec if isinstance(spec, str) else ", ".join(spec or ())


def _stage(stage: Stage, epochs: float) -> str:
    when = _when(*stage.when.bind(epochs)) or "whole run"
    return f"{stage.name}, {when}: {'all that its losses teach' if stage.train is None else ', '.join(stage.train)}"


def _when(start: float, end: float) -> str:
    return "" if (start, end) == (0.0, math.inf) else f"{start:g}–{'' if math.isinf(end) else f'{end:g}'}"
