"""Where a net may be cut into stages: at layers that run once, one after the other, with no path around them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.registry import KdkitError, nearest

SIDES = (32, 64, 224)
"""Pixels a side of the images that a net is tried with, after those that it states."""


def check_names(net: nn.Module, cuts: Sequence[str]) -> tuple[str, ...]:
    """The paths, each of a module of the net.

    Raises:
        KdkitError: no list, an unknown layer, or one that is named twice.
    """
    if isinstance(cuts, str) or not all(isinstance(path, str) for path in cuts):
        raise KdkitError(f"sid: isolate must be a list of the backbone's layers such as [layer1, layer2], got {cuts!r}")
    known = [path for path, _ in net.named_modules() if path]
    for path in cuts:
        if path not in known:
            near = nearest(path, known) or f"; its layers: {', '.join(p for p in known if '.' not in p)}"
            raise KdkitError(f"sid: isolate: {type(net).__name__} has no layer {path!r}{near}")
    if len(set(cuts)) != len(cuts):
        raise KdkitError(f"sid: isolate must name each layer once, got {list(cuts)}")
    return tuple(cuts)


def pooled(net: nn.Module, output: Any) -> Tensor:
    """A layer's output as one vector (B, D): a map, or tokens, averaged over places.

    Raises:
        KdkitError: it is neither.
    """
    if isinstance(output, Tensor) and 2 <= output.ndim <= 4:
        if output.ndim == 4:
            return output.mean((1, 2) if getattr(net, "output_fmt", "NCHW") == "NHWC" else (2, 3))
        return output.mean(1) if output.ndim == 3 else output
    shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
    raise KdkitError(f"sid: isolate: a cut needs a layer that gives a map, tokens or a vector, got {shape}")


def widths(net: nn.Module, cuts: Sequence[str]) -> list[int]:
    """The width of what each cut gives, by one run on a blank image that leaves no trace.

    Raises:
        KdkitError: the layers run in another order or not once each, or a path leads around one of them.
    """
    return [z.shape[-1] for _, z in _run(net, cuts)[:-1]]


def owners(net: nn.Module, cuts: Sequence[str]) -> dict[str, int]:
    """The stage that each weight belongs to, by the weight's name."""
    stage = {id(p): i for i, (_, z) in enumerate(_run(net, cuts)) for p in _reached(z)}
    return {name: stage[id(p)] for name, p in net.named_parameters() if id(p) in stage}


def _run(net: nn.Module, cuts: Sequence[str]) -> list[tuple[str, Tensor]]:
    """What each stage gave, pooled, in order, after the path of its cut; the last one is the net's own output."""
    modes = [(module, module.training) for module in net.modules()]
    try:
        net.eval()
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            found = _try(net, cuts)
    finally:
        for module, mode in modes:
            module.training = mode
    paths = [path for path, _ in found]
    for path in cuts:
        if (times := paths.count(path)) != 1:
            raise KdkitError(f"sid: isolate: {path!r} runs {times} times in a forward; cut at a layer that runs once")
    if paths[:-1] != list(cuts):
        raise KdkitError(f"sid: isolate must name layers in the order in which they run: {', '.join(paths[:-1])}")
    owner: dict[int, str] = {}
    names = {id(p): name for name, p in net.named_parameters()}
    for path, z in found:
        for parameter in _reached(z):
            before = owner.setdefault(id(parameter), path)
            if before != path:
                raise KdkitError(
                    f"sid: isolate: {before!r} does not cut {type(net).__name__} in two: {names.get(id(parameter))} "
                    "acts before and after it; cut where nothing leads around"
                )
    return found


def _try(net: nn.Module, cuts: Sequence[str]) -> list[tuple[str, Tensor]]:
    """What each cut gave, pooled, in order of time; the net's own output is the last."""
    problem: Exception | None = None
    for x in examples(net):
        found: list[tuple[str, Tensor]] = []
        handles = [net.get_submodule(path).register_forward_hook(partial(_note, net, found, path)) for path in cuts]
        try:
            last = net(x)
            return [*found, ("", last)]
        except KdkitError:
            raise
        except Exception as error:  # anybody's code fails in any way
            problem = problem or error
        finally:
            for handle in handles:
                handle.remove()
    raise KdkitError(f"sid: isolate: {type(net).__name__} does not run on a blank image of {SIDES} pixels: {problem}")


def _note(
    net: nn.Module, found: list[tuple[str, Tensor]], path: str, module: nn.Module, args: Any, output: Any
) -> Tensor:
    z = pooled(net, output)
    found.append((path, z))
    detached: Tensor = output.detach()
    return detached


def examples(net: nn.Module) -> Iterator[Tensor]:
    """Blank inputs of the shapes that the net may take."""
    first = next((m for m in net.modules() if isinstance(m, (nn.Conv2d, nn.Linear))), None)
    if isinstance(first, nn.Linear):
        yield torch.zeros(1, first.in_features, dtype=first.weight.dtype)
    elif first is not None:
        config = getattr(net, "pretrained_cfg", None) or {}
        patches = getattr(getattr(net, "patch_embed", None), "img_size", None)
        stated = [config["input_size"][-1]] if isinstance(config, dict) and config.get("input_size") else []
        for side in dict.fromkeys([*([patches[-1]] if patches else []), *stated, *SIDES]):
            yield torch.zeros(1, first.in_channels, side, side, dtype=first.weight.dtype)


def _reached(z: Tensor) -> list[nn.Parameter]:
    """The weights that a value was computed from."""
    ahead, seen, found = [z.grad_fn], set(), []
    while ahead:
        step = ahead.pop()
        if step is None or step in seen:
            continue
        seen.add(step)
        if (parameter := getattr(step, "variable", None)) is not None:
            found.append(parameter)
        ahead += [before for before, _ in step.next_functions]
    return found
