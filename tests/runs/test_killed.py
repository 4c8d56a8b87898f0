"""Stopped at any instant, also while a checkpoint is written, and resumed: to the bit what nothing happened to."""

import os
import random
import signal
import time
from functools import partial

import pytest

from kdkit.runs import fit as fitting
from kdkit.runs.fit import fit
from kdkit.runs.folder import RunFolder
from kdkit.runs.interrupt import Interrupted
from kdkit.runs.resume import standing
from kdkit.storage import OURS
from tests.runs.killing import CONTEXT, RECIPES, begin, equal, finish, held, kill, recipe

NIGHTLY = os.environ.get("KDKIT_NIGHTLY") == "1"
KILLS = 24 if NIGHTLY else 1
FIGURES = {}


@pytest.fixture(scope="module", autouse=True)
def _figures():
    yield
    for name, words in FIGURES.items():
        print(f"\nfigure: {name}: {words}", end="")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """`whole(name)`: what the run of a recipe comes to that nothing happens to."""
    found, home = {}, tmp_path_factory.mktemp("home")

    def make(name):
        if name not in found:
            out = tmp_path_factory.mktemp("whole") / "run"
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("KDKIT_HOME", str(home))
                fit(recipe(name), out=out)
            found[name] = held(out)
        return found[name]

    return make


def same(out, wanted, name):
    for part, right, found in zip(("weights", "rows", "figures", "state"), wanted, held(out), strict=True):
        assert equal(right, found), f"{name}: {part}"


def writing(out):
    parts = out / "checkpoints"
    return parts.is_dir() and any(file.startswith(OURS) for file in os.listdir(parts))


@pytest.fixture(scope="module")
def seconds(tmp_path_factory):
    """How long a run takes in a process of its own."""
    folder = tmp_path_factory.mktemp("timed")
    warm = CONTEXT.Process()  # the server of processes starts with the first
    warm.start()
    assert finish(warm) == 0
    since = time.monotonic()
    assert finish(begin("crd", folder / "run", folder / "home")) == 0
    return time.monotonic() - since


@pytest.mark.parametrize("name", RECIPES if NIGHTLY else ["crd", "dml", "several teachers"])
def test_killed_and_gone_on_with(name, tmp_path, whole, seconds):
    """A third of the instants by chance, a third while a checkpoint is written, a third by signals that save."""
    wanted = whole(name)
    made, home = random.Random(None if NIGHTLY else name), tmp_path / "home"
    kills, runs, first = 0, 0, made.randrange(3)
    while kills < KILLS:
        out, runs = tmp_path / f"run{runs}", runs + 1
        while not RunFolder(out).complete:
            if kills >= KILLS:
                assert finish(begin(name, out, home)) == 0
            elif (kills + first) % 3 == 1:
                kills += kill(begin(name, out, home), until=partial(writing, out))
            else:
                by = signal.SIGKILL if (kills + first) % 3 == 0 else made.choice([signal.SIGTERM, signal.SIGUSR1])
                kills += kill(begin(name, out, home), seconds=made.uniform(0.05, seconds), number=by)
        same(out, wanted, name)
    FIGURES[name] = f"{kills} instants, {runs} runs, all bit-identical"


@pytest.fixture
def signalled(monkeypatch):
    """`signalled(number, epoch, batch)`: the next run gets a signal at the beginning of that step."""
    before = signal.getsignal(signal.SIGINT)

    def at(number, epoch, batch):
        def patched(experiment, folder, rows):
            distiller, trainer = assemble(experiment, folder, rows)
            step = distiller.training_step

            def training_step(data, batch_idx):
                if (trainer.current_epoch, batch_idx) == (epoch, batch):
                    os.kill(os.getpid(), number)
                step(data, batch_idx)

            monkeypatch.setattr(distiller, "training_step", training_step)
            return distiller, trainer

        assemble = fitting.assemble
        monkeypatch.setattr(fitting, "assemble", patched)

    yield at
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("name", RECIPES)
def test_a_signal_saves_in_the_middle_of_an_epoch(name, tmp_path, whole, signalled, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    wanted, out = whole(name), tmp_path / "run"
    with monkeypatch.context():
        signalled(signal.SIGTERM, 1, 1)
        with pytest.raises(Interrupted) as caught:
            fit(recipe(name), out=out)
    assert caught.value.code == 75
    assert str(caught.value) == f"SIGTERM: {RunFolder(out).checkpoint} holds the run so far"
    assert standing(RunFolder(out)).epochs == 1
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    monkeypatch.undo()
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    fit(recipe(name), out=out, resume=True)
    same(out, wanted, name)


@pytest.mark.parametrize("batch", [0, 2])
@pytest.mark.parametrize("epoch", [0, 2])
def test_a_signal_at_the_ends_of_an_epoch(batch, epoch, tmp_path, whole, signalled, monkeypatch):
    wanted, out = whole("kd"), tmp_path / "run"
    signalled(signal.SIGUSR1, epoch, batch)
    with pytest.raises(Interrupted, match="SIGUSR1"):
        fit(recipe("kd"), out=out)
    assert standing(RunFolder(out)).epochs == epoch + (batch == 2)
    monkeypatch.undo()
    fit(recipe("kd"), out=out, resume=True)
    same(out, wanted, "kd")


def test_between_two_updates_nothing_is_saved(tmp_path, signalled, monkeypatch):
    """Gradients that wait for others are in no checkpoint."""
    from kdkit.recipe import loads
    from kdkit.recipe.write import resolved

    whole = loads(resolved(recipe("kd")), name="kd", overrides=["trainer.accumulate_grad_batches=2"])
    fit(whole, out=tmp_path / "whole")
    signalled(signal.SIGTERM, 1, 0)
    with pytest.raises(Interrupted):
        fit(whole, out=tmp_path / "run")
    monkeypatch.undo()
    fit(whole, out=tmp_path / "run", resume=True)
    same(tmp_path / "run", held(tmp_path / "whole"), "kd")
