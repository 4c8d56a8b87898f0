"""Loggers beside metrics.csv get its numbers and the run's pictures."""

import csv

import pytest

from kdkit.recipe import content_key, load
from kdkit.registry import KdkitError
from kdkit.runs import loggers
from kdkit.runs.folder import RunFolder
from kdkit.train.distiller import Distiller
from tests.cli.command import RECIPE, kdkit, refused


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "r.yaml").write_text(RECIPE)
    return tmp_path / "r.yaml"


def rows(run):
    with (run / "metrics.csv").open() as file:
        found = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return {int(row.pop("epoch")): {k: v for k, v in row.items() if k != "step"} for row in found}


class Recorder:
    """What Lightning's loggers are to us."""

    def __init__(self):
        self.metrics, self.words, self.pictures, self.ended, self.folder_was = {}, None, [], [], None

    def log_hyperparams(self, words):
        self.words = words

    def log_metrics(self, metrics, step):
        self.metrics.setdefault(step, {}).update(metrics)

    def save(self):
        pass

    def finalize(self, status):
        self.ended.append(status)


@pytest.fixture
def recorder(monkeypatch):
    made = Recorder()

    def make(folder):
        made.folder_was = sorted(path.name for path in folder.path.iterdir())
        return made

    monkeypatch.setitem(loggers.MAKERS, "wandb", (make, lambda logger, path: logger.pictures.append(path.name)))
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    return made


def test_they_get_the_numbers_the_recipe_and_the_pictures(recipe, recorder):
    assert kdkit("fit", recipe, "trainer.logger=wandb", "--out", "run").code == 0
    expected = rows(RunFolder(recipe.parent / "run").path)
    assert set(recorder.metrics) == {1, 2}
    for epoch, row in expected.items():
        assert recorder.metrics[epoch] == pytest.approx(row, rel=1e-6)
    assert recorder.words["losses"][1]["kd"]["temperature"] == 4.0
    assert recorder.pictures == ["curves.png"]
    assert recorder.ended == ["success"]
    assert "provenance.json" in recorder.folder_was  # it is made once the folder is the run's


def test_a_run_that_fails_ends_them_too(recipe, recorder):
    assert "not finite" in refused("fit", recipe, "trainer.logger=wandb", "lr=1e30", "trainer.max_epochs=5")
    assert recorder.ended in ([], ["failed"])  # nothing was logged, or it was told


def test_who_logs_changes_nothing_of_what_comes_out(recipe):
    assert content_key(load(recipe)) == content_key(load(recipe, ["trainer.logger=tensorboard"]))


def test_tensorboard_holds_the_same_numbers(recipe):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert kdkit("fit", recipe, "trainer.logger=tensorboard", "--out", "run").code == 0
    run = recipe.parent / "run"
    read = EventAccumulator(str(run / "tensorboard"))
    read.Reload()
    expected = rows(run)
    for key in expected[2]:
        assert {e.step: e.value for e in read.Scalars(key)} == pytest.approx(
            {epoch: row[key] for epoch, row in expected.items() if key in row}, rel=1e-6
        )
    assert "curves" in read.Tags()["images"]
    assert kdkit("fit", recipe, "--out", "run", "--overwrite").code == 0
    assert not list(run.glob("tensorboard/events*"))  # those of the run that is gone


def test_an_unknown_name_and_a_missing_package_are_one_message(recipe, monkeypatch):
    told = refused("fit", recipe, "trainer.logger=tensorbord")
    assert "trainer.logger" in told
    assert "'tensorboard'" in told
    monkeypatch.setattr(loggers, "find_spec", lambda name: None)
    told = refused("fit", recipe, "trainer.logger=mlflow")
    assert "trainer.logger: mlflow is not installed; pip install 'kdkit[mlflow]' brings it" in told


def test_a_run_that_goes_on_is_the_same_one_where_it_is_logged(recipe, monkeypatch):
    """Killed after an epoch and resumed, it is found by the id that it had, and is told its recipe once."""
    made = []

    class Service(Recorder):
        def __init__(self, known):
            super().__init__()
            self.version = known or "abc123"

    def make(folder):
        made.append(Service(loggers.logged_as(folder).get("wandb")))
        return made[-1]

    monkeypatch.setitem(loggers.MAKERS, "wandb", (make, lambda logger, path: logger.pictures.append(path.name)))
    monkeypatch.setattr(loggers, "find_spec", lambda name: object())
    step = Distiller.training_step

    def stopped(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        step(self, batch, batch_idx)

    monkeypatch.setattr(Distiller, "training_step", stopped)
    assert kdkit("fit", recipe, "trainer.logger=wandb", "--out", "run").code != 0
    monkeypatch.setattr(Distiller, "training_step", step)
    assert kdkit("fit", recipe, "trainer.logger=wandb", "--out", "run", "--resume", "--diagnose").code == 0
    first, second = made
    assert (set(first.metrics), set(second.metrics)) == ({1}, {2})
    assert second.version == "abc123"
    assert (first.words is None, second.words) == (False, None)
    assert 0 < second.metrics[2]["gradient/student/kd"] < 1  # what --diagnose saw, too
    assert -1 <= second.metrics[2]["cosine/student/ce kd"] <= 1
    assert kdkit("fit", recipe, "trainer.logger=wandb", "--out", "run", "--overwrite").code == 0
    assert made[2].words is not None  # another run


def test_mlflow_and_wandb_are_asked_for_the_run_that_there_was(tmp_path, monkeypatch):
    asked = {}
    for kind, name in (("wandb", "WandbLogger"), ("mlflow", "MLFlowLogger")):
        monkeypatch.setattr(loggers, name, lambda *args, kind=kind, **words: asked.__setitem__(kind, words))
    folder = RunFolder(tmp_path)
    for known in (None, "abc123"):
        for kind in asked or ("wandb", "mlflow"):
            loggers.MAKERS[kind][0](folder)
        assert (asked["wandb"]["id"], asked["mlflow"]["run_id"]) == (known, known)
        folder.logged.write_text('{"wandb": "abc123", "mlflow": "abc123"}')
    folder.logged.write_text("{")
    with pytest.raises(KdkitError, match=r"logged\.json cannot be read .* delete it"):
        loggers.logged_as(folder)
