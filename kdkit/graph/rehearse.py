"""One step without update before training: what would fail, or teach nothing, is found here."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from kdkit import generators, ranks
from kdkit.fault import own_line, what
from kdkit.fault import where as line_of
from kdkit.graph import checks
from kdkit.graph.batch import Batch, inputs
from kdkit.graph.bound import BoundEdge
from kdkit.graph.calls import Call
from kdkit.graph.closing import check_cuts
from kdkit.graph.labels import check_labels, classes
from kdkit.graph.links import End
from kdkit.graph.twins import check_twins
from kdkit.registry import KdkitError
from kdkit.untouched import untouched

if TYPE_CHECKING:
    from kdkit.graph.graph import Graph

log = logging.getLogger(__name__)

LIBRARIES = ("kdkit", "torch", "timm", "torchvision", "torchmetrics", "transformers")
FAILURES = (RuntimeError, ValueError, TypeError, IndexError)


def rehearse(graph: Graph, example: Batch) -> tuple[bool, str]:
    """Every loss once, in every phase; returns whether random numbers were drawn, and a buffer that was set anew.

    Raises:
        KdkitError: a model or a loss fails, or a loss sends its student no gradient (the text names edge and taps), or
            peers are twins.
    """
    check_twins(graph)
    with untouched(graph), ranks.silence():
        before, held, loose = generators.states(), _buffers(graph), _loose(graph)
        graph.train()
        _step(graph, example)
        _tell_loose(loose, graph)
        drew, now = generators.states() != before, _buffers(graph)
        if _anew(held, now):  # or made at the first step, and kept from then on
            _step(graph, example)
            held, now = now, _buffers(graph)
    graph.set_time(0.0)
    return drew, _anew(held, now)


def _step(graph: Graph, example: Batch) -> None:
    for phase in graph.phases:
        graph.set_time(phase.start)
        check_cuts(graph, phase)
        with torch.enable_grad():
            outputs: dict[End, Tensor] = {}
            for name in phase.readers:
                _read(graph, name, example, outputs)
            for edge in phase.edges:
                taught = phase.taught(edge, phase.updates)
                for i, call in enumerate(edge.calls):
                    if call.target in taught:
                        _call(graph, edge, i, outputs, example)


def _loose(graph: Graph) -> dict[tuple[str, str], tuple[Any, int]]:
    """Numbers and tensors that losses of one's own keep outside of their parameters and buffers."""
    found: dict[tuple[str, str], tuple[Any, int]] = {}
    for path, part in graph.edges.named_modules():
        if type(part).__module__.partition(".")[0] not in LIBRARIES:
            for name, value in vars(part).items():
                if isinstance(value, Tensor):
                    found[path, name] = value, _version(value)
                elif isinstance(value, (int, float)) and not isinstance(value, bool):
                    found[path, name] = value, 0
    return found


def _tell_loose(before: Mapping[tuple[str, str], tuple[Any, int]], graph: Graph) -> None:
    """Warn of what a step changes where no checkpoint looks."""
    now = _loose(graph)
    for (path, name), (value, version) in before.items():
        left, its = now.get((path, name), (value, version))
        if its != version or (left is not value and (isinstance(value, Tensor) or left != value)):
            log.warning(
                "warning: the loss %s: a step changes its %s, which no checkpoint holds: if later steps read it, a run "
                "that is resumed is not what it would have been; a buffer that is changed in place goes with the run",
                *(path.partition(".")[0], name),
            )


def _version(tensor: Tensor) -> int:
    """What counts its changes in place."""
    return 0 if tensor.is_inference() else tensor._version


def _anew(before: Mapping[str, Tensor | None], now: Mapping[str, Tensor | None]) -> str:
    """A buffer that is another tensor than it was; empty where there is none."""
    return next((name for name, buffer in before.items() if now.get(name) is not buffer), "")


def _buffers(graph: Graph) -> dict[str, Tensor | None]:
    """Also those that are None so far."""
    parts = graph.named_modules()
    return {".".join(filter(None, (path, name))): its for path, part in parts for name, its in part._buffers.items()}


