"""A schedule: a number, or one word that says how a number moves over the run.

Times are epochs, or fractions of the run where they are below 1, so that a shorter run stays in proportion. `by: epoch`
beside a word's arguments lets it move once an epoch, `by: step` at every step; left out, `exp` moves by the epoch and
the others by the step. A schedule is checked when it is bound to a run's length, never while it runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeAlias, Union

from kdkit.registry import KdkitError, nearest

Spec: TypeAlias = Union[float, int, Mapping[str, Any], "Schedule"]
Curve: TypeAlias = Callable[[float], float]

# word → its arguments with their defaults; `...` marks an argument that must be given
WORDS: dict[str, dict[str, Any]] = {
    "constant": {"value": ...},
    "linear": {"start": ..., "end": ..., "over": None},
    "cosine": {"start": ..., "end": ..., "over": None},
    "exp": {"start": ..., "rate": ..., "by": "epoch"},
    "step": {"start": ..., "every": ..., "factor": 0.5, "floor": 0.0},
    "warmup": {"to": ..., "over": ..., "start": 0.0},
    "multistep": {"start": ..., "at": ..., "factor": 0.1},
    "one_cycle": {"peak": ..., "start": 0.0, "end": 0.0, "up": 0.3},
}


@dataclass(frozen=True)
class Schedule:
    """One word and its arguments; `bind` turns it into a function of time.

    Raises:
        KdkitError: where the word or an argument is unknown, missing or not a number.
    """

    word: str
    args: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def parse(cls, spec: Spec) -> Schedule:
        """Read `0.9`, `{linear: [0.9, 0.7]}`, `{warmup: {to: {cosine: [0.1, 0]}, over: 5}}`."""
        if isinstance(spec, Schedule):
            return spec
        if isinstance(spec, (int, float)) and not isinstance(spec, bool):
            return cls("constant", {"value": _number("schedule", spec)})
        if not isinstance(spec, Mapping) or len(spec) != 1:
            raise KdkitError(f"a schedule is a number or one word such as {{cosine: [1.0, 0.0]}}, got {spec!r}")
        (word, given), *_ = spec.items()
        if word not in WORDS or word == "constant":
            known = sorted(WORDS.keys() - {"constant"})
            raise KdkitError(f"unknown schedule {word!r}{nearest(str(word), known) or '; known: ' + ', '.join(known)}")
        return cls(word, _arguments(word, given))

    @property
    def constant(self) -> bool:
        """Whether it never moves."""
        return self.word == "constant"

    def bind(self, epochs: float) -> Curve:
        """The value as a function of time in epochs (fractional within an epoch), for a run of `epochs`.

        Raises:
            KdkitError: where a time never comes in a run this long.
        """
        curve = _BINDERS[self.word](self.args, epochs)
        by = self.args.get("by", "step")
        return partial(_by_epoch, curve=curve) if by == "epoch" else curve

    def extremes(self, epochs: float) -> tuple[float, float]:
        """The least and the greatest value it takes, sampled over the run: what a constructor has to accept.

        Raises:
            KdkitError: where a time never comes, or where it grows beyond all numbers.
        """
        curve = self.bind(epochs)
        try:
            values = [curve(epochs * i / 200) for i in range(201)] + [curve(max(epochs - 1e-9, 0.0))]
        except OverflowError:
            values = [math.inf]
        if not all(map(math.isfinite, values)):
            raise KdkitError(f"{self}: grows beyond all numbers in a run of {epochs:g} epochs; give a smaller rate")
        return min(values), max(values)

    def __str__(self) -> str:
        if self.constant:
            return f"{self.args['value']:g}"
        usual = {**WORDS[self.word], "by": ... if "by" in WORDS[self.word] else "step"}
        return f"{self.word}({', '.join(f'{k}={v}' for k, v in self.args.items() if v != usual[k])})"


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise KdkitError(f"{name} must be a finite number, got {value!r}")
    return float(value)


def _arguments(word: str, given: Any) -> dict[str, Any]:
    """Positional lists and mappings alike, defaults filled in, every value checked for its kind."""
    known = {**WORDS[word], **({} if "by" in WORDS[word] else {"by": "step"})}
    if isinstance(given, (list, tuple)):
        required = [name for name, default in known.items() if default is ...]
        if len(given) != len(required):
            raise KdkitError(f"{word}: must be [{', '.join(required)}], got {given!r}")
        given = dict(zip(required, given, strict=True))
    if not isinstance(given, Mapping):
        raise KdkitError(f"{word}: must be a mapping of {', '.join(known)}, got {given!r}")
    for name in given:
        if name not in known:
            raise KdkitError(f"{word}: unknown argument {name!r}{nearest(str(name), list(known))}")
    args = {**known, **given}
    if missing := [name for name, value in args.items() if value is ...]:
        raise KdkitError(f"{word}: {', '.join(missing)} must be given")
    for name, value in args.items():
        where = f"{word}.{name}"
        if name == "by":
            if value not in ("epoch", "step"):
                raise KdkitError(f"{where} must be 'epoch' or 'step', got {value!r}")
        elif name == "at":
            if not isinstance(value, (list, tuple)) or not value:
                raise KdkitError(f"{where} must be a list of times, got {value!r}")
            args[name] = [_number(where, time) for time in value]
            if sorted(args[name]) != args[name] or min(args[name]) <= 0:
                raise KdkitError(f"{where} must be positive times in ascending order, got {value!r}")
        elif name == "to":
            args[name] = Schedule.parse(value)
        elif value is not None or known[name] is not None:
            args[name] = _number(where, value)
        if name in ("every", "over", "up") and args[name] is not None and args[name] <= 0:
            raise KdkitError(f"{where} must be positive, got {value!r}")
    return args


def _time(name: str, time: float, epochs: float) -> float:
    """A time in epochs; below 1 it is a share of the run."""
    moment = time * epochs if time < 1 else time
    if moment >= epochs and time != 1:
        raise KdkitError(
            f"{name}: epoch {time:g} never comes in a run of {epochs:g} epochs; give an earlier one or a share below 1"
        )
    return moment


def _span(args: Mapping[str, Any], epochs: float) -> float:
    return epochs if args["over"] is None else _time("over", args["over"], epochs)


# A curve is a module-level function with its arguments bound, for a distiller has to pickle with its curves.


def _constant(args: Mapping[str, Any], epochs: float) -> Curve:
    return partial(_flat, value=args["value"])


def _flat(t: float, value: float) -> float:
    return value


def _linear(args: Mapping[str, Any], epochs: float) -> Curve:
    return partial(_line, start=args["start"], end=args["end"], span=_span(args, epochs))


def _line(t: float, start: float, end: float, span: float) -> float:
    return start + (end - start) * min(t / span, 1.0)


def _cosine(args: Mapping[str, Any], epochs: float) -> Curve:
    return partial(_half_wave, start=args["start"], end=args["end"], span=_span(args, epochs))


def _half_wave(t: float, start: float, end: float, span: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * min(t / span, 1.0))) / 2


def _exp(args: Mapping[str, Any], epochs: float) -> Curve:
    return partial(_decay, start=args["start"], rate=args["rate"])


def _decay(t: float, start: float, rate: float) -> float:
    return start * math.exp(-rate * t)


def _step(args: Mapping[str, Any], epochs: float) -> Curve:
    every = _time("every", args["every"], epochs)
    return partial(_stairs, start=args["start"], factor=args["factor"], floor=args["floor"], every=every)


def _stairs(t: float, start: float, factor: float, floor: float, every: float) -> float:
    return max(start * factor ** math.floor(t / every + 1e-9), floor)


def _warmup(args: Mapping[str, Any], epochs: float) -> Curve:
    return partial(_rise, after=args["to"].bind(epochs), start=args["start"], over=_time("over", args["over"], epochs))


def _rise(t: float, after: Curve, start: float, over: float) -> float:
    return after(t) if t >= over else start + (after(t) - start) * t / over


def _multistep(args: Mapping[str, Any], epochs: float) -> Curve:
    times = [_time("at", time, epochs) for time in args["at"]]
    return partial(_drops, start=args["start"], factor=args["factor"], times=times)


def _drops(t: float, start: float, factor: float, times: Sequence[float]) -> float:
    return start * factor ** sum(t >= time - 1e-9 for time in times)


def _one_cycle(args: Mapping[str, Any], epochs: float) -> Curve:
    peak, start, end, up = args["peak"], args["start"], args["end"], _time("up", args["up"], epochs)
    return partial(_tent, peak=peak, start=start, end=end, up=up, epochs=epochs)


def _tent(t: float, peak: float, start: float, end: float, up: float, epochs: float) -> float:
    return _line(t, start, peak, up) if t < up or up >= epochs else _line(t - up, peak, end, epochs - up)


def _by_epoch(t: float, curve: Curve) -> float:
    return curve(math.floor(t))


_BINDERS: dict[str, Callable[[Mapping[str, Any], float], Curve]] = {
    "constant": _constant,
    "linear": _linear,
    "cosine": _cosine,
    "exp": _exp,
    "step": _step,
    "warmup": _warmup,
    "multistep": _multistep,
    "one_cycle": _one_cycle,
}
