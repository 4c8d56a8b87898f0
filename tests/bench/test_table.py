"""Tables say what rows say, and note what does not compare."""

import csv
import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from kdkit.bench import packed, rows, stats
from kdkit.bench.expand import expand
from kdkit.bench.published import published
from kdkit.bench.render import FORMS, cells, render
from kdkit.bench.setting import deviations
from kdkit.bench.suite import load_suite
from kdkit.bench.table import blocks
from kdkit.recipe.find import packaged_text
from kdkit.runs import fixes
from tests.cli.command import kdkit, refused

IMAGES = 2000
HOW = f"""\
models: {{teacher: {{arch: resnet56, weights: theirs.yaml}}, student: {{arch: resnet20}}}}
{packaged_text("cifar100_240")}"""
OTHER = """\
models: {teacher: {arch: resnet56, weights: other.yaml}}
# other.yaml:
#   data: {name: cifar100}
#   trainer: {max_epochs: 9}
"""
SMOOTH = f"""\
models: {{teacher: {{arch: resnet56, weights: other.yaml}}}}
# other.yaml:
#   models: {{net: {{arch: resnet56, lr: 0.5}}}}
#   losses: [{{ce: {{weight: 1.0, label_smoothing: 0.3}}}}]
{"".join(f"#   {line}" + chr(10) for line in packaged_text("cifar100_240").splitlines())}"""
BELOW = "# theirs.yaml:\n" + "".join(f"#   {line}\n" for line in packaged_text("cifar100_240").splitlines())


def row(method, seed, top1, **words):
    """A row of a run of ResNet-20 that told the first images rightly, shifted a bit by its seed."""
    right = np.roll(np.arange(IMAGES) < round(top1 * IMAGES), 7 * seed)
    node = "net" if method == "teacher" else "student"
    made = {
        "suite": "s", "pair": "resnet56-resnet20", "method": method, "teacher": "resnet56", "student": "resnet20",
        "data": "cifar100", "node": node, "seed": seed, "fingerprint": "f",
        "variant": method, "last": {node: {"top1": top1}}, "best": {node: {"top1": top1 + 0.01}}, "epochs": 240,
        "protocol": "cifar100_240", "protocol_epochs": 240, "minutes": 30.0, "peak_gb": 1.5, "parameters": 1000,
        "commit": "c0ffee", "versions": {"kdkit": "1", "torch": "2"},
        "machine": {"processor": "P", "threads": 1, "gpus": []}, "curve": [[1, 0.1], [120, top1], [240, top1]],
        "recipe": "losses: [ce]\n", "predictions": packed.pack(np.zeros(IMAGES, int), right),
    }  # fmt: skip
    whole = {**made, "content": f"{words.get('variant', method)}{seed}", **words}
    return {**whole, "recipe": f"{HOW}{whole['recipe']}{BELOW}"}


def grid(**words):
    rows = [row("teacher", 0, 0.80, **words)]
    for seed, (alone, kd) in enumerate([(0.690, 0.706), (0.688, 0.707), (0.692, 0.708)]):
        rows += [row("student", seed, alone, **words), row("kd", seed, kd, **words)]
    return rows


def line(made, method):
    return next(line for line in made.lines if line.method == method)


def test_a_table_is_what_its_rows_are():
    (made,) = blocks(grid())
    kd = line(made, "kd")
    assert [one.method for one in made.lines] == ["teacher", "student", "kd"]
    assert kd.n == 3
    assert kd.last == (pytest.approx(0.707), pytest.approx(0.001))
    assert kd.best == (pytest.approx(0.717), pytest.approx(0.001))
    assert kd.delta == pytest.approx(70.70 - 70.66)
    assert "RepDistiller" in kd.published.source
    assert kd.gain.mean == pytest.approx(0.017)
    assert kd.transfer.ratio == pytest.approx(0.017 / 0.11, rel=1e-6)
    assert kd.transfer.low < kd.transfer.ratio < kd.transfer.high
    assert (kd.reach, kd.minutes, kd.gigabytes) == (120, 30, 1.5)
    assert made.notes == []
    assert kd.notes == ()
    assert "commit c0ffee" in made.facts
    assert cells(kd)[:6] == ["kd", "3", "70.70 ± 0.10", "71.70 ± 0.10", "70.66", "+0.04"]


