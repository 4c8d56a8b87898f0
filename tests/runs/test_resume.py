"""Going on with a run, and what is in the way of that."""

import pytest
import torch

from kdkit.recipe import loads
from kdkit.registry import KdkitError
from kdkit.runs import fit as fitting
from kdkit.runs.fit import fit
from kdkit.runs.folder import RunFolder, read_json, write_json
from kdkit.runs.result import figures, read_result, write_figures
from kdkit.runs.resume import standing
from kdkit.runs.rows import MetricRows
from tests.cli.command import RECIPE, refused


class PowerCut(BaseException):
    pass


def recipe(*words):
    return loads(RECIPE, name="r", overrides=["data.samples=16", *words])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run of two epochs."""
    return fit(recipe(), out=tmp_path_factory.mktemp("runs") / "whole")


@pytest.fixture
def stopped(tmp_path, monkeypatch):
    """`stopped(epoch)` is the folder of a run that failed in that epoch, counted from 0."""

    def run(epoch):
        def failing(experiment, folder, rows):
            distiller, trainer = assemble(experiment, folder, rows)
            step = distiller.training_step

            def training_step(batch, batch_idx):
                if trainer.current_epoch == epoch:
                    raise PowerCut
                step(batch, batch_idx)

            monkeypatch.setattr(distiller, "training_step", training_step)
            return distiller, trainer

        assemble = fitting.assemble
        with monkeypatch.context() as patch:
            patch.setattr(fitting, "assemble", failing)
            with pytest.raises(PowerCut):
                fit(recipe(), out=tmp_path / "run")
        return RunFolder(tmp_path / "run")

    return run


@pytest.mark.parametrize("resume", [False, True])
def test_a_run_that_failed_in_its_first_epoch_begins_anew(stopped, whole, capsys, resume):
    folder = stopped(0)
    assert folder.recipe.exists()
    capsys.readouterr()
    assert fit(recipe(), out=folder.path, resume=resume).last == whole.last
    assert capsys.readouterr().out.startswith(f"training r: 2 epochs, into {folder.path}\nepoch 1/2")


def test_a_resumed_run_says_so_and_ends_with_the_same_files(stopped, whole, capsys):
    folder = stopped(1)
    capsys.readouterr()
    fit(recipe(), out=folder.path, resume=True)
    assert capsys.readouterr().out.startswith(f"going on with r after epoch 1: 2 epochs, into {folder.path}\nepoch 2/2")
    assert folder.metrics.read_text() == whole.folder.metrics.read_text()
    shown = [path.read_text().partition('"minutes"')[0] for path in (folder.result, whole.folder.result)]
    assert shown[0] == shown[1]  # in the same order, too


def test_a_resumed_run_keeps_what_it_began_with(stopped, monkeypatch):
    """Errors that were mended since touch its first part; its table says so by `fixes`."""
    folder = stopped(1)
    before = read_json(folder.provenance)
    write_json(folder.provenance, {**before, "fixes": 0, "commit": "c0ffee", "started": "2020-01-01"})
    fit(recipe(), out=folder.path, resume=True)
    after = read_json(folder.provenance)
    assert (after["fixes"], after["started"]) == (0, "2020-01-01")
    assert after["commit"].split(", ")[0] == "c0ffee"
    assert after["content"] == before["content"]


def test_a_finished_run_is_read_in_no_time(whole, monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: pytest.fail("a third of a second for a run that made no net"))
    assert fit(recipe(), out=whole.folder.path, resume=True).last == whole.last


def test_epochs_and_steps_count_those_that_are_over(whole):
    header, *rows = [line.split(",") for line in whole.folder.metrics.read_text().splitlines()]
    assert header[:2] == ["epoch", "step"]
    assert [row[:2] for row in rows] == [["1", "1"], ["2", "2"]]
    assert whole.best["student"]["epoch"] in (1, 2)


def test_figures_come_in_the_order_of_the_recipe_whatever_the_rows_order():
    teacher = {"val/teacher/top1": 0.9, "val/teacher/nll": 0.4}
    rows = {2: {"val/student/top1": 0.5, "val/student/nll": 2.0}, 1: {"val/student/nll": 3.0, "val/student/top1": 0.6}}
    for first in ({**teacher, **rows[1]}, dict(sorted({**teacher, **rows[1]}.items()))):
        found = figures({2: rows[2], 1: first}, ["teacher", "student"])
        assert [(node, list(m)) for node, m in found["last"].items()] == [
            ("teacher", ["top1", "nll"]),
            ("student", ["top1", "nll"]),
        ]
        assert found["last"]["student"]["top1"] == 0.5
        assert found["best"]["student"] == {"top1": 0.6, "nll": 3.0, "epoch": 1}


def test_figures_of_a_model_are_not_those_of_another_whose_name_begins_alike():
    rows = {1: {"val/student/top1": 0.5, "val/student2/top1": 0.9, "val/student2/nll": 1.0}}
    found = figures(rows, ["student", "student2"])
    assert found["last"] == {"student": {"top1": 0.5}, "student2": {"top1": 0.9, "nll": 1.0}}


def test_what_was_no_number_is_read_as_none(tmp_path):
    folder = RunFolder(tmp_path)
    metrics = {"student": {"top1": 0.1, "nll": float("nan")}}
    write_figures(folder, {"last": metrics, "best": metrics})
    assert read_result(folder).not_finite == ["student nll"]


def test_of_equal_epochs_the_first_is_the_best():
    rows = {epoch: {"val/student/top1": top1} for epoch, top1 in enumerate((0.4, 0.5, 0.5, 0.3), start=1)}
    assert figures(rows, ["student"])["best"]["student"]["epoch"] == 2


def test_rows_after_the_checkpoint_are_forgotten(tmp_path):
    rows = MetricRows(tmp_path / "metrics.csv")
    for epoch in range(3):
        rows.log_metrics({"epoch": epoch, "loss/ce": 1.0 / 3, "val/a/nll": float("nan")}, step=9)
    rows.save()
    again = MetricRows(tmp_path / "metrics.csv")
    assert again.rows == {}
    again.restore(2)
    assert list(again.rows) == [1, 2]
    assert again.rows[2]["step"] == 10


def test_numbers_have_nine_digits(tmp_path):
    rows = MetricRows(tmp_path / "metrics.csv")
    rows.log_metrics({"epoch": 0, "loss/ce": 2 / 3}, step=0)
    assert rows.rows[1]["loss/ce"] == 0.666666667


def test_where_a_checkpoint_without_rows_stands(tmp_path):
    """As older versions wrote them; Lightning counts epochs from 0."""
    folder = RunFolder(tmp_path)
    folder.checkpoint.parent.mkdir()
    torch.save({"epoch": 2, "state_dict": {}, "kdkit": {}}, folder.checkpoint)
    assert (standing(folder).epochs, standing(folder).rows) == (3, None)


DAMAGE = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:2000]),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "other": lambda path: torch.save({"epoch": 1}, path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_one_error_that_names_it(stopped, tmp_path, damage):
    folder = stopped(1)
    DAMAGE[damage](folder.checkpoint)
    (tmp_path / "r.yaml").write_text(RECIPE)
    error = refused("fit", tmp_path / "r.yaml", "data.samples=16", "--out", folder.path, "--resume")
    assert f"error: {folder.checkpoint} is " in error
    assert "--overwrite begins anew" in error
    fit(recipe(), out=folder.path, overwrite=True)


def test_a_teachers_damaged_checkpoint_says_what_to_delete(stopped):
    from kdkit.runs.resume import standing

    folder = RunFolder(stopped(1).path, teacher=True)
    assert standing(folder).epochs == 1
    DAMAGE["cut"](folder.checkpoint)
    with pytest.raises(KdkitError, match=f"delete {folder.path}, and it is trained anew"):
        standing(folder)


@pytest.mark.parametrize(
    ("words", "right"),
    [
        (["lr=0.2", "trainer.devices=1", "data.eval_batch_size=7"], r"another recipe: lr 0\.1 → 0\.2;"),
        (["lr={cosine: [0.1, 0]}"], r"lr 0\.1 → \{cosine: \[0\.1, 0\]\};"),
        (["losses.kd.temperature=2", "seed=4"], r"losses\.kd\.temperature 4(\.0)? → 2(\.0)?, seed 0 → 4;"),
        (["losses.kd.clip=1"], r"losses\.kd\.clip nothing → 1(\.0)?;"),
        (["trainer.max_epochs=3"], r"trainer\.max_epochs 2 → 3\. Schedules are shares of the run"),
    ],
)
def test_another_recipe_is_refused_by_what_differs(whole, words, right):
    with pytest.raises(KdkitError, match=right):
        fit(recipe(*words), out=whole.folder.path, resume=True)


def test_another_machine_is_no_other_recipe(whole):
    assert (
        fit(recipe("trainer.devices=1", "data.eval_batch_size=7"), out=whole.folder.path, resume=True).last
        == whole.last
    )


def test_code_that_changed_is_told(tmp_path):
    code = (
        "from torch import nn\n\nclass Mine(nn.Module):\n    def forward(self, student):\n        return student.mean()"
    )
    (tmp_path / "mine.py").write_text(code)
    text = RECIPE.replace("- ce\n", "- ce\n  - mine.py:Mine\n")
    fit(loads(text, folder=tmp_path), out=tmp_path / "run")
    (tmp_path / "mine.py").write_text(code.replace("mean", "sum"))
    with pytest.raises(KdkitError, match=r"what it names \(a file of weights or code, .*\) has other content"):
        fit(loads(text, folder=tmp_path), out=tmp_path / "run", resume=True)


def _without_a_weight(state):
    state["state_dict"].popitem()


def _of_another_width(state):
    name, value = next((k, v) for k, v in state["state_dict"].items() if v.ndim == 4)
    state["state_dict"][name] = value[:1]


def _of_another_optimizer(state):
    state["optimizer_states"] = [{}]


MISFITS = {
    _without_a_weight: "Missing key",
    _of_another_width: "size mismatch",
    _of_another_optimizer: "Error",
}


@pytest.mark.parametrize("change", MISFITS)
def test_a_checkpoint_that_does_not_fit_is_one_error(stopped, tmp_path, change):
    folder = stopped(1)
    state = torch.load(folder.checkpoint, weights_only=False)
    change(state)
    torch.save(state, folder.checkpoint)
    (tmp_path / "r.yaml").write_text(RECIPE)
    error = refused("fit", tmp_path / "r.yaml", "data.samples=16", "--out", folder.path, "--resume")
    assert f"error: {folder.checkpoint} does not fit this run: " in error
    assert MISFITS[change] in error
    assert len(error) < 1000
    assert "--overwrite begins anew" in error


def test_what_fails_while_a_resumed_run_trains_is_no_misfit(stopped, monkeypatch):
    from kdkit.train.distiller import Distiller

    def broken(*_):
        raise ZeroDivisionError("a bug")

    folder = stopped(1)
    monkeypatch.setattr(Distiller, "training_step", broken)
    with pytest.raises(KdkitError, match=r"^(?!.*does not fit)(?s:.*)ZeroDivisionError: a bug"):
        fit(recipe(), out=folder.path, resume=True)
