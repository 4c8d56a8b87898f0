"""What tuning moves: numbers of a method's losses, each between two ends, and how the next values are chosen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdkit.graph.span import Span
from kdkit.recipe import Recipe
from kdkit.recipe.check import WEIGHT
from kdkit.recipe.named import find_loss
from kdkit.registry import KdkitError, constructor

TIMES = 10.0  # a weight is tried from a tenth to ten times what the recipe says
DRAWN = 5  # trials before the sampler looks at scores: the recipe's own values, then draws


@dataclass(frozen=True)
class Dimension:
    """A number that is tuned.

    Attributes:
        word: as an override calls it: `losses.kd.weight`.
        low: least value.
        high: greatest value.
        usual: what the recipe says, which is the first trial.
    """

    word: str
    low: float
    high: float
    usual: float

    def value(self, drawn: float) -> float:
        """What is tried: few digits, and a whole number where the usual one is."""
        within = min(max(_short(drawn), self.low), self.high)
        return round(within) if isinstance(self.usual, int) else within

    @property
    def log(self) -> bool:
        """Whether values are drawn in proportion."""
        return self.low > 0


def space(recipe: Recipe) -> list[Dimension]:
    """Weights of all losses but those that are the scale, and what each loss says of its own numbers.

    Schedules, shares and weights of 0 stay as they are.
    """
    found, scales = [], _scales(recipe)
    for edge in recipe.losses:
        cls, info = find_loss(edge.loss, recipe.origin.folder)
        if edge.title not in scales and isinstance(edge.weight, (int, float)) and edge.weight > 0:
            weight = float(edge.weight)
            found.append(Dimension(f"losses.{edge.title}.weight", weight / TIMES, min(weight * TIMES, WEIGHT), weight))
        own = info.space if info else getattr(cls, "space", {})
        for word, ends in own.items():
            low, high = _ends(edge.title, word, ends, constructor(cls))
            usual = edge.arguments.get(word, constructor(cls)[word].default)
            if isinstance(usual, (int, float)):
                least, most = float(min(low, usual)), float(max(high, usual))
                number = int if constructor(cls)[word].annotation in (int, "int") else float
                found.append(Dimension(f"losses.{edge.title}.{word}", least, most, number(usual)))
    return found


def _scales(recipe: Recipe) -> set[str]:
    """The first of all losses that are active together, in every stage: to move all of them is to move the rate."""
    spans = [(edge.title, Span.parse(edge.when).bind(recipe.trainer.max_epochs)) for edge in recipe.losses]
    begun = {start for _, (start, _) in spans}
    return {next(title for title, (start, end) in spans if start <= time < end) for time in begun}


def _ends(edge: str, word: str, ends: Any, words: Mapping[str, Any]) -> tuple[float, float]:
    """The ends of what a loss says of one of its numbers."""
    numbers = isinstance(ends, (tuple, list)) and len(ends) == 2 and all(isinstance(end, (int, float)) for end in ends)
    if word not in words or not numbers or not ends[0] < ends[1]:
        raise KdkitError(
            f"losses.{edge}: `space` must give two ends, the lesser first, of an argument of the loss, such as "
            f'{{"temperature": (1.0, 10.0)}}; got {word!r}: {ends!r}'
        )
    return float(ends[0]), float(ends[1])


def check_optuna() -> None:
    """Raise `KdkitError` where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise KdkitError("`kdkit tune` needs Optuna: pip install 'kdkit[tune]', or optuna alone") from None


def suggest(
    dimensions: Sequence[Dimension], known: Sequence[tuple[dict[str, float], float]], key: int
) -> dict[str, float]:
    """The values of the next trial: a function of the trials before it and a key, so that it is the same after a stop.

    Args:
        dimensions: what is moved.
        known: values and score of every trial so far, in order.
        key: of this trial.
    """
    if not known:
        return {d.word: d.usual for d in dimensions}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    ranges: dict[str, Any] = {
        d.word: optuna.distributions.FloatDistribution(d.low, d.high, log=d.log) for d in dimensions
    }
    sampler = optuna.samplers.TPESampler(seed=key & 0x7FFFFFFF, n_startup_trials=DRAWN)
    study = optuna.create_study(direction="maximize", sampler=sampler)
    for values, score in known:
        study.add_trial(optuna.trial.create_trial(params=values, distributions=ranges, value=score))
    drawn = study.ask(ranges).params
    return {d.word: d.value(drawn[d.word]) for d in dimensions}


def _short(value: float) -> float:
    """Four digits, as people write them."""
    return value and round(value, 3 - math.floor(math.log10(abs(value))))
