"""What the figures of speed are asked to be, and what the rows say of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Rows = Sequence[Row]
Quartiles = list[float]
Figure = Callable[[Rows], Quartiles | None]


def select(rows: Iterable[Row], **words: Any) -> list[Row]:
    """Rows that say this."""
    return [row for row in rows if all(row.get(word) == value for word, value in words.items())]


def spread(quartiles: Quartiles, unit: str = "×") -> str:
    """The median and, where they differ, the quartiles."""
    low, middle, high = (f"{value:.3g}" for value in quartiles)
    return f"{middle}{unit}" + (f" ({low}–{high})" if low != high else "")


def ratio(than: str, **words: Any) -> Figure:
    """Another's time to kdkit's, in the one row that these words mean."""

    def figure(rows: Rows) -> Quartiles | None:
        return next((row["faster"][than] for row in select(rows, **words) if than in row.get("faster", {})), None)

    return figure


def memory(rows: Rows) -> Quartiles | None:
    """Kdkit's peak to RepDistiller's in the CRD loss, fp32 banks."""
    crd = select(rows, bench="losses", loss="crd", batch=64, device="cpu")
    ours, theirs = (select(crd, contender=name) for name in ("kdkit sampled float32", "repdistiller"))
    return [ours[0]["peak_mb"] / theirs[0]["peak_mb"]] * 3 if ours and theirs else None


def by_hand(device: str) -> Figure:
    """Kdkit's time to that of a loop by hand, where it is worst."""

    def figure(rows: Rows) -> Quartiles | None:
        steps = select(rows, bench="step", device=device, teacher="live", precision=None, contender="kdkit")
        found = [[1 / value for value in reversed(row["faster"]["by hand"])] for row in steps]
        return max(found, key=lambda quartiles: quartiles[1], default=None)

    return figure


def imagenet(rows: Rows) -> Quartiles | None:
    """GB beyond the banks, at most, of the CRD loss."""
    found = [row["peak_mb"] * 2**20 / 1e9 for row in select(rows, axis="samples", value=1_281_167, device="cpu")]
    return [max(found)] * 3 if found else None


def minutes(teacher: str) -> Figure:
    """240 epochs of the CRD run, from one."""

    def figure(rows: Rows) -> Quartiles | None:
        words = {"bench": "epoch", "method": "crd", "teacher": teacher, "device": "cuda", "contender": "kdkit"}
        found = select(rows, images=None, **words)
        return [240 * ms * found[0]["steps"] / 6e4 for ms in found[0]["ms"]] if found else None

    return figure


def eight(rows: Rows) -> Quartiles | None:
    """Students trained a second, eight in one process to one."""
    times = [row["ms"][1] for n in (1, 8) for row in select(rows, axis="students", value=n, device="cuda")]
    return [8 * times[0] / times[1]] * 3 if len(times) == 2 else None


@dataclass(frozen=True)
class Bar:
    """What is asked for: at least, or at most, this figure."""

    what: str
    where: str
    limit: float
    figure: Figure
    least: bool = True
    unit: str = "×"

    def lines(self, rows: Rows) -> list[str]:
        """Of the table: one for each machine that it was looked at on."""
        head = f"| {self.what} | {self.where} | {'≥' if self.least else '≤'} {self.limit:g}{self.unit} | "
        lines = []
        for machine in dict.fromkeys(row.get("machine", "") for row in rows):
            if (found := self.figure([row for row in rows if row.get("machine", "") == machine])) is not None:
                met = found[1] >= self.limit if self.least else found[1] <= self.limit
                lines.append(head + f"{machine} | {spread(found, self.unit)} | {'yes' if met else '**no**'} |")
        return lines or [head + "| not yet run | |"]


def bars() -> list[Bar]:
    """All of them."""
    loss: Row = {"bench": "losses", "device": "cpu"}
    crd = {"sampled float32": 15, "sampled bfloat16": 20, "shared float32": 30, "shared bfloat16": 40}
    found = [
        Bar(
            f"CRD loss, {variant} banks: RepDistiller's time to kdkit's",
            "CPU, B = 64",
            limit,
            ratio("repdistiller", **loss, loss="crd", batch=64, contender=f"kdkit {variant}"),
        )
        for variant, limit in crd.items()
    ]
    angle = ratio("plain torch", **loss, loss="rkd_angle", batch=128, shape="512", contender="kdkit")
    nst = ratio("plain torch", **loss, loss="nst", batch=64, shape="64x32x32", contender="kdkit")
    found += [
        Bar("CRD loss, sampled float32 banks: memory to RepDistiller's", "CPU, B = 64", 0.1, memory, least=False),
        Bar("RKD angle: the broadcast form's time to kdkit's", "CPU, B = 128, D = 512", 15, angle),
        Bar("NST: the broadcast form's time to kdkit's", "CPU, 64×64×32²", 30, nst),
    ]
    for method, *limits in (("kd", 2.2, 4.4), ("crd", 6, 9), ("crd shared", 8, 13)):
        for teacher, limit in zip(("live", "cached"), limits, strict=True):
            words = {"bench": "step", "device": "cpu", "method": method, "teacher": teacher, "contender": "kdkit"}
            words["precision"] = None  # mixed
            what = f"step, {method}, {teacher} teacher: RepDistiller's time to kdkit's"
            found.append(Bar(what, "CPU, one run", limit, ratio("repdistiller", **words)))
    theirs = ratio(
        "repdistiller", bench="epoch", method="crd", device="cuda", teacher="live", contender="kdkit", images=None
    )
    run = "crd, 240 epochs without evaluation, {} teacher"
    return [
        *found,
        Bar("step: kdkit's time to a loop by hand, worst method", "CPU", 1.03, by_hand("cpu"), least=False),
        Bar("step: kdkit's time to a loop by hand, worst method", "GPU", 1.03, by_hand("cuda"), least=False),
        Bar("CRD loss, n = 1,281,167, B = 256: most beyond the banks", "CPU", 1.5, imagenet, least=False, unit=" GB"),
        Bar(run.format("live"), "H200", 5, minutes("live"), least=False, unit=" min"),
        Bar(run.format("cached"), "H200", 4, minutes("cached"), least=False, unit=" min"),
        Bar("epoch, crd: RepDistiller's time to kdkit's", "H200", 10, theirs),
        Bar("eight students at once: throughput to one's", "H200", 3, eight),
    ]
