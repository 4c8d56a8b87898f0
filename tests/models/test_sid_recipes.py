"""What a recipe says of SID: schedules of α, options, and errors that name their line."""

import pytest
import torch

from kdkit.recipe import RecipeError, load
from kdkit.runs.check import check
from kdkit.runs.fit import fit

SHORT = ["data.fake=true", "data.batch_size=4", "trainer.limit_train_batches=2", "trainer.limit_val_batches=1"]
SHORT += ["trainer.accelerator=cpu", "models.student.options.backbone=resnet8"]


@pytest.mark.parametrize(
    ("name", "words", "message"),
    [
        ("sid_cifar100", ["losses.sid.alpha={linear: [0.5, 1.5]}"], r"sid.alpha: must lie in \[0, 1\], got 1.5"),
        (
            "sid_cifar100",
            ["losses.sid.direction=reverse"],
            "label_smoothing .*must be above 0",
        ),
        ("sid_cifar100", ["models.student.options.mode=lane"], r"'\): sid: mode must be .* did you mean 'lean'"),
        ("sid_cifar100", ["models.student.options.modules=many"], "modules: must be a whole number, got 'many'"),
        (
            "sid_isolated_cifar100",
            ["models.student.options.isolate=[layr1]"],
            "no layer 'layr1'; did you mean 'layer1'",
        ),
        ("sid_isolated_cifar100", ["models.student.options.isolate=layer1"], "isolate"),
        (
            "sid_isolated_cifar100",
            ["losses.sid.weight={share: 0.5}"],
            "needs a loss beside it|share cannot be measured",
        ),
    ],
)
def test_errors_name_their_line(name, words, message):
    with pytest.raises(RecipeError, match=message) as caught:
        check(load(name, words))
    assert name in str(caught.value) or words[0].partition("=")[0] in str(caught.value)


def test_isolated_stages_are_not_compiled(tmp_path):
    with pytest.raises(RecipeError, match=r"cifar100.yaml:5: models.student .*isolated stages learn while"):
        fit(load("sid_isolated_cifar100", [*SHORT, "trainer.compile=true"]), out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_alpha_moves_with_time(tmp_path):
    words = [*SHORT, "trainer.max_epochs=4", "losses.sid={alpha: {linear: [1.0, 0.0]}}"]
    rows = (fit(load("sid_cifar100", words), out=tmp_path / "run").folder.metrics).read_text().splitlines()
    header, *rest = (row.split(",") for row in rows)
    assert len(rest) == 4
    slack = [float(row[header.index("monitor/student/sid/slack")]) for row in rest]
    moved = [float(row[header.index("loss/sid")]) for row in rest]
    assert all(torch.isfinite(torch.tensor(slack)))
    assert moved[0] > moved[-1], "at the end, only the distance to the module before is left"


def test_check_tells_the_size_of_an_isolated_cascade():
    report = check(load("sid_isolated_cifar100"))
    assert report.nodes[0].parameters > 270_000
