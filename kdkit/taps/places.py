"""From the name of a tap to a side of a module."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from kdkit.registry import KdkitError, UnknownNameError, nearest
from kdkit.taps.stages import stages
from kdkit.taps.trace import Call, Trace, has_matrix, named_children

SIDES = ("input", "output", "preact")


@dataclass(frozen=True)
class Place:
    """A side (`input` or `output`) of the module at `path`; an embedding is averaged over the dimensions `pooled`."""

    path: str
    side: str
    pooled: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}:{self.side}"


class Places:
    """Resolves names against one dry run. The general names win over a module that happens to have one of them."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.paths: dict[nn.Module | None, str] = {module: path for path, module in trace.model.named_modules()}
        self.who = type(trace.model).__name__
        self.heads, self.no_head = _find_classifiers(trace)
        stem, found = stages(trace, self.heads[0] if self.heads else None)
        self.stages = [Place(*spot) for spot in found]
        self.named = {"stem": Place(*stem)} if stem else {}
        for i, place in enumerate(self.stages):
            self.named |= {f"stage{i + 1}": place, f"stage{i - len(self.stages)}": place}

    def resolve(self, name: str) -> Place:
        """The place of a name other than `logits`.

        Raises:
            UnknownNameError: there is no such place; the text lists the nearest names.
            KdkitError: the place exists, but has nothing to read.
        """
        base, _, side = name.partition(":")
        if side and side not in SIDES:
            raise UnknownNameError(
                f"unknown side {side!r} of tap {name!r}{nearest(side, list(SIDES))}; known: {', '.join(SIDES)}"
            )
        if base in ("logits", "embedding"):
            if side:
                raise KdkitError(f"tap {name!r}: {base} must be without ':{side}'; name a module path for a side")
            return self.embedding()
        place = self._named(base)
        if side == "preact":
            return self._preact(name, place.path)
        place = Place(place.path, side) if side else place
        if self.trace.last[place.path].at(place.side) is None:
            raise KdkitError(f"tap {name!r}: {place} of {self.who} must be a tensor; tap another module")
        return place

    def _named(self, base: str) -> Place:
        if base in self.named:
            return self.named[base]
        known = dict(self.trace.model.named_modules(remove_duplicate=False))
        base = self.paths.get(known.get(base), base)  # of a module that has several, the first
        if base in self.trace.last and base:
            return Place(base, "output")
        if base in known and base:
            raise KdkitError(f"tap {base!r}: this module of {self.who} is never called; tap one inside it or around it")
        general = ["logits", "embedding", *sorted(self.named)]
        near = "" if base.startswith("stage") else nearest(base, [*general, *filter(None, self.trace.last)])
        near = near or f"; known: {', '.join(general)} and module paths"
        near += "; kdkit.taps.expand(model, 'stages', x) lists the stages" if base == "stages" else ""
        raise UnknownNameError(f"unknown tap {base!r}: {self.who} has no such place{near}")

    def _preact(self, name: str, path: str) -> Place:
        """What the last activation of a module reads."""
        whole = self.trace.last[path]
        inside = [c for c in self.trace.calls if c is whole or c.path.startswith(path + ".")]
        ends = [c for c in inside if c.output is whole.output and c.output_version == whole.output_version]
        found = next(filter(_is_activation, ends), None)
        if found is None:
            raise KdkitError(
                f"tap {name!r}: {path} of {self.who} must end in an activation that is a module, and does not; "
                "where it ends in none, leave ':preact' out, else tap the module before its last activation by its path"
            )
        if found is not self.trace.last[found.path]:  # taps give the last call
            raise KdkitError(
                f"tap {name!r}: its last activation {found.path} must not be called again later in a forward, and is; "
                f"tap a module before it, such as its normalisation"
            )
        return Place(found.path, "input")

    def classifier(self) -> str:
        """Path of the module that turns the embedding into logits."""
        if len(self.heads) != 1:
            raise KdkitError(
                f"embedding: {self.who} {self.no_head}; name the place, for instance `PATH_OF_THE_CLASSIFIER:input`"
            )
        return self.heads[0]

    def embedding(self) -> Place:
        """Where the classifier's input first appears: dropout passes it through unchanged in evaluation mode.

        Several classifiers that read one tensor have that embedding.
        """
        shared = {id(self.trace.last[path].input) for path in self.heads}
        call = self.trace.last[self.heads[0] if len(shared) == 1 else self.classifier()]
        tensor = call.input
        if tensor is None:
            raise KdkitError(f"embedding: {call.path} of {self.who} must read a tensor; name the place")
        spatial = (
            range(2, tensor.ndim) if isinstance(call.module, nn.modules.conv._ConvNd) else range(1, tensor.ndim - 1)
        )
        first = Place(call.path, "input", tuple(spatial))
        moment = call.entered
        for other in self.trace.last.values():
            for side in ("input", "output"):
                same = other.at(side) is tensor and other.version(side) == call.input_version
                if same and other.moment(side) < moment:
                    first, moment = Place(other.path, side, first.pooled), other.moment(side)
        return first