@pytest.mark.parametrize(
    ("method", "epoch", "ours"), [("dkd", "best", 71.7), ("reviewkd", "unsaid", 70.7), ("kd", "last", 70.7)]
)
def test_a_published_best_epoch_is_compared_with_the_best(method, epoch, ours):
    changed = "data: {name: cifar100, batch_size: 128}\n"
    changed += "lr: {multistep: {start: 0.1, at: [0.625, 0.75, 0.875], factor: 0.1}}\n"
    changed += "optimizer: {name: sgd, momentum: 0.9, weight_decay: 5.0e-4, nesterov: true}\n"
    words = {"recipe": f"losses: [ce]\n{changed if method == 'reviewkd' else ''}"}
    (made,) = blocks([row("student", 0, 0.69), row(method, 0, 0.707, **words)])
    theirs = line(made, method).published
    assert theirs.epoch == epoch
    assert line(made, method).delta == pytest.approx(ours - theirs.top1)


@pytest.mark.parametrize(
    ("recipe", "told"),
    [
        ("data: {name: cifar100, batch_size: 64, label_noise: 0.4}", "data.label_noise=0.4 (published: none)"),
        ("data: {name: cifar100, subset: 2000}", "data.subset=2000 (published: none)"),
        ("data: {name: cifar100, batch_size: 32}", "data.batch_size=32 (published: 64)"),
        ("lr: 0.05", "lr=0.05 (published: {multistep: {start: 0.05, at: [0.625, 0.75, 0.875], factor: 0.1}})"),
        ("balance: gradnorm", "balance=gradnorm"),
        ("trainer: {max_epochs: 240, accumulate_grad_batches: 2}", "trainer.accumulate_grad_batches=2 (published: 1)"),
        ("models: {student: {arch: resnet20}, teacher_b: {arch: resnet8, weights: random}}", "models.teacher_b"),
        ("models: {teacher: {arch: resnet56, weights: theirs.yaml, tune: {epochs: 1}}}", "models.teacher.tune"),
        ("models: {teacher: {arch: resnet56, weights: theirs.yaml, cache: {top_k: 3}}}", "models.teacher.cache.top_k"),
        (SMOOTH, "the teacher's models.net.lr, the teacher's losses=[{ce: {weight: 1.0, label_smoothing: 0.3}}]"),
        ("trainer: {max_epochs: 240, gradient_clip_val: 5.0}", "trainer.gradient_clip_val=5.0 (published: none)"),
        ("models: {student: {arch: resnet20, weights: a.pth}}", "models.student.weights"),
        ("models: {teacher: {arch: resnet56, weights: random}}", "models.teacher.weights=random"),
        ("models: {teacher: {arch: resnet56, weights: mine.pth}}", "models.teacher.weights=mine.pth"),
        ("models: {teacher: {arch: resnet56, weights: pretrained}}", "models.teacher.weights=pretrained"),
        (
            "# theirs.yaml:\n#   data: {name: cifar100}\n#   trainer: {max_epochs: 9}",
            "the teacher's optimizer.name=none",
        ),
        ("# theirs.yaml:\n#   data: {name: cifar100}\n#   trainer: {max_epochs: 9}", "the teacher's 9 epochs"),
    ],
)
def test_no_published_number_is_beside_what_was_trained_otherwise(recipe, told):
    (made,) = blocks(grid(recipe=f"losses: [ce]\n{recipe}\n"))
    kd = line(made, "kd")
    (note,) = (note for note in kd.notes if note.startswith("not trained as published: "))
    assert told in note
    assert (kd.published.top1, kd.delta) == (70.66, None)


