"""A recipe's cohort: its files, going on with it, and what is wrong with its words."""

import pytest

from kdkit.recipe import RecipeError, json_schema, loads, resolved
from kdkit.runs import fit as fitting
from kdkit.runs.check import check
from kdkit.runs.fit import fit
from kdkit.runs.folder import RunFolder
from tests.cli.command import refused
from tests.runs.test_check_report import text_of
from tests.train.test_health import poison

RECIPE = """\
data: {name: digits, image_size: 8, subset: 96, batch_size: 32, val_split: 0.2, padding: 1}
models: {a: {arch: resnet8}, b: {arch: resnet8}, c: {arch: resnet8}}
losses: [ce, dml: {among: [a, b, c]}]
optimizer: {name: sgd, momentum: 0.9}
lr: 0.05
trainer: {max_epochs: 5, accelerator: cpu}
cohort:
  join: {c: {epoch: 1, warmup: 1}}
  leave: {a: {epoch: 3}}
  ramp: 1
  health: {warmup: 1, patience: 1, mute: 1, probe: 32}
"""


class PowerCut(BaseException):
    pass


def run(monkeypatch, out, stop=None, resume=False):
    """A run in which `b` is poisoned in its third epoch, cut off in the epoch `stop`."""
    assemble = fitting.assemble

    def poisoned(experiment, folder, rows):
        distiller, trainer = assemble(experiment, folder, rows)
        trainer.callbacks.append(poison("b", 2.25))
        step = distiller.training_step

        def training_step(batch, batch_idx):
            if trainer.current_epoch == stop and batch_idx:
                raise PowerCut
            step(batch, batch_idx)

        monkeypatch.setattr(distiller, "training_step", training_step)
        return distiller, trainer

    with monkeypatch.context() as patch:
        patch.setattr(fitting, "assemble", poisoned)
        return fit(loads(RECIPE, name="r"), out=out, resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        return run(patch, tmp_path_factory.mktemp("cohort") / "whole").folder


def files(folder):
    return {name: (folder.path / name).read_text() for name in ("metrics.csv", "cohort.csv")}


def test_a_run_says_who_came_went_and_was_treated(whole):
    rows = [line.split(",")[:3] for line in whole.cohort.read_text().splitlines()]
    assert rows[0] == ["epoch", "model", "what"]
    assert [row for row in rows if row[2] in ("joins", "leaves", "gone", "roll back")] == [
        ["1", "c", "joins"], ["3", "b", "roll back"], ["3", "a", "leaves"], ["4", "a", "gone"],
    ]  # fmt: skip
    header = whole.metrics.read_text().splitlines()[0].split(",")
    words = {"cohort/c", "health/mci/a/b", "health/mci/b/a", "health/js/a/b", "health/disagreement/b/c", "health/kar/a"}
    assert words | {"health/nll/b", "health/z/b", "health/rung/b"} <= set(header)
    assert "health/js/b/a" not in header
    assert {path.name.split("-")[0] for path in whole.snapshots.iterdir()} == {"a", "b", "c"}


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_run_that_was_cut_off_ends_with_the_same_files(whole, tmp_path, monkeypatch, stop):
    with pytest.raises(PowerCut):
        run(monkeypatch, tmp_path / "run", stop)
    again = run(monkeypatch, tmp_path / "run", resume=True).folder
    assert files(again) == files(whole)
    for name in "abc":
        assert again.weights(name).read_bytes() == whole.weights(name).read_bytes()


def test_a_run_that_begins_anew_leaves_no_old_snapshot(whole, tmp_path):
    folder = RunFolder(tmp_path / "run")
    fit(loads(RECIPE, name="r", overrides=["trainer.max_epochs=4"]), out=folder.path)
    (folder.snapshots / "z-0099.pt").write_bytes(b"old")
    words = ["trainer.max_epochs=2", "cohort={join: {c: {epoch: 1}}}"]
    fit(loads(RECIPE, name="r", overrides=words), out=folder.path, overwrite=True)
    assert not folder.snapshots.exists()
    assert len(folder.cohort.read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("words", "right"),
    [
        ("{jion: {c: {epoch: 1}}}", "cohort.jion: unknown key 'jion'; did you mean 'join'?"),
        ("{join: {c: {epcoh: 1}}}", "cohort.join.c.epcoh: unknown key 'epcoh'; did you mean 'epoch'?"),
        ("{leave: {peer_c: {epoch: 1}}}", "cohort.leave.peer_c: no trained model is called 'peer_c'; trained: a, b, c"),
        ("{join: {c: 1}}", "cohort.join.c: must be a mapping, got 1"),
        ("{leave: {a: {epoch: 9}}}", "cohort.leave.a.epoch: epoch 9 never comes in a run of 5 epochs"),
        ("{ramp: -1}", "cohort.ramp: must be a time of 0 or more, got -1"),
        ("{health: {patiense: 1}}", "cohort.health.patiense: unknown key 'patiense'; did you mean 'patience'?"),
        ("{health: {z: 0}}", "cohort.health: z must be above 0, got 0"),
        ("{join: {c: {epoch: 3}}, leave: {c: {epoch: 2}}}", "c leaves at epoch 2, but joins at 3"),
        ("{leave: {a: {epoch: 1}, b: {epoch: 1}, c: {epoch: 1}}}", "nobody is left at epoch 1; the last one stays"),
    ],
)
def test_a_wrong_word_is_one_error_with_its_line(tmp_path, words, right):
    head = RECIPE[: RECIPE.index("cohort:")]
    (tmp_path / "r.yaml").write_text(f"{head}cohort: {words}\n")
    error = refused("fit", tmp_path / "r.yaml", "--out", tmp_path / "run")
    assert f"r.yaml:7: {right}" in error or right in error
    assert "Traceback" not in error
    assert len(error.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("override", "right"),
    [
        ("trainer.precision=16-mixed", "cohort.health: all models of a run in fp16 share one loss scale"),
        ("trainer.place={a: 0, b: 0, c: 1}", "cohort: models that come and go, or are watched, are trained on"),
    ],
)
def test_what_a_trainer_cannot_do_for_a_cohort_is_said_before_it_runs(override, right):
    with pytest.raises(RecipeError, match=right):
        loads(RECIPE, name="r", overrides=[override])
    loads(RECIPE, name="r", overrides=["trainer.precision=16-mixed", "cohort.health=null"])


def test_check_tells_who_comes_and_goes_and_how_the_sick_are_treated():
    told = check(loads(RECIPE, name="r"))
    assert told.cohort == (
        "c joins at epoch 1, its learning rate rises until 2, is listened to wholly from 2",
        "a leaves at epoch 3, is gone at 4",
        "health: judged by 32 held-out images, each model after 1 epochs of its own",
        "health: sick where bad 1 epochs in a row, or not finite; then, one step after the other,",
        "health: learning rate times 0.3, the last good snapshot, first weights with a new optimiser",
    )
    assert f"cohort  {told.cohort[0]}" in text_of(told).splitlines()
    assert not check(loads(RECIPE[: RECIPE.index("cohort:")], name="r")).cohort


def test_a_cohort_has_two_models(tmp_path):
    (tmp_path / "r.yaml").write_text(
        RECIPE.replace(", b: {arch: resnet8}, c: {arch: resnet8}", "").replace(", dml: {among: [a, b, c]}", "")
    )
    assert "a cohort has at least two trained models, got a" in refused("fit", tmp_path / "r.yaml")


def test_it_is_written_out_and_known_to_editors():
    recipe = loads(RECIPE, name="r")
    assert loads(resolved(recipe), name="r") == recipe
    schema = json_schema()
    assert "patience" in schema["$defs"]["HealthWords"]["properties"]
    assert {"join", "leave", "ramp", "health"} == set(schema["$defs"]["CohortSpec"]["properties"])
