"""The statistics of a table, in NumPy alone: what seeds and test images allow one to say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

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
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if t_cdf(middle, df) < p else (low, middle)
    return (low + high) / 2


def quantile(p: float, df: int) -> float:
    """Likewise for any degrees of freedom: many by the expansion of Cornish and Fisher (A&S 26.7.5)."""
    if df < 60:
        return t_quantile(p, df)
    z = NormalDist().inv_cdf(p)
    second = 5 * z**5 + 16 * z**3 + 3 * z
    third = 3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z
    return z + (z**3 + z) / (4 * df) + second / (96 * df**2) + third / (384 * df**3)


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
        detectable: the difference that the corrected test finds four times out of five; NaN for one seed.
        seeds: how many they have in common.
    """

    mean: float
    error: float
    p: float
    detectable: float
    seeds: int


@dataclass(frozen=True)
class Error:
    """The variance of a mean over seeds and images, by where it comes from.

    Attributes:
        seeds: by the spread of seeds' means, with n − 1 degrees of freedom; at least `least`.
        images: what images add to that.
        n: seeds.
        size: images.
        least: by how much images let seeds differ: seeds that agree by chance are no proof.
    """

    seeds: float
    images: float
    n: int
    size: int
    least: float = 0.0

    @property
    def standard(self) -> float:
        """The standard error."""
        return math.sqrt(self.seeds + self.images)

    def limits(self, level: float) -> tuple[float, float]:
        """Squares of what Student's two-sided test of that level asks of each part."""
        ends = (t_quantile(1 - level / 2, self.n - 1), quantile(1 - level / 2, self.size - 1))
        return ends[0] ** 2, ends[1] ** 2

    def p(self, mean: float) -> float:
        """The least level at which mean² > seeds·t² + images·t² (Banerjee 1960): never too small, whatever varies."""
        low, high, level = 0.0, math.pi / 2, 1.0  # of the angle whose tangent is t/√(n − 1)
        for _ in range(50):
            middle = (low + high) / 2
            t = math.sqrt(self.n - 1) * math.tan(middle)
            asked = max(2 - 2 * t_cdf(t, self.n - 1), 1e-12)
            if mean**2 > self.seeds * t**2 + self.images * quantile(1 - asked / 2, self.size - 1) ** 2:
                low, level = middle, asked
            else:
                high = middle
        return level

    def power(self, gap: float, limits: tuple[float, float]) -> float:
        """How often a true difference is found: ∫ Φ((gap − √(seeds·t²·s² + images·t²)) / error) f(s) ds.

        s is the estimated spread of seeds over the true one, √(χ²/(n − 1)).
        """
        df = self.n - 1
        low, high = max(0.0, 1 - 8 / math.sqrt(df)), 1 + 8 / math.sqrt(df)
        s = low + (high - low) * (np.arange(200) + 0.5) / 200
        log = (df - 1) * np.log(s) - df * s**2 / 2
        density = np.exp(log - log.max())
        asked = np.sqrt(np.maximum(self.seeds * s**2, self.least) * limits[0] + self.images * limits[1])
        above = np.array([math.erfc((x - gap) / self.standard / math.sqrt(2)) / 2 for x in asked])
        return float((above * density).sum() / density.sum())

    def detectable(self, tests: int = 1) -> float:
        """The least difference that is found four times out of five as the only one of so many tests."""
        limits = self.limits(LEVEL / tests)
        low, high = 0.0, 3 * math.sqrt(self.seeds * limits[0] + self.images * limits[1]) + 10 * self.standard
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if self.power(middle, limits) < POWER else (low, middle)
        return high


def difference(gains: Floats, tests: int = 1) -> Difference:
    """A paired test of seeds × images, both drawn from more.

    The variance of the mean is that of crossed random effects, by the mean squares of seeds, images and their
    interaction: max(S, E) / nN + max(I − E, 0) / nN. Drawing seeds and images anew would count the interaction up to
    three times (Owen 2007, The pigeonhole bootstrap).

    Args:
        gains: (n, N) of each seed and image: 1 where the method alone was right, −1 where the other one was.
        tests: how many of them there are, for the difference that can be detected.
    """
    (n, images), mean = gains.shape, float(gains.mean())
    by_image = gains.mean(axis=0)
    if n < 2 or images < 2:
        alone = float(by_image.std(ddof=1)) / math.sqrt(images) if images > 1 else math.nan
        return Difference(mean, alone, math.nan, math.nan, n)
    by_seed = gains.mean(axis=1)
    rest = gains - by_seed[:, None] - by_image + mean
    least = float((rest**2).sum()) / ((n - 1) * (images - 1)) / gains.size
    of_seeds, of_images = float(by_seed.var(ddof=1)) / n, float(by_image.var(ddof=1)) / images
    error = Error(max(of_seeds, least), max(of_images - least, 0.0), n, images, least)
    if error.standard == 0:
        return Difference(mean, 0.0, float(mean == 0), math.nan, n)
    return Difference(mean, error.standard, error.p(mean), error.detectable(tests), n)


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