@pytest.mark.parametrize(
    "recipe",
    [
        "data: {name: cifar100, batch_size: 64, augment: true, label_noise: 0, root: photos, num_workers: 3}",
        "trainer: {max_epochs: 240, precision: bf16-mixed, compile: auto, check_val_every_n_epoch: 5}",
        "trainer: {max_epochs: 240, update: simultaneous, accumulate_grad_batches: 1, limit_train_batches: 1.0}",
        "optimizer: {name: sgd, momentum: 0.9, weight_decay: 0.0005, nesterov: false, foreach: true}",
        "lr: {multistep: {start: 0.05, at: [150, 180, 210]}}",
        "data: {name: cifar100, batch_size: 64, split_seed: 3}",
    ],
)
def test_what_changes_no_training_takes_no_published_number_away(recipe):
    (made,) = blocks(grid(recipe=f"losses: [ce]\n{recipe}\n"))
    assert (line(made, "kd").delta, line(made, "kd").notes) == (pytest.approx(70.70 - 70.66), ())


@pytest.mark.parametrize("name", ["cifar100_resnet56_resnet20", "cifar100_all_pairs", "imagenet_resnet34_resnet18"])
def test_the_suites_are_trained_as_published(name, tmp_path):
    suite = load_suite(Path(__file__).parents[2] / "benchmarks" / f"{name}.yaml", [])
    cells = {(cell.ends, cell.method): cell for cell in expand(suite, tmp_path)}
    found = {}
    for (ends, method), cell in cells.items():
        if theirs := published(cell.recipe.data.name, *ends, method):
            whole = {"recipe": rows._portable(cell, [tmp_path]), "epochs": cell.recipe.trainer.max_epochs}
            found[ends, method] = deviations({**whole, "method": method, "data": cell.recipe.data.name}, theirs)
    assert len(found) >= 5
    assert {method for (_, method), off in found.items() if off} <= {"reviewkd"}  # whose authors trained otherwise


@pytest.mark.parametrize(("theirs", "told"), [(0.80, False), (0.801, False), (0.79, True)])
def test_no_ratio_is_of_a_teacher_that_taught_somebody_else(theirs, told):
    """One's own teacher beside rows of another machine, or the shipped ones."""
    rows = grid()
    for one in rows:
        if one["method"] == "kd":
            one["last"]["teacher"] = {"top1": theirs}
    (made,) = blocks(rows)
    assert math.isnan(line(made, "kd").transfer.ratio) == told
    note = "no transfer ratio: they learned from a teacher of 79.00 %, not from this one of 80.00 %"
    assert (note in line(made, "kd").notes) == told


def test_a_student_that_was_published_at_another_rate():
    words = {"teacher": "wrn_40_2", "student": "shufflenetv1"}
    (made,) = blocks(grid(**words))
    (note,) = line(made, "kd").notes
    assert note.startswith("not trained as published: lr={multistep: {start: 0.05,")
    slower = "losses: [ce]\nlr: {multistep: {start: 0.01, at: [0.625, 0.75, 0.875], factor: 0.1}}\n"
    (made,) = blocks(grid(**words, recipe=slower))
    assert (line(made, "kd").notes, line(made, "kd").delta) == ((), pytest.approx(70.70 - 74.83))


def test_predictions_that_are_not_the_last_epochs_are_noted():
    rows = grid()
    shifted = packed.pack(np.zeros(IMAGES, int), np.arange(IMAGES) < 0.703 * IMAGES)
    rows[2] |= {"predictions": shifted}  # of kd with seed 0, which found 70.6 %
    (made,) = blocks(rows)
    (note,) = line(made, "kd").notes
    assert note.endswith("predictions that were made anew after training, up to 0.30 points off the last epoch's")
    assert line(made, "kd").gain.mean == pytest.approx(0.016)


