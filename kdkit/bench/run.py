"""Running a suite: what begins next, rows as they come, a budget, and whatever fails told at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

from kdkit.bench.dry import distinct, refused
from kdkit.bench.engines import Answer, Engine
from kdkit.bench.expand import Cell, expand
from kdkit.bench.job import Job
from kdkit.bench.live import Running, State
from kdkit.bench.plan import Plan
from kdkit.bench.rows import append, check_writable, place, read_rows
from kdkit.bench.suite import Read

ENDING = "-tuned"  # of the name of a method whose values were tuned
TEACHERLESS = "its teacher failed"
UNSCORED = "it was never scored, so it has no row: there must be labelled test images, and limit_val_batches not 0"


@dataclass
class Outcome:
    """What became of a suite.

    Attributes:
        done: runs that came to their end now.
        failed: sentences about those that did not, by run.
        left: runs that the budget left.
        keys: of all its runs, also those whose rows stood already.
    """

    done: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left: int = 0
    keys: set[tuple[str, str]] = field(default_factory=set)


def after(hours: float | None) -> float | None:
    """The time of `monotonic()` after so many hours from now; None: never."""
    return None if hours is None else monotonic() + 3600 * hours


def results_of(out: Path, results: Path | None) -> Path:
    """The file of rows; left out: in the suite's folder."""
    return results or out / "results.jsonl"


def named(cell: Cell) -> str:
    """What a run is called in sentences."""
    return f"{cell.pair} {cell.method} seed {cell.seed}"


def make_plan(suite: Read, out: Path, results: Path) -> Plan:
    """Every run of a suite beside the rows that there are."""
    return Plan.of(expand(suite, out / "teachers"), read_rows(results) if results.exists() else [])


def run_suite(
    suite: Read,
    out: Path,
    results: Path,
    *,
    hours: float | None,
    engine: Engine,
    tell: Callable[[str], None],
    watch: Callable[[State], None] | None = None,
) -> Outcome:
    """Run what has no row yet: `run_plan` of the whole suite, after a dry run of it where the engine runs here.

    Args:
        suite: the suite.
        out: folder of its runs.
        results: file of rows.
        hours: after which nothing begins and what trains is stopped; the same call goes on with it later.
        engine: where the runs run.
        tell: called with a line whenever something happens.
        watch: called every second with what runs.

    Raises:
        RecipeError: the suite or one of its recipes is wrong.
        KeyboardInterrupt: Ctrl-C; every run has saved what it had.
    """
    deadline = after(hours)
    plan = make_plan(suite, out, results)
    check_writable(results)
    plan, wrong = without_the_wrong(plan, suite, out, engine, tell)
    outcome = run_plan(plan, suite, out, results, deadline=deadline, engine=engine, tell=tell, watch=watch)
    outcome.failed = wrong | outcome.failed
    return outcome


def cannot_run(plan: Plan, suite: Read, out: Path) -> Iterator[tuple[Cell, str]]:
    """What of a plan cannot run, a cell for each pair and method, and why, as soon as it is known.

    What is trained already, and only lacks its row, is not looked at.
    """
    yield from refused(distinct(_untrained(plan, suite, out)))


def without_the_wrong(
    plan: Plan, suite: Read, out: Path, engine: Engine, tell: Callable[[str], None]
) -> tuple[Plan, dict[str, str]]:
    """A plan without what cannot run, and sentences about that by run; all of it where runs are elsewhere."""
    if engine.elsewhere:
        return plan, {}
    if plan.left:
        tell("looking for what cannot run, before anything is trained")
    wrong: dict[tuple[str, str], str] = {}
    lost: set[str | None] = set()
    for cell, why in cannot_run(plan, suite, out):
        tell(f"{cell.pair} {cell.method} cannot run: {why}")
        wrong[cell.pair, cell.method] = why
        lost.add(cell.content)
    left = _untrained(plan, suite, out)
    told = {cell.key: wrong.get((cell.pair, cell.method)) or (cell.needs in lost and TEACHERLESS) for cell in left}
    cells = [cell for cell in plan.cells if not told.get(cell.key)]
    return Plan(cells, plan.rows), {named(cell): str(told[cell.key]) for cell in left if told[cell.key]}


def run_plan(
    plan: Plan,
    suite: Read,
    out: Path,
    results: Path,
    *,
    deadline: float | None,
    engine: Engine,
    tell: Callable[[str], None],
    watch: Callable[[State], None] | None = None,
) -> Outcome:
    """Run what a plan has no row of.

    Args:
        plan: what is wanted, and the rows of `results`.
        suite: the suite.
        out: folder of its runs.
        results: file of rows.
        deadline: as `after` gives it; nothing begins from then on, and what trains is stopped.
        engine: where the runs run.
        tell: called with a line whenever something happens.
        watch: called every second with what runs.

    Raises:
        KeyboardInterrupt: Ctrl-C; every run has saved what it had.
    """
    return _Runner(plan, suite, out, results, engine, tell, watch or (lambda _: None)).run(deadline)


def _untrained(plan: Plan, suite: Read, out: Path) -> list[Cell]:
    cells = [cell for cell in plan.left if plan.elsewhere(cell) is None]
    return [cell for cell in cells if not _job(cell, suite, out).folder.complete]


