"""The stages of a network, named the same for every architecture.

Looked up in this order:

1. `model.stages`, a mapping from stage name to module path (every built-in net has it);
2. `model.feature_info`, timm's list, where each of its modules is called and gives one tensor;
3. the dry run. A *block* is a module with two weighted layers or more. Modules are listed in the order of their calls,
   with containers opened (`Sequential`, `ModuleList`, and a body of blocks, such as an encoder, that stands alone or
   holds most of the parameters). A run of modules that agree in their spatial size is a stage; its tap is the output of
   its last block, or of its last module in a network without blocks. A network of one size (ViT, mixer, MLP) has one
   stage per block or layer.

The stem is what the first block reads (where stage1 holds no block: what the first layer and its activation give),
unless `model.stages` says otherwise. A module called stem or embedding is no block, and a block that reads the image is
a stem.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import groupby

from torch import nn

from kdkit.registry import KdkitError, nearest
from kdkit.taps.trace import Call, Trace, has_matrix, named_children

_MOST = 0.8  # share of the parameters from which a module is the body and not one part of several


Spot = tuple[str, str]  # module path, side


def stages(trace: Trace, head: str | None) -> tuple[Spot | None, list[Spot]]:
    """The stem, and `stage1`, `stage2`, …; `head` is the classifier's path, which is no stage."""
    model, path = _inside(trace, head)
    steps = _steps(trace, model, path, trace.last[head].left if head in trace.last else math.inf)
    if any(map(_spatial, steps)):
        steps = [call for call in steps if _spatial(call)]
    found = _declared(trace, model, path) or _timm(trace, model, path) or _by_size(trace, steps)
    declared = getattr(model, "stages", None)
    if isinstance(declared, Mapping) and "stem" in declared:
        return (_under(path, declared["stem"]), "output"), found
    return _stem(trace, steps, found), found


def _inside(trace: Trace, head: str | None) -> tuple[nn.Module, str]:
    """The net in what merely wraps it, and its path: the only child with layers, if it holds the classifier, too."""
    model, path = trace.model, ""
    while not (isinstance(getattr(model, "stages", None), Mapping) or hasattr(model, "feature_info")):
        ran = [(name, child) for name, child in named_children(model) if _layers(child)]
        inner = _under(path, ran[0][0]) if len(ran) == 1 else ""
        if not inner or inner not in trace.last or not (head or "").startswith(inner + "."):
            break
        model, path = ran[0][1], inner
    return model, path


def _under(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _declared(trace: Trace, model: nn.Module, within: str) -> list[Spot]:
    names = getattr(model, "stages", None)
    if not isinstance(names, Mapping):
        return []
    names = {name: _under(within, str(path)) for name, path in names.items()}
    for name, path in names.items():
        if path not in trace.last:
            near = nearest(str(path), list(trace.last))
            raise KdkitError(f"{type(model).__name__}.stages: {name} must be a module it calls, got {path!r}{near}")
    numbers = sorted(int(name[5:]) for name in names if name.startswith("stage") and name[5:].isdigit())
    return [(names[f"stage{number}"], "output") for number in numbers]


def _timm(trace: Trace, model: nn.Module, within: str) -> list[Spot]:
    info = getattr(model, "feature_info", None)
    entries = getattr(info, "info", info)
    if not isinstance(entries, (list, tuple)) or not all(isinstance(e, Mapping) and "module" in e for e in entries):
        return []
    found = [
        (_under(within, e["module"]), "input" if e.get("hook_type") == "forward_pre" else "output") for e in entries
    ]
    blocks = [p for p, _ in found if p and p in trace.last and _is_block(p, trace.last[p].module)]
    if blocks and found[0][0] not in blocks:  # the stem
        found = found[1:]
    plain = all(path in trace.last and trace.last[path].output is not None for path, _ in found)
    return found if plain else []


def _is_block(path: str, module: nn.Module) -> bool:
    name = path.rpartition(".")[2].lower()
    return _layers(module) >= 2 and "stem" not in name and "embed" not in name


def _layers(module: nn.Module) -> int:
    return sum(map(has_matrix, module.modules()))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _parts(module: nn.Module, path: str) -> list[tuple[str, nn.Module]]:
    """The children with their paths, containers opened."""
    parts = []
    for name, child in named_children(module):
        inner = f"{path}.{name}" if path else name
        container = type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        parts += _parts(child, inner) if container else [(inner, child)]
    return parts


def _steps(trace: Trace, module: nn.Module, path: str, before: float) -> list[Call]:
    """The calls that end before a moment, in their order, at the level of blocks: a body of blocks is opened."""
    calls = [trace.last[inner] for inner, _ in _parts(module, path) if inner in trace.last]
    calls = sorted((c for c in calls if c.output is not None and c.left < before), key=lambda c: c.left)
    blocks, most = [call for call in calls if _is_block(call.path, call.module)], _MOST * _size(module)
    steps = []
    for call in calls:
        body = len(blocks) == 1 or _size(call.module) >= most
        if body and sum(_is_block(*part) for part in _parts(call.module, "")) >= 2:
            steps += _steps(trace, call.module, call.path, before)
        else:
            steps.append(call)
    return steps


def _spatial(call: Call) -> tuple[int, ...]:
    shape = tuple(call.output.shape) if call.output is not None else ()
    return shape[1:-1] if len(shape) == 3 else shape[2:]  # tokens: how many


def _by_size(trace: Trace, steps: list[Call]) -> list[Spot]:
    blocks = [call for call in steps if _is_block(call.path, call.module)]
    parts = blocks or [call for call in steps if _layers(call.module)]  # without blocks: layers
    runs = [list(run) for _, run in groupby(steps, key=_spatial)]
    runs = [run for run in runs if any(call in parts for call in run)]
    if len(runs) == 1:  # one size: each part with what follows it
        starts = [steps.index(call) for call in parts]
        runs = [steps[a:b] for a, b in zip(starts, [*starts[1:], len(steps)], strict=True)]
    ends = [next(call for call in reversed(run) if call in blocks or not blocks) for run in runs]
    others = [[call for call in steps if call not in run] for run in runs]
    return [(_lift(trace, end, rest), "output") for end, rest in zip(ends, others, strict=True)]


def _stem(trace: Trace, steps: list[Call], found: list[Spot]) -> Spot | None:
    if not found or not steps:
        return None
    first = trace.last[found[0][0]]
    within = [call for call in steps if call.left <= first.left]
    if block := next((call for call in within if _is_block(call.path, call.module)), None):
        return block.path, "output" if block.input is trace.input else "input"
    layers = [i for i, call in enumerate(steps) if _layers(call.module)]
    if not layers:
        return None
    after = steps[layers[0] : layers[1] if len(layers) > 1 else len(steps)]
    return [call for call in after if _spatial(call) == _spatial(after[0])][-1].path, "output"


def _lift(trace: Trace, end: Call, others: list[Call]) -> str:
    """`layer1` for `layer1.2` where both give the same tensor and the former holds nothing of another stage."""
    best = end.path
    while "." in best:
        parent = best.rpartition(".")[0]
        if any(call.path.startswith(parent + ".") for call in others):
            break
        best = parent
        if parent in trace.last and trace.last[parent].output is end.output:
            end = trace.last[parent]
    return end.path