def test_tests_are_corrected_for_their_number():
    rows = [*grid(), *(row("at", seed, top1) for seed, top1 in enumerate((0.691, 0.687, 0.693)))]
    (made,) = blocks(rows)
    kd, at = line(made, "kd"), line(made, "at")
    assert kd.p == pytest.approx(2 * kd.gain.p)
    assert kd.gain.detectable > line(blocks(grid())[0], "kd").gain.detectable  # of one test alone
    assert at.p == pytest.approx(at.gain.p)
    assert at.p > 0.5
    assert math.isnan(line(made, "student").p)
    assert line(made, "student").gain is None


def test_few_seeds_a_short_schedule_and_more_parameters_are_noted():
    rows = [row("student", 0, 0.69, epochs=30), row("kd", 0, 0.7, epochs=30, parameters=1500)]
    (made,) = blocks(rows)
    kd = line(made, "kd")
    assert made.notes == [
        "a shortened schedule: 30 epochs where the protocol cifar100_240 has 240; it ranks no methods of the whole one",
        "no row of the teacher: no transfer ratio",
    ]
    assert kd.notes == (
        "published for 240 epochs, trained for 30 here",
        "one seed: no deviation and no test, and a ratio's interval knows test images alone",
        "its student has 1,500 parameters, alone 1,000 (+50.0 %)",
    )
    assert kd.delta is None
    assert math.isnan(kd.p)
    assert cells(kd)[2] == "70.00"


def test_a_longer_schedule_and_what_the_suite_changed_are_noted(monkeypatch):
    """By the students: a pair's own length is not its teacher's."""
    words = {"epochs": 480, "changes": ["lr=0.01", "losses.kd.weight=3"], "recipe": "losses: [ce, kd: {weight: 3}]\n"}
    (made,) = blocks([row("teacher", 0, 0.8), *grid(**words)[1:]])
    assert made.title.endswith("480 epochs")
    assert "a lengthened schedule: 480 epochs where the protocol cifar100_240 has 240" in made.notes[0]
    assert made.notes[1] == "the suite overrides the protocol: lr=0.01"
    why = "the suite overrides losses.kd.weight=3; losses: [ce, {kd: {weight: 3}}]"
    assert line(made, "kd").notes == ("published for 240 epochs, trained for 480 here", why)


def test_no_more_than_100_points_can_be_detected():
    (made,) = blocks(grid())
    found = [replace(line(made, "kd"), gain=stats.Difference(0.01, 0.5, 0.9, least, 2)) for least in (0.5, 1.96)]
    assert [cells(one)[8] for one in found] == ["50.00", "–"]


def test_what_a_method_of_ones_own_is_stands_below():
    """Its losses, and whatever else of its recipe the others do not have, with the overrides that reached it."""
    words = {
        "models": {"teacher": {"arch": "a"}, "student": {"arch": "b"}, "peer": {"arch": "c"}},
        "losses": ["ce", {"dml": {"among": ["student", "peer"]}}],
        "stages": [{"name": "first", "when": {"to": 0.5}}],
        "balance": "gradnorm",
    }
    changes = ["models.peer.lr=0.02", "stages.first.epochs=0.4", "trainer.max_epochs=3", "models.student.lr=0.1"]
    mine = row("mine", 0, 0.7, written=True, recipe=yaml.safe_dump(words), changes=changes)
    (made,) = blocks([*grid()[:2], mine])
    (note,) = (note for note in line(made, "mine").notes if "losses" in note)
    assert note.startswith("the suite overrides models.peer.lr=0.02, stages.first.epochs=0.4; losses: [ce, {dml:")
    assert "further models: {peer: {arch: c}}; stages: [{name: first, when: {to: 0.5}}]; balance: gradnorm" in note
    (plain,) = blocks([*grid()[:2], row("mine", 0, 0.7, written=True)])
    assert "a method of the suite's own; losses: [ce]" in line(plain, "mine").notes
    assert not any("losses:" in note for note in line(plain, "student").notes)