def _job(cell: Cell, suite: Read, out: Path, engine: Engine | None = None) -> Job:
    threads, width = (1, 1) if engine is None else (engine.threads, engine.width)
    return Job(cell, suite.name, suite.folder, out.absolute(), threads, width)


class _Runner:
    def __init__(
        self,
        plan: Plan,
        suite: Read,
        out: Path,
        results: Path,
        engine: Engine,
        tell: Callable[[str], None],
        watch: Callable[[State], None],
    ) -> None:
        self.suite, self.out, self.results = suite, out.absolute(), results
        self.engine, self.tell, self.watch = engine, tell, watch
        self.plan = plan
        self.waiting = self.plan.left
        self.total = len(self.waiting)
        self.running: dict[tuple[str, str], Running] = {}
        self.outcome = Outcome(keys={cell.key for cell in plan.cells})

    def run(self, deadline: float | None) -> Outcome:
        self._rename()
        try:
            while self.waiting or self.running:
                if deadline is not None and monotonic() >= deadline:
                    self._stop()
                    break
                while self.engine.room() > 0 and (cell := self._next()):
                    self._begin(cell)
                if self.running:
                    self.watch(self._state())
                    for answer in self.engine.answers(deadline):
                        self._end(answer)
        except BaseException:
            self._stop()
            raise
        self.outcome.left = len(self.plan.left) - len(self.outcome.failed)
        return self.outcome

    def _state(self) -> State:
        left = self.plan.estimate(self.engine.width)
        return State(list(self.running.values()), self.outcome.done, len(self.outcome.failed), left)

    def _next(self) -> Cell | None:
        """The first run whose teacher is there; one whose teacher failed fails with it."""
        coming = {c.content for c in self.waiting} | {content for content, _ in self.running}
        for cell in list(self.waiting):
            if (row := self.plan.elsewhere(cell)) is not None:
                self.waiting.remove(cell)
                plain = {word: value for word, value in row.items() if word != "tuned"}
                same = f"the same run as {row['pair']} {row['method']}"
                self._keep(cell, {**plain, **place(cell, self.suite.name)}, same)
            elif cell.needs is None or any(c == cell.needs for c, _ in self.plan.rows):
                self.waiting.remove(cell)
                return cell
            elif cell.needs not in coming:
                self.waiting.remove(cell)
                self._fail(cell, TEACHERLESS)
        return None

    def _rename(self) -> None:
        """Rows of this suite whose method or pair has another name in it now get that one, and so do the tuned ones."""
        mine = [row for row in self.plan.rows.values() if row["suite"] == self.suite.name]
        now: dict[tuple[str, str], Cell] = {}
        try:
            for cell in self.plan.cells:
                row = self.plan.rows.get(cell.key)
                if row in mine and (row["pair"], row["method"]) != (cell.pair, cell.method):
                    append(self.results, {**row, **place(cell, self.suite.name)})
                    self.tell(f"{named(cell)}: the run that was {row['pair']} {row['method']}")
                    now[row["pair"], row["method"]] = cell
            for row in mine:
                of = now.get((row["pair"], row["tuned"]["of"])) if "tuned" in row else None
                if of is not None and "tuned" not in of.told:
                    name, how = f"{of.method}{ENDING}", {**row["tuned"], "of": of.method}
                    append(self.results, {**row, "pair": of.pair, "method": name, "tuned": how})
        except OSError as error:
            self.tell(f"some runs keep their old names for now: {self.results} cannot be written ({error.strerror})")

    def _begin(self, cell: Cell) -> None:
        job = _job(cell, self.suite, self.out, self.engine)
        state = " is trained already" if job.folder.complete else " goes on" if job.folder.begun else ""
        self.running[cell.key] = Running(job, self.plan.seconds(cell))
        self.tell(f"{named(cell)}{state}: {cell.recipe.trainer.max_epochs} epochs, log {job.log}")
        self.engine.begin(job)

    def _end(self, answer: Answer) -> None:
        cell = answer.job.cell
        del self.running[cell.key]
        if answer.word == "done" and "top1" not in answer.what["last"].get(cell.node, {}):
            self._fail(cell, UNSCORED)
        elif answer.word == "done":
            self._keep(cell, answer.what)
        elif answer.word == "failed":
            self._fail(cell, answer.what)
        else:
            self.tell(f"{named(cell)} stopped: {answer.what}")

    def _keep(self, cell: Cell, row: dict[str, Any], note: str = "") -> None:
        try:
            append(self.results, row)
        except OSError as error:
            self._fail(
                cell, f"{self.results} cannot be written ({error.strerror}); the run stands, and gets its row later"
            )
            return
        self.plan = Plan(self.plan.cells, {**self.plan.rows, cell.key: row})
        self.outcome.done += 1
        top1 = 100 * row["last"][row["node"]]["top1"]
        minutes = note or (f"{row['minutes']:.1f} m" if row.get("minutes") is not None else "resumed")
        left = self.plan.estimate(self.engine.width)
        self.tell(f"{named(cell)}: {top1:.2f} %, {minutes} ({self.outcome.done} of {self.total}; {left})")

    def _fail(self, cell: Cell, why: str) -> None:
        self.outcome.failed[named(cell)] = why
        self.tell(f"{named(cell)} FAILED: {why}")

    def _stop(self) -> None:
        for answer in self.engine.stop():
            self._end(answer)
