"""Equal budget: every method of a suite gets the same number of trials, and its best one is trained on everything."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from kdkit import draws
from kdkit.bench.engines import Engine
from kdkit.bench.expand import Cell, reseeded
from kdkit.bench.live import State
from kdkit.bench.plan import Plan
from kdkit.bench.rows import Row, append, check_writable, read_rows
from kdkit.bench.run import ENDING, TEACHERLESS, Outcome, after, make_plan, named, run_plan, without_the_wrong
from kdkit.bench.space import Dimension, check_optuna, space, suggest
from kdkit.bench.suite import TEACHER, Read
from kdkit.recipe import content_key, loads, resolved

HELD_OUT = 0.1  # of the training images, class by class: 45,000 and 5,000 of CIFAR's


@dataclass(frozen=True)
class Study:
    """One method on one pair, and what is moved of it.

    Attributes:
        cell: its run as published, with the suite's first seed.
        dimensions: what is moved.
    """

    cell: Cell
    dimensions: list[Dimension]

    @property
    def key(self) -> str:
        """A hash of all that its trials have in common; others are another study's."""
        ends = [(d.word, d.low, d.high) for d in self.dimensions]
        words = [self.cell.content, self.cell.column, HELD_OUT, ends]
        return hashlib.blake2b(json.dumps(words).encode(), digest_size=8).hexdigest()

    def trials(self, rows: Iterable[Row]) -> list[Row]:
        """Its trials in the ledger, in order."""
        mine = {row["trial"]: row for row in rows if row.get("study") == self.key}
        return [mine[i] for i in sorted(mine)]

    def next(self, rows: Iterable[Row]) -> Cell:
        """The trial after those of the ledger."""
        done = self.trials(rows)
        known = [(row["values"], score(row)) for row in done]
        values = suggest(self.dimensions, known, draws.key(self.cell.seed, self.key, len(done)))
        told = {"trial": len(done), "study": self.key, "values": values}
        held = {"data.val_split": HELD_OUT}
        if subset := self.cell.recipe.data.arguments.get("subset"):
            held["data.subset"] = max(1, int(subset * (1 - HELD_OUT)))
        return self._run({**self._moved(values), **held}, needs=None, told=told)

    def winner(self, rows: Iterable[Row], count: int) -> Cell:
        """The best of its first trials, on all training images."""
        done = self.trials(rows)[:count]
        best = max(done, key=score)
        words = {"trials": len(done), "trial": best["trial"], "score": score(best), "values": best["values"]}
        told = {"tuned": {"of": self.cell.method, "study": self.key, **words}}
        return self._run(self._moved(best["values"]), method=self.cell.method + ENDING, told=told)

    def _moved(self, values: dict[str, float]) -> dict[str, float]:
        """What is not as the recipe has it: where nothing is, the run is the published one."""
        return {d.word: values[d.word] for d in self.dimensions if values[d.word] != d.usual}

    def _run(self, values: dict[str, float], **words: object) -> Cell:
        """Its run with other values in the recipe."""
        plain = self.cell.recipe
        overrides = [f"{word}={json.dumps(value)}" for word, value in values.items()]
        name, of = plain.name, plain.origin
        recipe = loads(resolved(plain), name=name, folder=of.folder, overrides=overrides, lines=of.tree)
        return replace(self.cell, recipe=recipe, content=content_key(recipe), **words)  # type: ignore[arg-type]


def score(row: Row) -> float:
    """Top-1 on the held-out images after a trial's last epoch."""
    return float(row["last"][row["node"]]["top1"])


def ledger_of(results: Path) -> Path:
    """The file of trials beside the file of rows."""
    return results.with_suffix(".trials.jsonl")


