"""The rule that tells which peer of a cohort is sick, and what is done about it: numbers in, verdicts out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any, Literal, NamedTuple

from kdkit.registry import KdkitError

Step = Literal["", "lower", "roll back", "rebuild", "well"]
LADDER: tuple[Step, ...] = ("lower", "roll back", "rebuild")
FLOOR = 0.1  # of the others' median: a cohort whose losses are all alike makes nobody an outlier
RISEN = 1.5  # times its own best loss
STILL, FELL = 0.98, 0.9  # what a stall is, while the others' losses fall


@dataclass(frozen=True)
class Rule:
    """When a peer is sick, and how it is treated: a lower rate, then its last good snapshot, then a new beginning.

    After every epoch each peer's loss on fixed probe images is looked at. It is bad where it is no better than chance,
    half above the peer's own best, or has stood still for `patience` epochs in which the others' fell. A peer is sick
    whose loss is bad *and* more than `z` robust deviations above the others', for `patience` epochs in a row; and at
    once where anything in it is not finite. Another `patience` such epochs lead to the next step, as many good ones
    back to health.

    Attributes:
        warmup: epochs after its beginning in which a peer is judged only by being finite.
        patience: epochs in a row that make a peer sick, or well again.
        z: how many robust deviations (1.4826 · MAD, at least a tenth of the median) make an outlier.
        cut: what the learning rate of a sick peer is multiplied with until it is well, or is rebuilt with for good.
        mute: epochs in which nobody listens to a peer that was rolled back or rebuilt.
        keep: snapshots of each peer.
        probe: how many images are looked at: held-out ones with `data.val_split`, else training images.
    """

    warmup: int = 5
    patience: int = 3
    z: float = 3.5
    cut: float = 0.3
    mute: int = 2
    keep: int = 2
    probe: int = 256

    def __post_init__(self) -> None:
        least, wrong = {"warmup": 0, "patience": 1, "mute": 0, "keep": 1, "probe": 2}, []
        for word, low in least.items():
            value = getattr(self, word)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                wrong.append(f"{word} must be a whole number of at least {low}, got {value!r}")
        if not (math.isfinite(self.z) and self.z > 0):
            wrong.append(f"z must be above 0, got {self.z!r}")
        if not 0 < self.cut <= 1:
            wrong.append(f"cut must lie above 0 and at most at 1, got {self.cut!r}")
        if wrong:
            raise KdkitError("; ".join(wrong))


@dataclass
class Chart:
    """What is remembered of one peer.

    Attributes:
        losses: on the probe images, since it began.
        unjudged: epochs in which it is not judged yet.
        bad: bad epochs in a row.
        good: good ones.
        rung: how many steps were taken.
    """

    unjudged: int
    losses: list[float] = field(default_factory=list)
    bad: int = 0
    good: int = 0
    rung: int = 0


class Verdict(NamedTuple):
    """About one peer after an epoch: its robust z, what is wrong (empty: nothing), and what is to be done."""

    z: float
    wrong: str
    step: Step


class Ward:
    """The rule at work on the peers of a cohort.

    Args:
        rule: when and how.
        chance: the loss of knowing nothing, ln of the number of classes.
    """

    def __init__(self, rule: Rule, chance: float) -> None:
        self.rule, self.chance = rule, chance
        self.charts: dict[str, Chart] = {}

    def treated(self, name: str) -> bool:
        """Whether a peer was rolled back or rebuilt, and is not well yet."""
        return name in self.charts and self.charts[name].rung > 1

    def look(self, losses: Mapping[str, float]) -> dict[str, Verdict]:
        """Judge everybody who is there by the losses after an epoch; NaN stands for anything that is not finite."""
        self.charts = {name: self.charts.get(name, Chart(self.rule.warmup)) for name in losses}
        return {name: self._look(name, losses) for name in losses}

    def _look(self, name: str, losses: Mapping[str, float]) -> Verdict:
        chart, rule = self.charts[name], self.rule
        if not math.isfinite(losses[name]):
            step = LADDER[2] if chart.rung > 1 else LADDER[1]
            self.charts[name] = self._treated(step)
            return Verdict(math.nan, "not finite", step)
        chart.losses.append(losses[name])
        others = [other for other, its in self.charts.items() if other != name and its.unjudged == 0]
        others = [other for other in others if math.isfinite(losses[other])]
        z = _robust_z(losses[name], [losses[other] for other in others]) if others else 0.0
        if chart.unjudged:
            chart.unjudged -= 1
            return Verdict(z, "", "")
        wrong = self._bad(chart.losses, [self.charts[other].losses for other in others]) if z > rule.z else ""
        chart.bad, chart.good = (chart.bad + 1, 0) if wrong else (0, chart.good + 1)
        if chart.bad >= rule.patience:
            step = LADDER[min(chart.rung, 2)]
            if step == "lower":
                chart.bad, chart.rung = 0, 1
            else:
                self.charts[name] = self._treated(step)
            return Verdict(z, wrong, step)
        if chart.rung and chart.good >= rule.patience:
            chart.rung = 0
            return Verdict(z, "", "well")
        return Verdict(z, wrong, "")

    def _treated(self, step: Step) -> Chart:
        wait = self.rule.mute + (self.rule.warmup if step == "rebuild" else 0)
        return Chart(wait, rung=LADDER.index(step) + 1)

    def _bad(self, mine: list[float], others: list[list[float]]) -> str:
        if mine[-1] >= 0.98 * self.chance:
            return "no better than chance"
        if mine[-1] > RISEN * min(mine):
            return "half above its own best"
        n = self.rule.patience
        long = [theirs for theirs in others if len(theirs) > n]
        if len(mine) > n and long and min(mine[-n:]) > STILL * min(mine[:-n]):
            before, now = median(min(t[:-n]) for t in long), median(min(t[-n:]) for t in long)
            if now < FELL * before:
                return "stands still while the others' falls"
        return ""

    def state_dict(self) -> dict[str, Any]:
        """Every chart."""
        return {name: asdict(chart) for name, chart in self.charts.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.charts = {name: replace(Chart(0), **chart) for name, chart in state.items()}


def _robust_z(mine: float, others: list[float]) -> float:
    """(mine − median) / max(1.4826 · MAD, a tenth of the median) of the others."""
    middle = median(others)
    spread = 1.4826 * median(abs(value - middle) for value in others)
    return (mine - middle) / max(spread, FLOOR * abs(middle), 1e-3)