def test_losses_written_out_under_a_published_name_are_shown():
    (made,) = blocks([*grid()[:2], row("kd", 0, 0.7, written=True, recipe="losses: [ce, kd: {weight: 5}]\n")])
    kd = line(made, "kd")
    assert "a method of the suite's own; losses: [ce, {kd: {weight: 5}}]" in kd.notes
    assert (kd.published, kd.delta) == (None, None)  # which are of other losses


def test_rows_from_before_a_fix_say_so(monkeypatch):
    mended = [{"what": "old"}, {"what": "KD was upside down", "losses": ["kd"]}, {"what": "digits", "data": ["digits"]}]
    monkeypatch.setattr(fixes, "_fixes", lambda: mended)
    rows = [
        {**r, "fixes": 1, "recipe": f"{r['recipe']}losses: [ce, kd: {{weight: 1}}]\n"} if r["method"] == "kd" else r
        for r in grid()
    ]
    rows[-1]["fixes"] = fixes.known()
    (made,) = blocks([r if r["method"] == "kd" else {**r, "fixes": 1} for r in rows])
    assert line(made, "kd").notes == ("2 of its 3 runs are older than a fix: KD was upside down",)
    assert line(made, "student").notes == ()
    (made,) = blocks(grid())
    assert line(made, "student").notes == ("3 of its 3 runs are older than a fix: old",)


def test_seeds_that_the_baseline_lacks_are_told():
    (made,) = blocks([*grid(), row("kd", 7, 0.709)])
    kd = line(made, "kd")
    assert (kd.n, kd.gain.seeds) == (4, 3)
    assert kd.notes == ("compared with the student alone on the 3 seeds that both have",)
    (made,) = blocks(grid()[1:])
    assert made.notes == ["no row of the teacher: no transfer ratio"]
    (made,) = blocks([*grid()[:3], row("kd", 1, 0.7), row("at", 7, 0.7)])
    assert "compared with the student alone on the 1 seed that both have" in line(made, "kd").notes
    assert "not compared: it has no seed in common with the student alone" in line(made, "at").notes


def test_rows_of_two_test_sets_are_told():
    """As of a folder in which there are more images now."""
    more = packed.pack(np.zeros(9, int), np.ones(9, bool))
    (made,) = blocks([*grid()[:-1], {**grid()[-1], "predictions": more}])
    assert made.notes == ["scored on test sets of 9 and of 2000 images: nothing is compared with anything"]


def test_a_lead_too_small_is_not_divided_by():
    rows = [row("teacher", 0, 0.6905), *grid()[1:]]
    (made,) = blocks(rows)
    kd = line(made, "kd")
    assert math.isnan(kd.transfer.ratio)
    assert "too close to 0 to be divided by" in kd.notes[-1]
    assert cells(kd)[9] == "–"


def test_another_fingerprint_is_another_table_and_says_so():
    one, two = blocks([*grid(), *grid(fingerprint="g", epochs=30)])
    assert "under g: their numbers may not be compared" in one.notes[-1]
    assert "under f: their numbers may not be compared" in two.notes[-1]
    assert [one.lines[2].n, two.lines[2].n] == [3, 3]


def test_two_weights_of_a_loss_are_two_lines():
    other = [row("kd", seed, 0.7, variant="other", recipe="losses: [ce: {weight: 3}]\n") for seed in range(3)]
    (made,) = blocks([*grid(), *other])
    assert [one.method for one in made.lines] == ["teacher", "student", "kd", "kd (2)"]
    assert line(made, "kd").notes == ("losses: [ce]",)
    assert line(made, "kd (2)").notes == ("losses: [{ce: {weight: 3}}]",)
    told = "2 recipes were called {}, in the order of their first rows: {}"
    assert made.notes == [told.format("kd", "each counts among the tests")]
    assert line(made, "kd").p == pytest.approx(2 * line(made, "kd").gain.p)
    (of_the_bases,) = blocks([*grid(), row("teacher", 0, 0.9, variant="o"), row("student", 0, 0.6, variant="p")])
    assert of_the_bases.notes == [
        told.format("teacher", "transfer ratios are of the first"),
        told.format("student", "the others are compared with the first, and count among the tests"),
    ]
    (made,) = blocks([*grid(), *({**its, "suite": "theirs"} for its in other)])
    assert line(made, "kd").notes == ("of suite s; losses: [ce]",)
    assert line(made, "kd (2)").notes == ("of suite theirs; losses: [{ce: {weight: 3}}]",)
    assert line(made, "student").notes == ()


