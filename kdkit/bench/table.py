"""From rows to the lines of a table: what stands in one table may be compared, and what may not has a note."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean

import yaml

from kdkit.bench import stats
from kdkit.bench.compare import compared
from kdkit.bench.ledger import newest, tuned_note
from kdkit.bench.published import Published, published
from kdkit.bench.rows import Row, latest, selects
from kdkit.bench.setting import deviations
from kdkit.bench.suite import ALONE, OTHERS, TEACHER
from kdkit.runs.fixes import missing

FEW = {
    1: "one seed: no deviation and no test, and a ratio's interval knows test images alone",
    2: "two seeds: no deviation or test of them says much",
}
SEVERAL = {
    TEACHER: "transfer ratios are of the first",
    ALONE: "the others are compared with the first, and count among the tests",
}


@dataclass(frozen=True)
class Line:
    """A method on one pair; accuracies are shares of 1.

    Attributes:
        method: its name.
        n: how many seeds.
        last: mean and standard deviation of top-1 after the last epoch.
        best: likewise at each run's best epoch, which was chosen on test images.
        published: somebody's number for it.
        delta: points above that, where both were trained alike, for the epoch that it is of.
        gain: its difference to the student alone.
        p: of that, corrected for the number of methods (Holm).
        transfer: the share of the teacher's lead that it got.
        reach: mean epoch at which 95 % of the final accuracy were there.
        minutes: mean over the runs whose whole time is known.
        gigabytes: largest memory of its runs.
        notes: footnotes.
        curves: epochs and top-1 after them, of each run.
    """

    method: str
    n: int
    last: tuple[float, float]
    best: tuple[float, float]
    published: Published | None
    delta: float | None
    gain: stats.Difference | None
    p: float
    transfer: stats.Transfer | None
    reach: float | None
    minutes: float | None
    gigabytes: float | None
    notes: tuple[str, ...]
    curves: tuple[list[list[float]], ...] = ()


@dataclass(frozen=True)
class Block:
    """Lines that may be compared: one pair, one fingerprint.

    Attributes:
        title: the pair and what it was trained on.
        facts: where the numbers come from.
        lines: teacher, student alone, then methods in the order of their first rows.
        notes: footnotes of the whole.
    """

    title: str
    facts: str
    lines: list[Line]
    notes: list[str] = field(default_factory=list)


def blocks(rows: Sequence[Row], shipped: Sequence[Row] = ()) -> list[Block]:
    """A table for each pair and fingerprint.

    Args:
        rows: one's own.
        shipped: kdkit's; those under a fingerprint of one's own rows join them, and say so.
    """
    wanted = {row["fingerprint"] for row in rows}
    groups: dict[tuple[str, ...], list[Row]] = {}
    for row in latest(rows, [row for row in shipped if row["fingerprint"] in wanted]):
        groups.setdefault((row["data"], row["teacher"], row["student"], row["fingerprint"]), []).append(row)
    made = []
    for group, its in groups.items():
        others = sorted(other[3] for other in groups if other[:3] == group[:3] and other != group)
        made.append(_block(newest(its), others))
    return made


def _block(rows: list[Row], others: list[str]) -> Block:
    first = next((row for row in rows if row["method"] != TEACHER), rows[0])
    groups = _grouped(rows)
    alone = next((group for name, group in groups.items() if group[0]["method"] == ALONE), None)
    twins = {group[0]["method"] for name, group in groups.items() if name != group[0]["method"]}
    whose = len({row["suite"] for row in rows}) > 1
    lines = [_line(name, its, alone, its[0]["method"] in twins, whose) for name, its in groups.items()]
    notes = []
    if first["epochs"] != first["protocol_epochs"]:
        word = "shortened" if first["epochs"] < first["protocol_epochs"] else "lengthened"
        notes.append(
            f"a {word} schedule: {_epochs(first)} where the protocol {first['protocol']} has "
            f"{first['protocol_epochs']}; it ranks no methods of the whole one"
        )
    if changes := [text for text in first.get("changes", []) if not _of_method(text)]:
        notes.append(f"the suite overrides the protocol: {', '.join(changes)}")
    if others:
        notes.append(
            f"trained under another protocol (fingerprint {first['fingerprint']}) than the same pair's table under "
            f"{', '.join(others)}: their numbers may not be compared"
        )
    if alone is None:
        notes.append("no row of the student alone: nothing is compared with it")
    elif not any(row["method"] == TEACHER for row in rows):
        notes.append("no row of the teacher: no transfer ratio")
    notes += [*_several(groups), *_test_sets(rows), *_held_out(rows), *_budgets(rows), *_machines(rows)]
    lines = compared(lines, groups)
    title = f"{first['pair']} on {first['data']}, {_epochs(first)}"
    return Block(title, _facts(rows), lines, notes)


def _several(groups: Mapping[str, Sequence[Row]]) -> Iterator[str]:
    """Methods of which there are several recipes, as of a suite whose file has changed between its runs."""
    for method, count in Counter(rows[0]["method"] for rows in groups.values()).items():
        if count > 1:
            told = SEVERAL.get(method, "each counts among the tests")
            yield f"{count} recipes were called {method}, in the order of their first rows: {told}"


def _test_sets(rows: Sequence[Row]) -> Iterator[str]:
    sizes = sorted({row["predictions"]["images"] for row in rows if row.get("predictions")})
    if len(sizes) > 1:
        yield f"scored on test sets of {' and of '.join(map(str, sizes))} images: nothing is compared with anything"
    if lacking := sum(not row.get("predictions") for row in rows):
        which = "none of the rows has" if lacking == len(rows) else f"{lacking} of {len(rows)} rows do not have"
        yield f"{which} the predictions for the test images, by which methods are compared"


def _held_out(rows: Sequence[Row]) -> Iterator[str]:
    if any(map(selects, rows)):
        yield (
            "last and best epoch are of training images that data.val_split holds out, so beside no published number; "
            "Δ alone, p and transfer ratio are of the test images"
        )


def _budgets(rows: Sequence[Row]) -> Iterator[str]:
    trials = {row["method"]: row["tuned"]["trials"] for row in rows if "tuned" in row}
    if len(set(trials.values())) > 1:
        told = ", ".join(f"{method} {count}" for method, count in trials.items())
        yield f"no equal budget: numbers of trials are {told}; `kdkit tune --trials {max(trials.values())}` goes on"


def _machines(rows: Sequence[Row]) -> Iterator[str]:
    if len({_machine(row) for row in rows if row["minutes"] is not None or row["peak_gb"] is not None}) > 1:
        yield "its rows ran on several machines, or beside different numbers of runs: minutes and memory do not compare"


def _grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows by name of their line; one's own come before shipped ones."""
    place = {name: i for i, name in enumerate(dict.fromkeys((TEACHER, ALONE, *map(_base, rows))))}
    order = sorted(rows, key=lambda row: (place[_base(row)], "tuned" in row))
    names: dict[str, list[str]] = {}
    groups: dict[str, list[Row]] = {}
    for row in order:
        variants = names.setdefault(row["method"], [])
        if row["variant"] not in variants:
            variants.append(row["variant"])
        i = variants.index(row["variant"])
        groups.setdefault(f"{row['method']} ({i + 1})" if i else row["method"], []).append(row)
    return groups


