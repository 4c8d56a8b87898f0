"""Loggers beside metrics.csv get its numbers and the run's pictures."""

import csv
import json
from types import SimpleNamespace

import pytest

from kdkit.recipe import content_key, load
from kdkit.registry import KdkitError
from kdkit.runs import afterwards, beside, loggers
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
    assert "not finite" in refused("fit", recipe, "trainer.logger=wandb", "lr=1e4", "trainer.max_epochs=5")
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


def test_pictures_of_a_run_that_was_moved_do_not_go_where_it_was(tmp_path, monkeypatch):
    """mlflow.db names the place as it was."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    given, run = [], tmp_path / "run"
    place = SimpleNamespace(info=SimpleNamespace(artifact_uri=str(run / "mlflow" / "abc" / "artifacts")))
    there = SimpleNamespace(get_run=lambda _: place, log_artifact=lambda *picture: given.append(picture))
    logger, show = SimpleNamespace(experiment=there, run_id="abc"), loggers.MAKERS["mlflow"][1]
    with pytest.raises(FileNotFoundError, match="the run's folder was moved"):
        show(logger, tmp_path / "curves.png")
    run.mkdir()
    show(logger, tmp_path / "curves.png")
    assert given == [("abc", str(tmp_path / "curves.png"))]


class Away(Recorder):
    """A service that does not answer while `away`, as `made` counts."""

    away = True

    def _ask(self):
        if type(self).away:
            raise ConnectionError("no\nnetwork")

    def log_hyperparams(self, words):
        self._ask()
        super().log_hyperparams(words)

    def log_metrics(self, metrics, step):
        self._ask()
        super().log_metrics(metrics, step)

    @property
    def experiment(self):
        """As W&B's and MLflow's: it asks the service."""
        self._ask()
        return None


@pytest.fixture
def service(monkeypatch):
    """Each Lightning logger that was made, of one service that is away at first."""
    made = []

    def make(folder):
        made.append(Away())
        return made[-1]

    def show(logger, path):
        logger._ask()
        logger.pictures.append(path.name)

    for place in (loggers, afterwards):
        monkeypatch.setattr(place, "find_spec", lambda name: object())
    monkeypatch.setitem(loggers.MAKERS, "mlflow", (make, show))
    monkeypatch.setattr(Away, "away", True)
    return made


def test_a_service_that_is_away_costs_no_run_and_gets_all_of_it_later(recipe, service, monkeypatch):
    said = kdkit("fit", recipe, "trainer.logger=mlflow", "--out", "run", "--diagnose")
    assert said.code == 0
    warned = [line for line in said.err.splitlines() if line.startswith("warning: mlflow")]
    assert len(warned) == 2
    assert "takes nothing now (no network); training goes on" in warned[0]
    assert "(no network); it is kept, and the next `kdkit eval run` gives it" in warned[1]
    run = recipe.parent / "run"
    assert (run / "result.json").is_file()
    assert not RunFolder(run).logged.exists()

    said = kdkit("eval", run, "trainer.accelerator=cpu")  # still away
    assert (said.code, said.err.count("warning: mlflow did not take what was found")) == (0, 1)
    monkeypatch.setattr(Away, "away", False)
    said = kdkit("eval", run, "data.batch_size=7", "trainer.accelerator=cpu")
    assert (said.code, said.err) == (0, "")
    last = service[-1]
    for epoch, row in rows(run).items():
        assert {key: last.metrics[epoch][key] for key in row} == pytest.approx(row, rel=1e-6)
    assert 0 < last.metrics[1]["gradient/student/kd"] < 1  # what metrics.csv has not
    assert {name.split("/student")[0] for name in last.metrics[2] if name.startswith("eval/")} == {
        "eval/test",
        "eval/test batch_size 7",  # MLflow takes no =
    }
    assert (last.pictures, last.words["seed"], last.ended) == (["curves.png"], 0, ["success"])
    assert kdkit("eval", run, "trainer.accelerator=cpu").code == 0
    assert set(service[-1].metrics) == {2}  # nothing twice
    assert (service[-1].words, service[-1].pictures) == (None, [])


def test_a_service_that_comes_back_gets_what_it_lacks_while_the_run_goes_on(recipe, service, monkeypatch):
    validated = Distiller.on_validation_epoch_end

    def back(self):
        validated(self)
        Away.away = self.current_epoch == 1

    monkeypatch.setattr(beside, "PATIENCE", 0)
    monkeypatch.setattr(Distiller, "on_validation_epoch_end", back)
    said = kdkit("fit", recipe, "trainer.logger=mlflow", "trainer.max_epochs=3", "--out", "run")
    assert (said.code, said.err.count("warning:")) == (0, 1)
    assert len(service) == 1
    assert set(service[0].metrics) == {1, 2, 3}
    assert not RunFolder(recipe.parent / "run").unlogged.exists()


def test_what_is_damaged_of_what_it_did_not_take_is_told_before_a_run_goes_on(recipe, service):
    assert kdkit("fit", recipe, "trainer.logger=mlflow", "--out", "run").code == 0
    run = RunFolder(recipe.parent / "run")
    run.result.unlink()
    run.unlogged.write_text("{")
    told = refused("fit", recipe, "trainer.logger=mlflow", "--out", "run", "--resume")
    assert "delete it: metrics.csv holds the numbers" in told
    assert "going on" not in told


def test_what_is_damaged_while_a_run_trains_does_not_end_it(tmp_path):
    run, later = RunFolder(tmp_path), Recorder()
    logger = beside.Beside("mlflow", lambda _: later, None, {}, run)
    logger.log_metrics({"loss": 1.0, "epoch": 0})
    run.unlogged.write_text("{")
    logger.log_metrics({"loss": 2.0, "epoch": 1})
    assert set(later.metrics) == {1, 2}


def test_a_service_that_keeps_a_run_waiting_is_asked_seldom(tmp_path, monkeypatch):
    now, asked = [0.0], []

    def make(folder):
        asked.append(now[0])
        now[0] += 90
        raise TimeoutError

    monkeypatch.setattr(beside.time, "monotonic", lambda: now[0])
    (tmp_path / "run").mkdir()
    logger = beside.Beside("mlflow", make, None, {}, RunFolder(tmp_path / "run"))
    for epoch in range(100):
        now[0] += 60
        logger.log_metrics({"loss": float(epoch), "epoch": epoch})
    assert len(asked) == 4
    assert sum(90 for _ in asked) < now[0] / 15


def test_a_run_that_is_killed_while_its_service_is_away_keeps_every_epoch(tmp_path, monkeypatch):
    """Also those at which it was not asked, and the one that it was being asked to take."""
    run = RunFolder(tmp_path)
    run.unlogged.write_text('{"wandb": {"1": {"loss": 9.0}}}')  # of a logger that it had before
    first, clock = Away(), iter(range(0, 1000, 5))
    monkeypatch.setattr(Away, "away", False)
    monkeypatch.setattr(beside.time, "monotonic", lambda: next(clock))

    def log(logger, epochs):
        for epoch in epochs:
            logger.log_metrics({"loss": float(epoch), "epoch": epoch})

    def killed():
        raise SystemExit(json.loads(run.unlogged.read_text())["mlflow"])

    logger = beside.Beside("mlflow", lambda _: first, None, {}, run)
    log(logger, [0])
    monkeypatch.setattr(Away, "away", True)
    log(logger, [1, 2, 3])  # it is asked for the first of them
    logger.again = 0
    monkeypatch.setattr(first, "_ask", killed)
    with pytest.raises(SystemExit) as kept:
        log(logger, [4])
    assert set(kept.value.code) == {"2", "3", "4", "5"}
    later = Recorder()
    log(beside.Beside("mlflow", lambda _: later, None, {}, run), [5])
    assert {step: row["loss"] for step, row in later.metrics.items()} == {2: 1.0, 3: 2.0, 4: 3.0, 5: 4.0, 6: 5.0}
    assert json.loads(run.unlogged.read_text()) == {"wandb": {"1": {"loss": 9.0}}}


def test_what_cannot_even_be_kept_costs_no_run(service, tmp_path, monkeypatch, capsys):
    def full(path, value):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(beside, "write_json", full)
    logger = beside.Beside("mlflow", loggers.MAKERS["mlflow"][0], None, {}, RunFolder(tmp_path))
    logger.log_metrics({"loss": 1.0, "epoch": 0})
    logger.close([])
    assert f"(no network); nor could it be kept, for {tmp_path} cannot be written" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_logger_that_comes_later_gets_the_epochs_before_and_wandb_offline_all_of_them(recipe, recorder, monkeypatch):
    """W&B offline cannot go on with a run: what is uploaded last replaces the rest, and so must be whole."""
    step = Distiller.training_step

    def stopped(self, batch, batch_idx):
        if self.current_epoch == 1:
            raise KeyboardInterrupt
        step(self, batch, batch_idx)

    for out, before, mode in (("later", "csv", "online"), ("offline", "wandb", "offline")):
        monkeypatch.setenv("WANDB_MODE", mode)
        monkeypatch.setattr(Distiller, "training_step", stopped)
        assert kdkit("fit", recipe, f"trainer.logger={before}", "--out", out).code != 0
        recorder.__init__()
        monkeypatch.setattr(Distiller, "training_step", step)
        assert kdkit("fit", recipe, "trainer.logger=wandb", "--out", out, "--resume").code == 0
        assert recorder.words is not None
        for epoch, row in rows(recipe.parent / out).items():
            assert recorder.metrics[epoch] == pytest.approx(row, rel=1e-6)


def test_names_that_mlflow_takes(tmp_path):
    """Characters that Lightning would drop make two names one, and MLflow refuses all numbers for one odd name."""
    names = [
        "loss/my.py:A",
        "by_class/猫",
        "by_class/犬",
        "by_class/..",
        "a//b",
        "x=1",
        "l" * 300 + "1",
        "l" * 300 + "2",
    ]
    told = [beside._name("mlflow", name) for name in names]
    assert told[:6] == ["loss/my.py_3a_A", "by_class/_732b_", "by_class/_72ac_", "by_class/__", "a/_/b", "x 1"]
    assert len(set(told)) == len(names)
    assert max(map(len, told)) == 250
    assert [beside._name("wandb", name) for name in names] == names
    given = []
    inner = Recorder()
    inner.log_metrics = lambda metrics, step: given.append(len(metrics))
    logger = beside.Beside("mlflow", lambda folder: inner, None, {}, RunFolder(tmp_path))
    logger.log_metrics({**{f"by_class/{i}": 0.5 for i in range(1001)}, "epoch": 0})
    assert given == [1000, 1]  # as many as MLflow takes at once