def test_a_recipe_has_the_name_of_its_last_row():
    """As after a method was renamed in its suite, whose rows are added anew under their new name."""
    renamed = [{**r, "method": "mine"} for r in grid() if r["method"] == "kd"]
    (made,) = blocks([*grid(), *renamed[:1]])
    assert [(one.method, one.n) for one in made.lines] == [("teacher", 1), ("student", 3), ("mine", 3)]
    theirs = [{**r, "method": "plain", "suite": "theirs"} for r in grid() if r["method"] == "student"]
    (made,) = blocks([*grid(), *theirs])  # another suite's name takes no student alone away
    assert [one.method for one in made.lines] == ["teacher", "student", "kd", "plain"]
    assert line(made, "kd").gain.mean == pytest.approx(0.017)
    swapped = [{**r, "method": {"kd": "student", "student": "kd"}[r["method"]]} for r in grid()[1:]]
    (made,) = blocks([*grid(), *swapped])
    assert line(made, "kd").last[0] == pytest.approx(0.69)
    (made,) = blocks(grid()[:1] + renamed, grid())  # of kdkit's rows those are not shown that one has, too
    assert [(one.method, one.n) for one in made.lines] == [("teacher", 1), ("student", 3), ("mine", 3)]


def test_of_two_rows_of_a_run_the_last_counts():
    again = row("kd", 0, 0.9, minutes=None, peak_gb=2.0)
    (made,) = blocks([*grid(), row("kd", 0, 0.706, minutes=90.0), again])
    kd = line(made, "kd")
    assert (kd.n, kd.last[0], kd.minutes, kd.gigabytes) == (3, pytest.approx((0.9 + 0.707 + 0.708) / 3), 50, 2.0)
    assert kd.notes == ("1 of its 3 runs have earlier rows with another accuracy; the last ones count",)
    (made,) = blocks([*grid(), *grid()])
    assert line(made, "kd").notes == ()


def test_budgets_that_are_not_equal_are_told():
    told = {"of": "student", "trials": 3, "trial": 0, "score": 0.5, "values": {}}
    tuned = [row("student-tuned", 0, 0.7, tuned=told), row("kd-tuned", 0, 0.7, tuned={**told, "of": "kd", "trials": 2})]
    (made,) = blocks([*grid(), *tuned])
    assert made.notes == [
        "no equal budget: numbers of trials are student-tuned 3, kd-tuned 2; `kdkit tune --trials 3` goes on"
    ]


def test_rows_without_predictions_are_told():
    (made,) = blocks([{**r, "predictions": None} for r in grid()])
    assert made.notes == ["none of the rows has the predictions for the test images, by which methods are compared"]
    (made,) = blocks([*grid()[:-1], {**grid()[-1], "predictions": None}])
    assert made.notes[0].startswith("1 of 7 rows do not have the predictions")


def test_two_seeds_are_few():
    rows = [r for r in grid() if r["seed"] < 2]
    assert line(blocks(rows)[0], "kd").notes == ("two seeds: no deviation or test of them says much",)


def test_seeds_that_the_method_lacks_are_told():
    (made,) = blocks([*grid(), row("student", 7, 0.6)])
    assert line(made, "kd").notes == ("compared with the student alone on the 3 seeds that both have",)