def _read(graph: Graph, name: str, example: Batch, outputs: dict[End, Tensor]) -> None:
    versions = [(x, _version(x)) for x in inputs(example.x)]
    try:
        with graph.now.readers[name].learning():
            graph.read(name, example, outputs, grad=name in graph.now.updates)
    except KdkitError:
        raise
    except Exception as error:  # anybody's code fails in any way
        line = f"\n  {line_of(error)}".rstrip()
        raise KdkitError(f"model {name!r} cannot be trained on such a batch: {what(error)}{line}") from error
    if len(graph.now.readers) > 1 and any(_version(x) != version for x, version in versions):
        raise KdkitError(
            f"model {name!r}: changes its input in place, which the other models read, too; let it work on a copy: "
            "x = x / 2 for x /= 2, or clone()"
        )


def _call(graph: Graph, edge: BoundEdge, i: int, outputs: Mapping[End, Tensor], example: Batch) -> None:
    call = edge.calls[i]
    if (seen := edge.samples(call, outputs)) < edge.edge.min_batch:
        raise KdkitError(
            f"edge {edge.name!r}: the loss compares the samples of a batch with each other and needs at least "
            f"{edge.edge.min_batch} of them, got {seen}; raise the batch size"
        )
    given = {**{str(end): value for end, value in outputs.items()}, "labels": example.labels, "index": example.index}
    versions = [(name, value, _version(value)) for name, value in given.items() if isinstance(value, Tensor)]
    try:
        value = edge.value(i, outputs, example, graph.progress, graph.loss_scale)
    except FAILURES as error:
        check_labels(example.labels, classes(outputs, graph.facts))
        ends = [end for link in call.links for end in (*link.sources, link.target)]
        shown = ", ".join(f"{end} {'×'.join(map(str, outputs[end].shape[1:]))}" for end in dict.fromkeys(ends))
        line = f"\n  {own_line(error)}".rstrip()
        told = f"edge {edge.name!r}: the losses do not fit the models: {error} (taps: {shown}){line}"
        raise KdkitError(told) from error
    if changed := [name for name, value, version in versions if _version(value) != version]:
        raise KdkitError(
            f"edge {edge.name!r}: the loss changes {', '.join(changed)} in place, but others may read that, too; let "
            "it work on a copy: t = teacher / 4 for t /= 4, or clone()"
        )
    checks.check_terms({edge.name: value})
    named = edge.name in graph.now.beside
    if not edge.silent and not _reaches(value, graph.model(call.target), *[edge] * named):
        raise KdkitError(f"edge {edge.name!r}: sends no gradient to {_unreached(graph, call, named)}")


def _unreached(graph: Graph, call: Call, named: bool) -> str:
    """What a value does not depend on, and what to do; `named`: a stage says what of the loss itself learns."""
    where = ", ".join(str(link.target) for link in call.links)
    when, parts = f"at epoch {graph.now.start:g}", graph.now.parts[call.target]
    if named:
        told = f"{where}, nor to what a stage lets learn of itself {when}"
        return f"{told}; name another part of it under `train`, or {call.target!r}"
    if parts != ("",):
        told = f"what a stage lets learn of {call.target!r} {when} ({', '.join(parts)})"
        return f"{told}; let more of it learn, or leave the loss out of that stage"
    if not any(p.requires_grad for p in graph.model(call.target).parameters()):
        return f"{where}: no weight of {call.target!r} asks for a gradient; requires_grad_() lets a frozen one learn"
    told = f"{where}: its value does not depend on any trained weight of {call.target!r} there"
    return f"{told}; let the loss use the student's tensor without detach(), or set its weight to 0"


def _reaches(value: Tensor, *modules: nn.Module) -> bool:
    """Whether a trained weight of one of them is among what the value was computed from."""
    wanted = {id(p) for module in modules for p in module.parameters() if p.requires_grad}
    ahead, seen = [value.grad_fn], set()
    while ahead:
        step = ahead.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if id(getattr(step, "variable", None)) in wanted:
            return True
        ahead += [before for before, _ in step.next_functions]
    return False
