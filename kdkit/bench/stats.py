"""The statistics of a table, in NumPy alone: what seeds and test images allow one to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
DRAWS = 2000
LEVEL = 0.05
POWER = 0.8
AT_ONCE = 1 << 24  # images drawn at a time


def t_cdf(t: float, df: int) -> float:
    """Student's distribution for whole degrees of freedom: the finite series of Abramowitz & Stegun, 26.7.3–4."""
    if math.isinf(t):
        return float(t > 0)
    angle = math.atan2(t, math.sqrt(df))
    sine, square = math.sin(angle), math.cos(angle) ** 2
    term = total = 1.0
    if df % 2:
        term = total = math.cos(angle) if df > 1 else 0.0
        for k in range(3, df - 1, 2):
            term *= square * (k - 1) / k
            total += term
        return 0.5 + (angle + sine * total) / math.pi
    for k in range(2, df - 1, 2):
        term *= square * (k - 1) / k
        total += term
    return 0.5 + sine * total / 2


def t_quantile(p: float, df: int) -> float:
    """Where the distribution reaches p, by bisection."""
    low, high = -1e8, 1e8
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979); those that are none (NaN) stay so and do not count."""
    order = sorted((i for i, v in enumerate(p) if not math.isnan(v)), key=lambda i: p[i])
    corrected, largest = [math.nan] * len(p), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p[i]))
        corrected[i] = largest
    return corrected


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Mean and standard deviation (n − 1); of one value the deviation is NaN."""
    several = np.asarray(values, float)
    return float(several.mean()), float(several.std(ddof=1)) if len(several) > 1 else math.nan


def image_draws(right: Floats, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """(draws, runs): the accuracy of every run on test sets drawn anew from the test set, the same ones for all runs.

    Args:
        right: (runs, images), 1 where a run was right.
        draws: how many.
        seed: of the draws.
    """
    images, rng = right.shape[1], np.random.default_rng([seed, 1])
    some = max(1, AT_ONCE // images)
    parts = []
    for start in range(0, draws, some):
        chosen = rng.integers(images, size=(min(some, draws - start), images))
        counts = np.stack([np.bincount(row, minlength=images) for row in chosen]).astype(np.float64)
        parts.append(counts @ right.T / images)
    return np.concatenate(parts)


def seed_draws(n: int, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """(draws, n): weights of n seeds drawn anew.

    One seed, another one each time, is left out of what is drawn from (Hesterberg's bootknife): plain draws would make
    the variance of a mean of n seeds too small by (n − 1) / n, which is a third at three.
    """
    if n == 1:
        return np.ones((draws, 1))
    rng = np.random.default_rng([seed, 2])
    left_out = rng.integers(n, size=(draws, 1))
    chosen = (left_out + 1 + rng.integers(n - 1, size=(draws, n))) % n
    return np.stack([(chosen == i).mean(axis=1) for i in range(n)], axis=1)


@dataclass(frozen=True)
class Difference:
    """What is known of the difference between two methods.

    Attributes:
        mean: over their common seeds.
        error: its standard error over seeds and images.
        p: two-sided; NaN for one seed.
        detectable: the difference that as many seeds find four times out of five; NaN for one seed.
        seeds: how many they have in common.
    """

    mean: float
    error: float
    p: float
    detectable: float
    seeds: int


def difference(values: Floats, drawn: Floats, seeds: Floats) -> Difference:
    """A paired test of seeds × images.

    The standard error is the bootstrap's; it is judged by Student's distribution with as many degrees of freedom as
    there are seeds but one, because it is the seeds that are few.

    Args:
        values: (n,) differences of accuracy, by seed.
        drawn: (draws, n) the same on images drawn anew.
        seeds: (draws, n) weights of seeds.
    """
    n, mean = len(values), float(values.mean())
    error = float((drawn * seeds).sum(axis=1).std(ddof=1))
    if n < 2:
        return Difference(mean, error, math.nan, math.nan, n)
    t = abs(mean) / error if error > 0 else (math.inf if mean else 0.0)
    least = (t_quantile(1 - LEVEL / 2, n - 1) + t_quantile(POWER, n - 1)) * error
    return Difference(mean, error, 2 * (1 - t_cdf(t, n - 1)), least, n)


@dataclass(frozen=True)
class Transfer:
    """The share of the teacher's lead that a student got.

    Attributes:
        ratio: (student − alone) / (teacher − alone); NaN where the lead is no lead.
        low: of the interval of 95 %.
        high: likewise.
        reason: why there is none.
    """

    ratio: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


def transfer(student: Floats, alone: Floats, teacher: Floats) -> Transfer:
    """The accuracy-transfer ratio.

    Args:
        student: (1 + draws,) accuracy of the student: as it is, then drawn anew.
        alone: likewise, without a teacher.
        teacher: likewise.
    """
    lead = teacher - alone
    low, high = np.percentile(lead[1:], [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    if low <= 0 <= high or lead[0] <= 0:
        why = "too close to 0 to be divided by" if low <= 0 <= high else "it has none"
        own, low, high = (f"{100 * value:.2f}".replace("-", "−") for value in (lead[0], low, high))
        reason = f"the teacher's lead over the student alone is {own} points, 95 % of draws between {low} and {high}"
        return Transfer(math.nan, reason=f"{reason}: {why}")
    ratios = (student - alone) / np.where(lead > 0, lead, np.nan)
    low, high = np.nanpercentile(ratios[1:], [100 * LEVEL / 2, 100 * (1 - LEVEL / 2)])
    return Transfer(float(ratios[0]), float(low), float(high))


def epochs_to(curve: Sequence[Sequence[float]], share: float = 0.95) -> int | None:
    """The first epoch whose accuracy was this share of the last one's."""
    if not curve:
        return None
    return next(int(epoch) for epoch, top1 in curve if top1 >= share * curve[-1][1])