def test_a_tuned_method_is_compared_with_the_tuned_student_and_says_so():
    tuned = {"score": 0.7, "trial": 0, "trials": 2, "values": {}}
    more = [row("student-tuned", s, 0.70, tuned={**tuned, "of": "student"}) for s in range(3)]
    more += [row("kd-tuned", s, 0.71, tuned={**tuned, "of": "kd"}) for s in range(3)]
    (made,) = blocks([*grid(), *more])
    assert line(made, "kd-tuned").gain.mean == pytest.approx(0.01)
    assert "Δ, p and transfer ratio are beside the tuned student alone" in line(made, "kd-tuned").notes
    assert not any("tuned" in note for note in line(made, "kd").notes)


def test_a_tuned_method_that_is_the_published_one_asks_nothing_new():
    tuned = {"score": 0.7, "trial": 0, "trials": 2, "values": {}}
    rows, same = grid(), []
    for of in ("student", "kd"):
        its = [r for r in rows if r["method"] == of]
        same += [{**r, "method": f"{of}-tuned", "tuned": {**tuned, "of": of}} for r in its]
    (alone,), (made,) = blocks(rows), blocks([*rows, *same])
    kd, again = line(made, "kd"), line(made, "kd-tuned")
    assert kd.p == again.p == line(alone, "kd").p
    assert kd.gain.detectable == line(alone, "kd").gain.detectable
    other = [{**r, "content": f"other{r['seed']}"} for r in same if r["method"] == "kd-tuned"]
    (made,) = blocks([*rows, *same[:3], *other])
    assert line(made, "kd").p == pytest.approx(min(1, 2 * line(alone, "kd").p))


def test_one_epoch_is_no_epochs():
    (made,) = blocks(grid(epochs=1))
    assert made.title.endswith(", 1 epoch")
    assert "1 epoch where the protocol" in made.notes[0]


def test_numbers_below_zero_have_one_sign():
    (made,) = blocks([row("teacher", 0, 0.80), *(row("student", s, 0.7) for s in range(3)), row("kd", 0, 0.65)])
    ratio = cells(line(made, "kd"))[9]
    assert ratio.startswith("−0.5")
    assert "-" not in ratio


def test_zero_has_no_minus():
    (made,) = blocks([row("student", 0, 0.7), row("kd", 0, 0.70659)])  # 0.7066 was published
    assert cells(line(made, "kd"))[5] == "+0.00"


def test_rows_that_come_with_kdkit_join_those_of_the_same_protocol():
    mine = [row("mine", seed, 0.71) for seed in range(3)]
    (made,) = blocks(mine, [*grid(), *grid(fingerprint="g")])
    assert [one.method for one in made.lines] == ["teacher", "student", "mine", "kd"]
    assert line(made, "kd").notes == ("came with kdkit",)
    assert line(made, "mine").gain.mean == pytest.approx(0.02)
    (alone,) = blocks(mine)
    assert alone.notes == ["no row of the student alone: nothing is compared with it"]
    (once,) = blocks(grid(), grid())
    assert line(once, "kd").n == 3


def test_a_run_without_its_whole_time_has_no_minutes():
    rows = grid()
    rows[1] = {**rows[1], "minutes": None, "peak_gb": None}
    (made,) = blocks([{**r, "minutes": None} if r["method"] == "kd" else r for r in rows])
    assert line(made, "student").minutes == 30
    assert line(made, "kd").minutes is None
    assert cells(line(made, "kd"))[11] == "–"


def test_minutes_of_runs_side_by_side_are_told():
    (made,) = blocks(grid(side_by_side=4))
    assert made.facts.endswith("P, 1 thread, 4 runs side by side")
    assert not any("memory" in note for note in made.notes)


def test_minutes_of_several_machines_are_told():
    rows = grid()
    rows[-1] = {**rows[-1], "machine": {"processor": "Q", "threads": 1, "gpus": []}}
    (made,) = blocks(rows)
    assert any("several machines" in note for note in made.notes)
    (made,) = blocks([*rows[:-1], {**rows[-1], "minutes": None}])
    assert any("several machines" in note for note in made.notes)
    (made,) = blocks([*rows[:-1], {**rows[-1], "minutes": None, "peak_gb": None}])  # nothing was taken on the other
    assert not any("memory" in note for note in made.notes)