def _line(name: str, rows: list[Row], alone: list[Row] | None, twin: bool, whose: bool) -> Line:
    first, node = rows[0], rows[0]["node"]
    notes = []
    written, ends = first.get("written"), (first["data"], first["teacher"], first["student"])
    theirs = None if written or selects(first) else published(*ends, first["method"])
    last, best = ([row[word][node]["top1"] for row in rows] for word in ("last", "best"))
    delta = None
    if theirs is not None and theirs.epochs != first["epochs"]:
        notes.append(f"published for {theirs.epochs} epochs, trained for {first['epochs']} here")
    if theirs is not None and (off := deviations(first, theirs)):
        notes.append(f"not trained as published: {', '.join(off)}")
    elif theirs is not None and theirs.epochs == first["epochs"]:
        delta = 100 * mean(best if theirs.epoch == "best" else last) - theirs.top1
    if len(rows) in FEW and first["method"] != TEACHER:
        notes.append(FEW[len(rows)])
    size, usual = first["parameters"], alone[0]["parameters"] if alone else first["parameters"]
    if size > usual and first["method"] != TEACHER:
        notes.append(f"its student has {size:,} parameters, alone {usual:,} ({100 * (size / usual - 1):+.1f} %)")
    own = [text for text in first.get("changes", []) if _of_method(text)]
    if twin or own or written:
        suites = sorted({row["suite"] for row in rows})
        why = f"of suite {', '.join(suites)}; " if twin and whose else ""
        why += f"the suite overrides {', '.join(own)}; " if own else "a method of the suite's own; " if written else ""
        notes.append(f"{why}{_method(first)}")
    for fix in dict.fromkeys(fix for row in rows for fix in missing(row)):
        older = sum(fix in missing(row) for row in rows)
        notes.append(f"{older} of its {len(rows)} runs are older than a fix: {fix}")
    if again := sum("again" in row for row in rows):
        notes.append(f"{again} of its {len(rows)} runs have earlier rows with another accuracy; the last ones count")
    if "tuned" in first:
        notes.append(tuned_note(first))
    if shipped := sum("shipped" in row for row in rows):
        notes.append(f"{shipped} of its {len(rows)} runs came with kdkit" if shipped < len(rows) else "came with kdkit")
    reach = [stats.epochs_to(row["curve"]) for row in rows]
    return Line(
        name,
        len(rows),
        stats.spread(last),
        stats.spread(best),
        theirs,
        delta,
        None,
        math.nan,
        None,
        _mean(reach),
        _mean(row["minutes"] for row in rows),
        max((row["peak_gb"] for row in rows if row["peak_gb"] is not None), default=None),
        tuple(notes),
        tuple(row["curve"] for row in rows),
    )


