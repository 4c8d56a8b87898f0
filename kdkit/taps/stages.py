"""The stages of a network, named the same for every architecture.

Looked up in this order:

1. `model.stages`, a mapping from stage name to module path (every built-in net has it);
2. `model.feature_info`, timm's list, where each of its modules is called and gives one tensor;
3. the dry run: modules are listed in the order of their calls, with containers opened (`Sequential`, `ModuleList`, and
   a module that holds most of the parameters and several blocks, such as an encoder). A run of modules that agree in
   their spatial size is a stage; its tap is the output of its last *block* (a module with two weighted layers or more),
   or of its last module in a network without blocks. A network of one size (ViT, mixer) has one stage per block.

The stem is what the first block reads (where stage1 holds no block: what the first layer and its activation give),
unless `model.stages` says otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby

from torch import nn

from kdkit.taps.trace import Call, Trace, children, has_matrix

_MOST = 0.8  # share of the parameters from which a module counts as the body and not as one of its parts


Spot = tuple[str, str]  # module path, side


def stages(trace: Trace, head: str | None) -> tuple[Spot | None, list[Spot]]:
    """The stem, and `stage1`, `stage2`, …; `head` is the classifier's path, which is no stage."""
    steps = _steps(trace, trace.model, "", _size(trace.model))
    if head in trace.last:
        steps = [call for call in steps if call.left < trace.last[head].left]
    if any(map(_spatial, steps)):
        steps = [call for call in steps if _spatial(call)]
    found = _declared(trace) or _timm(trace) or _by_size(trace, steps)
    declared = getattr(trace.model, "stages", None)
    if isinstance(declared, Mapping) and "stem" in declared:
        return (declared["stem"], "output"), found
    return _stem(trace, steps, found), found


def _declared(trace: Trace) -> list[Spot]:
    names = getattr(trace.model, "stages", None)
    if not isinstance(names, Mapping):
        return []
    numbers = sorted(int(name[5:]) for name in names if name.startswith("stage") and name[5:].isdigit())
    return [(names[f"stage{number}"], "output") for number in numbers]


def _timm(trace: Trace) -> list[Spot]:
    info = getattr(trace.model, "feature_info", None)
    entries = getattr(info, "info", info)
    if not isinstance(entries, (list, tuple)) or not all(isinstance(e, Mapping) and "module" in e for e in entries):
        return []
    found = [(e["module"], "input" if e.get("hook_type") == "forward_pre" else "output") for e in entries]
    blocks = [path for path, _ in found if _is_block(trace.model, path)]
    if found and (found[0][0].startswith("stem") or (blocks and found[0][0] not in blocks)):
        found = found[1:]
    plain = all(path in trace.last and trace.last[path].output is not None for path, _ in found)
    return found if plain else []


def _is_block(model: nn.Module, path: str) -> bool:
    modules = dict(model.named_modules())
    return path in modules and _layers(modules[path]) >= 2


def _layers(module: nn.Module) -> int:
    return sum(map(has_matrix, module.modules()))


def _size(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _steps(trace: Trace, module: nn.Module, path: str, total: int) -> list[Call]:
    """The calls that a module consists of, at the level of its blocks."""
    steps = []
    for name, child in module.named_children():
        inner = f"{path}.{name}" if path else name
        opened = type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict)
        body = _size(child) >= _MOST * total and sum(_layers(m) >= 2 for m in _parts(child)) >= 2
        if opened or body:
            steps += _steps(trace, child, inner, _size(child))
        elif inner in trace.last and trace.last[inner].output is not None:
            steps.append(trace.last[inner])
    return sorted(steps, key=lambda call: call.left)


def _parts(module: nn.Module) -> list[nn.Module]:
    parts = []
    for child in children(module):
        parts += _parts(child) if type(child) in (nn.Sequential, nn.ModuleList, nn.ModuleDict) else [child]
    return parts


def _spatial(call: Call) -> tuple[int, ...]:
    shape = tuple(call.output.shape) if call.output is not None else ()
    return shape[1:-1] if len(shape) == 3 else shape[2:]  # tokens: how many


def _by_size(trace: Trace, steps: list[Call]) -> list[Spot]:
    blocks = [call for call in steps if _layers(call.module) >= 2]
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
    if block := next((call for call in within if _layers(call.module) >= 2), None):
        return block.path, "input"
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
