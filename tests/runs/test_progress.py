"""What a run shows while it trains: lines, the bar, and how rarely the device is looked at."""

import io
import math
import warnings

import pytest
import pytorch_lightning as pl

import kdkit
from kdkit.runs import progress
from kdkit.train.meters import TermSums
from tests.nets import loader, net


class Clock:
    """A clock that training and validation move: 2 s a step, 3 s a validation batch."""

    now = 100.0

    def monotonic(self):
        return self.now


class Timed(kdkit.Distiller):
    compiling = 0

    def training_step(self, batch, batch_idx):
        self.clock.now += 2 + self.compiling
        self.compiling = 0
        super().training_step(batch, batch_idx)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        self.clock.now += 3
        super().validation_step(batch, batch_idx, dataloader_idx)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def run(monkeypatch):
    """`run(file, **trainer options)` trains four steps of 16 images and one validation batch an epoch."""
    clock = Clock()
    monkeypatch.setattr(progress, "time", clock)
    for word in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(word, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "200")

    def fit(file, ckpt_path=None, module=None, compiling=0, **options):
        distiller = Timed({"teacher": kdkit.frozen(net(seed=1)), "student": net(seed=2)}, ["ce", "kd"], lr=0.1)
        distiller.clock, distiller.compiling = clock, compiling
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module=r"pytorch_lightning")
            warnings.filterwarnings("ignore", message=".*(workers|treespec|persistent).*")
            trainer = pl.Trainer(
                **{"max_epochs": 3, **options},
                accelerator="cpu",
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                callbacks=[progress.progress_callback(file)],
            )
            trainer.fit(distiller, loader(), loader(batch_size=64), ckpt_path=ckpt_path, weights_only=False)
        return trainer, distiller

    return fit


def test_a_plain_line_for_every_epoch(run):
    out = io.StringIO()
    trainer, _distiller = run(out)
    lines = [line.split("  ") for line in out.getvalue().splitlines()]
    top1 = 100 * trainer.callback_metrics["val/student/top1"]
    assert [line[0] for line in lines] == ["epoch 1/3", "epoch 2/3", "epoch 3/3"]
    assert [[part.split()[0] for part in line[1:-2]] for line in lines] == [
        ["ce", "kd", "teacher", "student"],  # a frozen node's accuracy is told once
        ["ce", "kd", "student"],
        ["ce", "kd", "student"],
    ]
    assert lines[-1][3] == f"student {top1:.1f} %"
    assert lines[-1][1] == f"ce {trainer.callback_metrics['loss/ce'].item():.4g}"


def test_speed_is_of_training_alone_and_the_time_left_is_of_everything(run):
    out = io.StringIO()
    run(out)
    lines = [line.split("  ") for line in out.getvalue().splitlines()]
    # 16 images in 2 s; an epoch takes 4·2 + 3 = 11 s
    assert [line[-2:] for line in lines] == [["8 img/s", f"{left} s left"] for left in (22, 11, 0)]


@pytest.mark.parametrize(("steps", "speed"), [(4, "8 img/s"), (1, "0 img/s")])
def test_the_first_step_of_a_run_is_no_measure_of_its_speed(run, steps, speed):
    """It compiles, and libraries make themselves ready; where there is no other it is told all the same."""
    out = io.StringIO()
    run(out, compiling=60, limit_train_batches=steps)
    lines = [line.split("  ") for line in out.getvalue().splitlines()]
    assert [line[-2] for line in lines] == [speed, "8 img/s", "8 img/s"]


def test_a_run_of_steps_ends_in_the_middle_of_an_epoch(run):
    out = io.StringIO()
    run(out, max_steps=6)
    lines = [line.split("  ") for line in out.getvalue().splitlines()]
    assert [line[0] for line in lines] == ["epoch 1/2", "epoch 2/2"]
    assert lines[1][-1] == "0 s left"


def test_a_resumed_run_reckons_with_what_is_left(run, tmp_path):
    trainer, _ = run(io.StringIO(), max_epochs=2)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    out = io.StringIO()
    run(out, max_epochs=4, ckpt_path=tmp_path / "last.ckpt")
    lines = [line.split("  ") for line in out.getvalue().splitlines()]
    assert [(line[0], line[-1]) for line in lines] == [("epoch 3/4", "11 s left"), ("epoch 4/4", "0 s left")]


@pytest.mark.parametrize(
    ("file", "interval", "looks"),
    [(io.StringIO, 0.0, 3), (Terminal, math.inf, 6), (Terminal, 3.0, 9), (Terminal, 0.0, 15)],
)
def test_sums_are_read_when_something_is_shown_and_never_per_step(run, monkeypatch, file, interval, looks):
    """3 epochs of 4 steps: plain lines look once an epoch; a bar also when it is due."""
    counted = []
    means = TermSums.means
    monkeypatch.setattr(progress, "INTERVAL", interval)
    monkeypatch.setattr(TermSums, "means", lambda self: counted.append(1) or means(self))
    run(file())
    of_the_distiller = 3  # it logs every epoch's means itself
    assert len(counted) - of_the_distiller == looks


def test_the_bar_leaves_the_same_lines_behind(run):
    plain, terminal = io.StringIO(), Terminal()
    run(plain)
    run(terminal)
    for line in plain.getvalue().splitlines():
        assert f"{line}\n" in terminal.getvalue()
    assert terminal.getvalue().count("validation …") >= 3
    assert terminal.getvalue().rstrip().endswith("\x1b[2K")  # the bar itself is wiped away


def test_an_error_takes_the_bar_away(run, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError

    terminal = Terminal()
    monkeypatch.setattr(kdkit.Distiller, "on_train_epoch_end", broken)
    with pytest.raises(ZeroDivisionError):
        run(terminal)
    assert terminal.getvalue().endswith("\x1b[2K") or terminal.getvalue().rstrip("\r").endswith("\x1b[?25h")


def test_the_size_of_a_batch_is_that_of_its_first_tensor():
    x = net().conv1.weight  # (8, 3, 3, 3)
    for batch in (x, (x, x[0]), [x], {"rgb": x}, ({"rgb": x, "depth": x}, x[0])):
        assert progress._size(batch) == 8