def test_published_numbers():
    assert published("cifar100", "resnet56", "resnet20", "crd").top1 == 71.16
    assert published("cifar100", "resnet56", "resnet20", "crd_kd").top1 == 71.63
    assert published("cifar100", "resnet32x4", "shufflenetv2", "crd").top1 == 75.65
    assert published("cifar100", "vgg13", "vgg8", "teacher").top1 == 74.64
    assert published("digits", "resnet56", "resnet20", "crd") is None
    assert published("cifar100", "resnet56", "resnet20 widths=[4]", "crd") is None


def test_names_break_no_table():
    rows = [{**one, "pair": "a&b $x$ \\y", "method": one["method"].replace("kd", "<i>|kd")} for one in grid()]
    made = blocks(rows)
    assert r"a\&b \$x\$ \textbackslash{}y" in render(made, "latex")
    assert r"| `<i>\|kd` | 3 |" in render(made, "md")
    page = render(made, "html")
    assert "&lt;i&gt;|kd" in page
    assert "<i>" not in page


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_every_number(form):
    text = render(blocks(grid()), form)
    for number in ("70.7", "71.7", "70.66"):
        assert number in text
    assert "RepDistiller" in text


def test_csv_has_plain_numbers():
    lines = list(csv.DictReader(io.StringIO(render(blocks(grid()), "csv"))))
    kd = lines[-1]
    assert float(kd["last"]) == pytest.approx(70.7)
    assert float(kd["gain"]) == pytest.approx(1.7)
    assert kd["method"] == "kd"
    assert lines[0]["gain"] == ""


def test_the_verb(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in grid()))
    said = kdkit("table", "rows.jsonl")
    assert said.code == 0
    assert said.out == render(blocks(grid()), "md")
    assert "format must be one of md, csv, latex, html, got 'tex'" in refused("table", "rows.jsonl", "--format", "tex")
    told = refused("table", "rows.jsonl", "--with", "shipped")
    assert "no row that comes with kdkit has the same models, protocol, epochs and overrides" in told
    assert "  your rows: resnet56 → resnet20 under cifar100_240, 240 epochs\n" in told
    assert "kdkit's: resnet20 → resnet8 widths=[4, 4, 8, 16] under digits_20, 20 epochs; " in told
    path.write_text(json.dumps(row("kd", 0, 0.7, epochs=1, changes=["losses.kd.weight=2", "data.subset=9"])) + "\n")
    told = refused("table", "rows.jsonl", "--with", "shipped")
    assert "your rows: resnet56 → resnet20 under cifar100_240, 1 epoch, data.subset=9\n" in told
    assert "--with must be `shipped`, got 'all'" in refused("table", "rows.jsonl", "--with", "all")
    path.write_text(json.dumps(row("mine", 0, 0.7, written=True, recipe="losses: [")) + "\n")
    assert "rows.jsonl: damaged, for no table can be made of it: " in refused("table", "rows.jsonl")
    path.write_text("")
    assert "no rows in rows.jsonl" in refused("table", "rows.jsonl")


def test_held_out_accuracies_are_told_and_beside_no_published_one():
    rows = grid(recipe="losses: [ce]\ndata: {name: cifar100, val_split: 0.1}\n")
    shifted = packed.pack(np.zeros(IMAGES, int), np.arange(IMAGES) < 0.703 * IMAGES)
    rows[2] |= {"predictions": shifted}  # of the test images, as all are
    (made,) = blocks(rows)
    assert any("of training images that data.val_split holds out" in note for note in made.notes)
    assert line(made, "kd").published is None
    assert line(made, "kd").notes == ()
    (plain,) = blocks(grid())
    assert not any("val_split" in note for note in plain.notes)
