"""Cohorts that are restarted at random instants, while models come, go and fall sick: every run ends rightly."""

import csv
import os
import random
import signal
import time

import pytest

from kdkit.runs.folder import RunFolder
from tests.runs.killing import CONTEXT, equal, finish, held, kill
from tests.runs.soaking import EPOCHS, NAMES, STEPS, WRONG, draw, work

MINUTES = 30 if os.environ.get("KDKIT_NIGHTLY") == "1" else 0
FLOOR = 0.6  # top-1 of who is there from the first step to the last and whom nothing befalls; a guess is right in 0.1
SEED = 10  # of the one run that there is by day: with everything in it
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGUSR1)


class Lives:
    """Runs in a folder, and what came of all of them together."""

    def __init__(self, folder):
        self.folder, self.seconds = folder, 0.0
        words = ("runs", "restarts", "joins", "leaves", "faults", "treated", "tracebacks", "compared to the bit")
        self.count, self.lowest = dict.fromkeys(words, 0), 1.0

    def run(self, life, name, instants=()):
        """One run to its end, through signals after so many seconds; its folder."""
        place = self.folder / name
        place.mkdir()
        recipe, out, said = place / "r.yaml", place / "run", place / "said.txt"
        recipe.write_text(life.recipe)
        (place / "wrong.py").write_text(WRONG)
        instants = list(instants)
        while not RunFolder(out).complete:
            words = ["fit", str(recipe), "--out", str(out), "--resume"]
            process = CONTEXT.Process(target=work, args=(life.faults, words, str(said)))
            process.start()
            if instants:
                number, seconds = instants.pop()
                self.count["restarts"] += kill(process, seconds, number=number)
            else:
                assert finish(process) == 0, said.read_text()
        text = said.read_text()
        self.count["tracebacks"] += text.count("Traceback")
        assert "Traceback" not in text, text
        assert "error:" not in text, text
        return RunFolder(out)

    def judge(self, life, run):
        """Every row is whole, who was well is well, and what was planned happened."""
        with run.metrics.open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert [(int(row["epoch"]), int(row["step"])) for row in rows] == [(e, e * STEPS) for e in range(1, EPOCHS + 1)]
        words = [*(f"cohort/{name}" for name in NAMES), *(f"val/{name}/top1" for name in NAMES)]
        assert all(row[word] for row in rows for word in [*words, *(f"health/nll/{name}" for name in life.well)])
        well = [float(rows[-1][f"val/{name}/top1"]) for name in life.well]
        self.lowest = min(self.lowest, *well)
        assert min(well) > FLOOR, dict(zip(life.well, well, strict=True))
        events = []
        if run.cohort.exists():
            with run.cohort.open(newline="") as file:
                events = [(row["model"], row["what"]) for row in csv.DictReader(file)]
        for name, (kind, *_) in life.faults.items():
            there = all(float(row[f"cohort/{name}"]) == 1 for row in rows)
            assert kind != "nan" or not there or {(name, "roll back"), (name, "rebuild")} & set(events)
        self.count["runs"] += 1
        self.count["faults"] += len(life.faults)
        self.count["joins"] += sum(what == "joins" for _, what in events)
        self.count["leaves"] += sum(what == "leaves" for _, what in events)
        self.count["treated"] += sum(what in ("lower", "roll back", "rebuild") for _, what in events)


@pytest.fixture(scope="module")
def lives(tmp_path_factory):
    found, since = Lives(tmp_path_factory.mktemp("lives")), time.monotonic()
    yield found
    told = [f"{number} {word}" for word, number in found.count.items()]
    told.append(f"lowest top-1 of who was well {100 * found.lowest:.0f} %")
    print(f"\nfigure: {(time.monotonic() - since) / 60:.1f} minutes: {', '.join(told)}")


def test_runs_that_are_restarted_end_rightly(lives):
    """Every third one is compared with the same run that nothing interrupted."""
    first, end = random.randrange(10**6) if MINUTES else SEED, time.monotonic() + 60 * MINUTES
    seconds, number = 10.0, 0
    while number == 0 or time.monotonic() < end:
        seed, made = first + number, random.Random(first + number)
        life, since = draw(seed), time.monotonic()
        whole = None
        if number % 3 == 0:
            whole = lives.run(life, f"{seed}-whole")
            lives.judge(life, whole)
            seconds = time.monotonic() - since
        often = made.randint(1, 3) if MINUTES else 1
        instants = [(made.choice(SIGNALS), made.uniform(0.1, seconds)) for _ in range(often)]
        run = lives.run(life, str(seed), instants)
        lives.judge(life, run)
        if whole is not None:
            lives.count["compared to the bit"] += 1
            assert run.cohort.exists() == whole.cohort.exists()
            assert not whole.cohort.exists() or run.cohort.read_text() == whole.cohort.read_text()
            assert all(equal(a, b) for a, b in zip(held(run.path), held(whole.path), strict=True)), f"seed {seed}"
        number += 1
