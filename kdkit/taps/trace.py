"""One dry run of a model: which modules ran, in which order, on what; and no trace of it left in the model."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kdkit.fault import what, where
from kdkit.registry import KdkitError
from kdkit.untouched import untouched


@dataclass(eq=False)
class Call:
    """One call of one module; tensors are kept alive, so that `is` tells whether two places hold the same one."""

    path: str
    module: nn.Module
    input: Tensor | None
    input_version: int
    entered: int
    output: Tensor | None = None
    output_version: int = 0
    left: int = 0

    def at(self, side: str) -> Tensor | None:
        """The tensor at a side of the module."""
        return self.input if side == "input" else self.output

    def moment(self, side: str) -> int:
        """When a hook at that side would run."""
        return self.entered if side == "input" else self.left

    def version(self, side: str) -> int:
        """How often the tensor had been changed in place when a hook at that side would run."""
        return self.input_version if side == "input" else self.output_version

    def changed_later(self, side: str) -> bool:
        """Whether the tensor is changed in place after that, so that a tap must clone it."""
        tensor = self.at(side)
        return tensor is not None and tensor._version != self.version(side)


@dataclass
class Trace:
    """What a dry run saw: the model's first input, all calls in the order in which they ended, and what it returned.

    `output` are the logits in it, or its first tensor where it does not say which they are.
    """

    model: nn.Module
    input: Tensor | None
    calls: list[Call]
    returned: Any
    output: Tensor

    def __post_init__(self) -> None:
        self.last = {call.path: call for call in self.calls}
        self.counts: dict[str, int] = {}
        for call in self.calls:
            self.counts[call.path] = self.counts.get(call.path, 0) + 1

    def layers(self) -> list[Call]:
        """The calls of single weighted layers (linear, convolution, or a user's own leaf with a matrix)."""
        return [call for call in self.calls if has_matrix(call.module)]


WRAP = "wrap the model in one that returns its logits, or a mapping with an entry `logits`"


class NoLogitsError(KdkitError):
    """A model's output does not say which are its logits."""


def first_tensor(value: Any) -> Tensor | None:
    """The value itself, or the first tensor in a tuple, list or mapping, or in one of those inside it."""
    if isinstance(value, Tensor):
        return value
    if isinstance(value, Mapping):
        value = tuple(value.values())
    for part in value if isinstance(value, (tuple, list)) else ():
        found = first_tensor(part)
        if found is not None:  # torch 2.11 compiles no walrus inside of a generator
            return found
    return None


def logits_of(output: Any) -> Tensor:
    """The logits in a model's output.

    They are the tensor itself, its entry or attribute `logits`, the only tensor of a mapping, or what a tuple begins
    with, `None` apart.

    Raises:
        NoLogitsError: which of several tensors are the logits is not said.
    """
    if isinstance(output, Tensor):
        return output
    named = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if named is not None:
        return logits_of(named)
    parts = list(
        output.values() if isinstance(output, Mapping) else output if isinstance(output, (tuple, list)) else ()
    )
    parts = [part for part in parts if first_tensor(part) is not None or getattr(part, "logits", None) is not None]
    if not parts:
        raise NoLogitsError(
            "model: its output must be a tensor, hold `logits` or start with a tensor, "
            f"got {type(output).__name__}; {WRAP}"
        )
    if len(parts) == 1:
        return logits_of(parts[0])
    if isinstance(output, Mapping):
        raise NoLogitsError(f"model: its output holds {', '.join(map(str, output))} and no `logits`; {WRAP}")
    if isinstance(parts[0], (tuple, list)) and getattr(parts[0], "logits", None) is None:
        raise NoLogitsError(f"model: its output starts with a list of {len(parts[0])}, not with its logits; {WRAP}")
    if isinstance(output, list) and all(isinstance(part, Tensor) and part.ndim > 3 for part in parts):
        raise NoLogitsError(f"model: its output is a list of {len(parts)} maps, not its logits; {WRAP}")
    return logits_of(parts[0])


def named_children(module: nn.Module) -> list[tuple[str, nn.Module]]:
    """Direct children that are part of the computation (not the holders of a parametrised weight)."""
    return [(name, child) for name, child in module.named_children() if name != "parametrizations"]


def has_matrix(module: nn.Module) -> bool:
    """Whether a module is one layer with a weight of two or more dimensions (norms and activations are not)."""
    weight = getattr(module, "weight", None)
    weights = [weight] if isinstance(weight, Tensor) else list(module.parameters(recurse=False))
    return not named_children(module) and any(w.ndim >= 2 for w in weights)


_shared: dict[tuple[int, int], tuple[Any, Any, Trace]] | None = None


@contextmanager
def shared_runs() -> Iterator[None]:
    """Inside, a model meets the same example once, however many taps are read; nobody may change the model there."""
    global _shared
    before, _shared = _shared, {} if _shared is None else _shared
    try:
        yield
    finally:
        _shared = before


def dry_run(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Trace:
    """Run the model once in evaluation mode, without gradient, and note every call.

    Raises:
        KdkitError: the model cannot be run on the example.
    """
    if _shared is None:
        return _run(model, example)
    key = id(model), id(example)
    if key not in _shared:
        _shared[key] = model, example, _run(model, example)  # held, so that nothing else gets their ids
    return _shared[key][2]


def _remedy(model: nn.Module, given: tuple[Any, ...]) -> str:
    """What to do about weights of another floating type than the inputs, or a mapping of them; else nothing."""
    if any(isinstance(v, Mapping) for v in given):
        return "; where it takes arguments by name, give them as a tuple, in their order"
    tensors = [v for v in given if isinstance(v, Tensor)]
    if any(v.dtype == torch.uint8 for v in tensors):
        return "; its input is uint8: make floats of the images (x / 255)"
    inputs = {v.dtype for v in tensors if v.is_floating_point()}
    others = {p.dtype for p in model.parameters() if p.is_floating_point()} - inputs
    if not inputs or not others:
        return ""
    names = [", ".join(sorted(str(t).removeprefix("torch.") for t in several)) for several in (others, inputs)]
    return f"; its weights are {names[0]}, its input {names[1]}: make them one (`.float()`)"


def _as_written() -> AbstractContextManager[Any]:
    """Parts that are compiled run as they were written: what is compiled does not call the hooks."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and to import it takes seconds
        return nullcontext()
    as_written: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return as_written


def _plain(value: Any) -> Any:
    """Tensors of inference mode as those that count their changes."""
    if isinstance(value, Tensor):
        return value.clone() if value.is_inference() else value
    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    return type(value)(map(_plain, value)) if type(value) in (tuple, list) else value


def _run(model: nn.Module, example: Tensor | tuple[Any, ...]) -> Trace:
    calls: list[Call] = []
    stack: list[Call] = []
    clock = iter(range(1 << 62))
    paths = {module: path for path, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        tensor = first_tensor([*args, *kwargs.values()])
        stack.append(Call(paths[module], module, tensor, 0 if tensor is None else tensor._version, next(clock)))

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        call = stack.pop()
        call.output, call.left = first_tensor(output), next(clock)
        call.output_version = 0 if call.output is None else call.output._version
        calls.append(call)

    handles = []
    try:
        for module in paths:
            handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
            handles.append(module.register_forward_hook(leave))
        with untouched(model):
            for module in model.modules():
                module.training = False  # not .eval(), which a model may override
            with _as_written(), torch.inference_mode(False), torch.no_grad():
                example = _plain(example)
                output = model(*example) if isinstance(example, tuple) else model(example)
    except KdkitError:
        raise
    except Exception as error:  # anybody's code fails in any way
        given = example if isinstance(example, tuple) else (example,)
        shapes = ", ".join(str(tuple(v.shape)) for v in given if isinstance(v, Tensor))
        line = f"\n  {where(error)}".rstrip()
        of = f"an input of shape {shapes}" if shapes else f"the {type(example).__name__} it was given"
        told = f"model: {type(model).__name__} must run on {of}, got {what(error)}"
        raise KdkitError(f"{told}{_remedy(model, given)}{line}") from error
    finally:
        for handle in handles:
            handle.remove()
    for call in calls:
        if call.input is not None and isinstance(call.module, nn.modules.dropout._DropoutNd) and call.module.inplace:
            torch.autograd.graph.increment_version(call.input)  # it left its input alone here, but will not in training
    found = first_tensor(output)
    try:
        found = logits_of(output)
    except NoLogitsError:
        if found is None:
            raise
    assert found is not None
    return Trace(model, first_tensor(example), calls, output, found)
