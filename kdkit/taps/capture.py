"""Taps: hooks that live for one call."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from kdkit.registry import KdkitError
from kdkit.taps.places import SIDES, Place, Places
from kdkit.taps.trace import Trace, dry_run, first_tensor, logits_of


class _Enough(Exception):  # noqa: N818 (no error: every tap has been read, the rest of the network need not run)
    pass


class _Hook:
    """Puts what passes at one side of a module into a dict that lives as long as the taps."""

    def __init__(self, store: dict[str, Tensor], place: Place, clone: bool) -> None:
        self.store, self.key, self.side, self.clone = store, str(place), place.side, clone

    def __call__(self, module: nn.Module, args: tuple[Any, ...], last: Any) -> None:
        """`last` is the keywords of the call before it, and its output after it."""
        tensor = first_tensor([*args, *last.values()] if self.side == "input" else last)
        if tensor is not None:
            self.store[self.key] = tensor.clone() if self.clone else tensor

    def open(self, module: nn.Module) -> Any:
        """Register, and return the handle that removes the hook again."""
        if self.side == "input":
            return module.register_forward_pre_hook(self, with_kwargs=True)
        return module.register_forward_hook(self)


class _Watch(_Hook):
    """Beside a hook: sees whether what it read is changed in place before the forward ends."""

    def __init__(self, hook: _Hook) -> None:
        self.hook, self.side = hook, hook.side
        self.seen: tuple[Tensor, int] | None = None

    def __call__(self, module: nn.Module, args: tuple[Any, ...], last: Any) -> None:
        tensor = first_tensor([*args, *last.values()] if self.side == "input" else last)
        self.seen = None if tensor is None else (tensor, tensor._version)

    def conclude(self) -> None:
        """Have it cloned where it was."""
        self.hook.clone |= self.seen is not None and self.seen[0]._version != self.seen[1]


def _stop(*_: Any) -> None:
    raise _Enough


class Taps:
    """Named places of one model, read during a forward pass.

    ```python
    taps = Taps(model, ["stage2", "embedding", "logits"], example)
    values = taps(x)                # {"stage2": (B, C, H, W), "embedding": (B, D), "logits": (B, classes)}

    with taps.open():               # around a compiled step: hooks are opened outside of what is compiled
        step(x)                     # …, which calls `output = model(x); values = taps.take(output)`
    ```

    All names are resolved once, by a dry run in evaluation mode that leaves no trace (BatchNorm statistics, training
    flags, random generators). It also finds the taps whose tensor is changed in place later in the forward pass: only
    those are cloned. A module that is called several times in one forward gives its last call. Hooks exist while the
    model runs under these taps and at no other time, so that the model pickles and deep-copies as if it had never been
    tapped; any number of `Taps` may read one model.

    Args:
        model: any `nn.Module`; not changed.
        names: `logits`, `embedding`, `stem`, `stage1`, …, `stage-1`, or module paths; see `kdkit.taps`.
        example: an input of the model (or a tuple of its arguments), on the model's device.

    Attributes:
        names: as given, without repetitions.
        shapes: name → shape without the batch.
        paths: name → `module path:side` that it stands for.

    Raises:
        UnknownNameError: no such place in this model; the text lists the nearest.
        KdkitError: the place cannot be read, or the model does not run on the example.
    """

    def __init__(self, model: nn.Module, names: Sequence[str], example: Tensor | tuple[Any, ...]) -> None:
        self.model = model
        self.names = tuple(dict.fromkeys(names))
        places = Places(dry_run(model, example))
        trace = places.trace
        self._places = {name: places.resolve(name) for name in self.names if name != "logits"}
        self._turned = {name: _channels_last(trace, place) for name, place in self._places.items()}
        self.paths = {name: str(self._places[name]) if name in self._places else ":output" for name in self.names}
        self._store: dict[str, Tensor] = {}
        by_key = {str(place): place for place in self._places.values()}
        calls = {key: trace.last[place.path] for key, place in by_key.items()}
        clone = {key: calls[key].changed_later(place.side) for key, place in by_key.items()}
        self._hooks = [(calls[key].module, _Hook(self._store, place, clone[key])) for key, place in by_key.items()]
        self._last = max(by_key.values(), key=lambda p: trace.last[p.path].moment(p.side), default=None)
        if "logits" in self.names or (self._last and trace.counts[self._last.path] > 1):
            self._last = None  # everything must run, or which call is the last is not known inside it
        seen = {key: call.at(by_key[key].side) for key, call in calls.items()}
        self._store.update({key: tensor for key, tensor in seen.items() if tensor is not None})
        self.shapes = {name: tuple(value.shape[1:]) for name, value in self.take(trace.returned).items()}

    def __call__(self, *inputs: Any) -> dict[str, Tensor]:
        """Run the model and return its values at the taps.

        Where `logits` are not asked for, nothing after the last tap is run: later layers neither cost time nor, in
        training mode, update their statistics.
        """
        output = None
        with self.open():
            stop = self._stop()
            try:
                output = self.model(*inputs)
            except _Enough:
                pass
            finally:
                for handle in stop:
                    handle.remove()
            return self.take(output)

    def _stop(self) -> list[Any]:
        if self._last is None:
            return []
        module = self.model.get_submodule(self._last.path)
        before = self._last.side == "input"
        return [module.register_forward_pre_hook(_stop) if before else module.register_forward_hook(_stop)]

    @contextmanager
    def open(self) -> Iterator[None]:
        """The hooks, for as long as the block runs. Call the model inside, and `take` what it left."""
        handles = [hook.open(module) for module, hook in self._hooks]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._store.clear()

    @contextmanager
    def learning(self) -> Iterator[None]:
        """Around one forward in training mode: what is changed in place there alone is cloned from now on, too."""
        watches = [(module, _Watch(hook)) for module, hook in self._hooks]
        handles = [watch.open(module) for module, watch in watches]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
        for _, watch in watches:
            watch.conclude()

    def take(self, output: Any = None) -> dict[str, Tensor]:
        """The values of the forward pass that has just run, by name; what the taps held is released.

        Args:
            output: what the model returned; needed for `logits` alone.

        Raises:
            KdkitError: a tapped module was not called, or `logits` are asked for without the output.
        """
        values = {}
        for name in self.names:
            if name == "logits":
                if output is None:
                    raise KdkitError("tap 'logits': take() must be given what the model returned, got nothing")
                values[name] = logits_of(output)
                continue
            place = self._places[name]
            if str(place) not in self._store:
                raise KdkitError(
                    f"tap {name!r}: {place} must be reached in every forward inside `open()`, and was not; name a "
                    "place that every forward runs, in training as well, and that torch.compile has not compiled"
                )
            value = self._store[str(place)]
            value = value.movedim(-1, 1) if self._turned[name] else value
            values[name] = value.mean(place.pooled) if place.pooled else value
        self._store.clear()
        return values


def _channels_last(trace: Trace, place: Place) -> bool:
    """Whether a map is (B, H, W, C): the last layer of its shape that tells says so, or else timm's `output_fmt`."""
    call = trace.last[place.path]
    tensor = call.at(place.side)
    if tensor is None or tensor.ndim != 4 or place.pooled or tensor is trace.input:
        return False
    declared = "NHWC" in (getattr(part, "output_fmt", None) for part in (trace.model, call.module))
    if tensor.shape[1] == tensor.shape[3]:
        return declared
    for layer in reversed([c for c in trace.calls if c.left <= call.moment(place.side)]):
        if layer.output is None or layer.output.shape != tensor.shape:
            continue
        if isinstance(layer.module, (nn.modules.conv._ConvNd, nn.modules.batchnorm._BatchNorm)):
            return False
        if isinstance(layer.module, (nn.Linear, nn.LayerNorm)) and _width(layer.module) == tensor.shape[3]:
            return True
    return declared


def _width(module: nn.Module) -> int:
    weight = module.weight
    return weight.shape[0] if isinstance(weight, Tensor) else 0


def expand(model: nn.Module, name: str, example: Tensor | tuple[Any, ...]) -> list[str]:
    """The taps that a plural name stands for: `stages` → `["stage1", "stage2", …]`, any other name → itself.

    A side stays with each: `stages:preact` → `["stage1:preact", …]`.

    Raises:
        KdkitError: the model has no stages that could be told apart.
    """
    base, colon, side = name.partition(":")
    if base != "stages" or (colon and side not in SIDES):
        return [name]
    count = len(Places(dry_run(model, example)).stages)
    if not count:
        raise KdkitError(f"tap 'stages': {type(model).__name__} must have stages, found none; name module paths")
    return [f"stage{i + 1}{colon}{side}" for i in range(count)]


def classifier(model: nn.Module, example: Tensor | tuple[Any, ...]) -> nn.Module:
    """The module that turns the embedding into logits (`fc`, `head`, `classifier.6`, …): usually an `nn.Linear`.

    Raises:
        KdkitError: the model has none, or several.
    """
    return model.get_submodule(Places(dry_run(model, example)).classifier())