def _is_activation(call: Call) -> bool:
    """Elementwise, without weights, and doing something even in evaluation mode (unlike dropout)."""
    if call.input is None or call.output is None or call.input.shape != call.output.shape:
        return False
    if named_children(call.module) or (call.input is call.output and call.input_version == call.output_version):
        return False
    weightless = next(call.module.parameters(), None) is None or isinstance(call.module, nn.PReLU)
    return weightless and _is_elementwise(call.module, call.input[:1])


@torch.no_grad()
def _is_elementwise(module: nn.Module, like: Tensor) -> bool:
    """Whether each number follows from the one in its place alone, and not along a line."""
    drawn = torch.Generator().manual_seed(0)
    x, other = ((20 * torch.rand(like.shape, generator=drawn) - 10).to(like) for _ in range(2))
    changed = (torch.rand(like.shape, generator=drawn) < 0.5).to(like.device)
    try:
        copied = copy.deepcopy(module).eval()  # which may keep count, or draw
        y, z, w, v = (copied.forward(t.clone()) for t in (x, other, torch.where(changed, other, x), (x + other) / 2))
        close = float(1e-3 * (y - z).nan_to_num().abs().max())
        alone = torch.allclose(w, torch.where(changed, z, y), atol=close, equal_nan=True)
        return alone and not torch.allclose(v, (y + z) / 2, atol=close, equal_nan=True)
    except Exception:  # it reads more than this tensor, or gives more than one
        return False


def _find_classifiers(trace: Trace) -> tuple[list[str], str]:
    """Paths of the classifier, or of all that take part in the output; and, unless it is one, how many there are."""
    layers = trace.layers()
    for call in layers:  # the layer whose output is the model's output
        if call.output is trace.output:
            return [call.path], ""
    if callable(getter := getattr(trace.model, "get_classifier", None)):  # timm
        given = getter()
        several = given if isinstance(given, (tuple, list)) else [given]
        names = {module: path for path, module in trace.model.named_modules() if path in trace.last}
        paths = [names[module] for module in several if module in names]
        if len(paths) == len(several):
            return paths, f"has {len(paths)} classifiers"
    for call in trace.calls:  # a classifier that was taken out
        if isinstance(call.module, nn.Identity) and call.output is trace.output:
            return [call.path], ""
    classes = trace.output.shape[-1]
    wide = [c for c in layers if has_matrix(c.module) and classes in _width(c)] if trace.output.ndim == 2 else []
    if not wide:
        return [], "has no layer that is as wide as its output"
    rivals = [c for c in wide if c.output is not None and c.output.ndim == 2]
    if len(rivals) > 1:
        return [call.path for call in rivals], f"has {len(rivals)} layers as wide as its output"
    return [wide[-1].path], ""


def _width(call: Call) -> tuple[int, ...]:
    if call.output is None:
        return ()
    return (call.output.shape[1],) if isinstance(call.module, nn.modules.conv._ConvNd) else (call.output.shape[-1],)