def _facts(rows: Sequence[Row]) -> str:
    first = rows[0]
    commits = sorted({str(row["commit"] or f"kdkit {row['versions']['kdkit']}") for row in rows})
    machines = sorted({_machine(row) for row in rows})
    return (
        f"protocol {first['protocol']}, fingerprint {first['fingerprint']}; commit {', '.join(commits)}; "
        f"torch {', '.join(sorted({row['versions']['torch'] for row in rows}))}; {'; '.join(machines)}"
    )


def _machine(row: Row) -> str:
    told = row["machine"]
    threads = f"{told['threads']} thread{'s' * (told['threads'] != 1)}"
    beside = f", {width} runs side by side" if (width := row.get("side_by_side", 1)) > 1 else ""
    return (", ".join(told["gpus"]) or f"{told['processor']}, {threads}") + beside


def _base(row: Row) -> str:
    """Its method as published, beside which a tuned one stands."""
    return str(row["tuned"]["of"] if "tuned" in row else row["method"])


def _epochs(row: Row) -> str:
    return f"{row['epochs']} epoch{'s' * (row['epochs'] != 1)}"


def under(row: Row) -> str:
    """What a row may be compared under: `resnet20 → resnet8 under digits_20, 5 epochs, data.subset=512`."""
    changes = [text for text in row.get("changes", []) if not _of_method(text)]
    return ", ".join([f"{row['teacher']} → {row['student']} under {row['protocol']}", _epochs(row), *changes])


def _of_method(override: str) -> bool:
    path = override.partition("=")[0].split(".")
    return path[0] in ("losses", *OTHERS) or (path[0] == "models" and path[1:2] not in ([ALONE], [TEACHER]))


def _method(row: Row) -> str:
    """What a method is: its losses, and what else its recipe has beside those that all have."""
    whole = yaml.safe_load(row["recipe"])
    further = {name: words for name, words in whole.get("models", {}).items() if name not in (ALONE, TEACHER)}
    told = {"losses": whole["losses"], "further models": further}
    told |= {word: whole[word] for word in OTHERS if word in whole}
    return "; ".join(f"{word}: {said}" for word, said in told.items() if said).replace("'", "")


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None