def tune(
    suite: Read,
    out: Path,
    results: Path,
    *,
    trials: int,
    hours: float | None,
    engine: Engine,
    tell: Callable[[str], None],
    watch: Callable[[State], None] | None = None,
) -> Outcome:
    """Give every method its trials, then train what was published and what was found, on all seeds.

    A trial sees 90 % of the training images and is scored on the others; no test image is read for it. The first one
    is the recipe as it is. The n-th trials of all methods come before any (n+1)-th, and each follows from those before
    it: a stop changes nothing.

    Args:
        suite: the suite.
        out: folder of its runs; trials lie in `trials` inside it.
        results: file of rows; trials are in another one beside it.
        trials: of every method.
        hours: after which nothing begins and what trains is stopped; the same call goes on with it later.
        engine: where the runs run.
        tell: called with a line whenever something happens.
        watch: called every second with what runs.

    Raises:
        KdkitError: Optuna is not installed, or the suite or one of its recipes is wrong.
        KeyboardInterrupt: Ctrl-C; every run has saved what it had.
    """
    check_optuna()
    deadline = after(hours)
    plan = make_plan(suite, out, results)
    check_writable(results)
    plan, wrong = without_the_wrong(plan, suite, out, engine, tell)
    cells, ledger = plan.cells, ledger_of(results)
    first = [cell for cell in cells if cell.method != TEACHER and cell.seed == suite.seeds[0]]
    studies = [study for cell in first if (study := Study(cell, space(cell.recipe))).dimensions]
    for cell in (cell for cell in first if cell not in [study.cell for study in studies]):
        tell(f"{cell.pair} {cell.method}: nothing to tune")
    whole = Outcome(failed=dict(wrong), keys={cell.key for cell in cells})

    def run(wanted: Sequence[Cell], rows: Path, folder: Path) -> int:
        plan = Plan.of(wanted, _rows(rows))
        found = run_plan(plan, suite, folder, rows, deadline=deadline, engine=engine, tell=tell, watch=watch)
        whole.done += found.done
        whole.keys |= found.keys
        whole.failed.update(found.failed)
        return found.left

    def everything() -> int:
        missing = sum(max(trials - len(study.trials(_rows(ledger))), 0) for study in studies)
        return missing + len(studies) * len(suite.seeds) + len(Plan.of(cells, _rows(results)).left)

    teachers = [cell for cell in cells if cell.method == TEACHER]
    if run(teachers, results, out):
        whole.left = everything()
        return whole
    lost = {cell.content for cell in Plan.of(teachers, _rows(results)).left}
    whole.failed |= {named(cell): TEACHERLESS for cell in cells if cell.needs in lost}
    cells = [cell for cell in cells if not {cell.needs, cell.content} & lost]
    studies = [study for study in studies if study.cell.needs not in lost]
    for number in range(trials):
        rows = _rows(ledger)
        asked = [study.next(rows) for study in studies if len(study.trials(rows)) == number]
        for cell in list(asked):
            same = [row for row in rows if row.get("study") == cell.told["study"] and row["content"] == cell.content]
            if same:  # the sampler came back to values that were tried
                append(ledger, {**same[0], **cell.told})
                asked.remove(cell)
        if asked:
            tell(f"trial {number + 1} of {trials}, methods: {len(asked)}")
        if run(asked, ledger, out / "trials"):
            whole.left = everything()
            return whole
    rows = _rows(ledger)
    found = []
    for study in studies:
        tried = study.trials(rows)[:trials]
        if len(tried) == trials and all("why" in row for row in tried):
            tell(f"{study.cell.pair} {study.cell.method}: no trial stayed finite, so there is nothing to train on")
        elif len(tried) == trials:  # others have failed
            found.append(study.winner(rows, trials))
    whole.left = run(_beside(cells, found, suite.seeds), results, out)
    return whole


def _beside(cells: Sequence[Cell], winners: Sequence[Cell], seeds: Sequence[int]) -> list[Cell]:
    """All cells of a suite, after those of each seed the winners with it."""
    order = [cell for cell in cells if cell.method == TEACHER]
    for seed in seeds:
        order += [cell for cell in cells if cell.method != TEACHER and cell.seed == seed]
        order += [cell if cell.seed == seed else reseeded(cell, seed) for cell in winners]
    return order


def _rows(path: Path) -> list[Row]:
    return read_rows(path) if path.exists() else []
