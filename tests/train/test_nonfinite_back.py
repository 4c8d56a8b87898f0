"""Going back from numbers that are not finite, at once or some steps later, and resuming.

The oracle is the same run with steps that a callback leaves out by hand.
"""

import logging
import math
from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

import kdkit
from kdkit.train.arriving import LAG, Arriving, Seen
from kdkit.train.finite import ROLLBACKS, FiniteWatch
from kdkit.train.meters import NonFiniteLossError, TermSums
from kdkit.train.rollback import Snapshots
from tests.train.nonfinite import Without, assert_same, kd, known, lagging, run, spoilt, state  # noqa: F401  fixtures
from tests.train.running import fit, trainer

# -- rollback ----------------------------------------------------------------------------------------------------------


def test_going_back_is_the_run_without_the_steps_since_the_snapshot(known, caplog):  # noqa: F811
    """The snapshot is of the beginning of the epoch; the data go on behind the batch."""
    data = spoilt(37)
    with caplog.at_level(logging.WARNING, "kdkit"):
        back, one = run(kd("rollback"), data)
    by_hand, _ = run(kd(), data, callbacks=[Without(0, 1, 2, 4, 5, 6)])
    assert_same(back, by_hand)
    assert one.callback_metrics["nonfinite/rollbacks"] == 1
    assert "samples 32, 33" in caplog.text
    assert "the step is left out, and all is again as before step 4" in caplog.text


def test_going_back_twice_in_an_epoch_ends_the_run():
    with pytest.raises(NonFiniteLossError, match=r"at step 2 .* this happened a second time in this epoch"):
        fit(kd("rollback"), spoilt(20, 37))


def test_a_step_that_is_known_to_be_bad_only_later_goes_back_before_it(lagging):  # noqa: F811
    """Four more steps have run by then, whose numbers count for nothing any more."""
    data = spoilt(20, n=160)
    back, _ = run(kd("rollback"), data, epochs=1)
    by_hand, _ = run(kd(), data, epochs=1, callbacks=[Without(*range(2 + LAG))])
    assert_same(back, by_hand)
    with pytest.raises(NonFiniteLossError, match=r"at step 1 \(epoch 1\), which saw samples 16, 17"):
        run(kd(), data, epochs=1)
    made = kd()
    with pytest.raises(NonFiniteLossError, match="at step 9"):  # seen at the end of the epoch at the latest
        fit(made, spoilt(150, n=160), epochs=1)


class Told(pl.Callback):
    """What every step's terms were."""

    def on_train_start(self, trainer, module):
        self.steps, lesson = [], module.lesson

        def told(*args):
            loss, terms = lesson(*args)
            self.steps.append({name: float(value.detach()) for name, value in terms.items()})
            return loss, terms

        module.lesson = told


def test_means_are_of_the_steps_that_count(known):  # noqa: F811
    told = Told()
    _, one = run(kd("rollback"), spoilt(20), epochs=1, callbacks=[told])
    good = [terms for terms in told.steps if all(map(math.isfinite, terms.values()))]
    assert len(good) == 3
    for name in ("ce", "kd", "crd"):
        mean = sum(terms[name] for terms in good) / 3
        assert float(one.callback_metrics[f"loss/{name}"]) == pytest.approx(mean, rel=1e-5)


@pytest.mark.parametrize("accumulate", [2, 8])
@pytest.mark.parametrize("sample", [20, 28], ids=["first of its update", "last of its update"])
def test_an_update_half_gathered_is_dropped_whole(sample, accumulate, lagging):  # noqa: F811
    """Known in the middle of an update, or at its end: only whole updates behind it count."""
    data, edges = spoilt(sample, n=256, batch_size=8), ["ce", "kd"]
    back, one = run(kd("rollback", edges=edges), data, epochs=1, accumulate_grad_batches=accumulate)
    assert one.callback_metrics["nonfinite/rollbacks"] == 1
    assert all(torch.isfinite(value) for name, value in one.callback_metrics.items() if name.startswith("loss/"))
    behind = -(-(sample // 8 + LAG + 1) // accumulate) * accumulate
    without, options = [Without(*range(behind))], {"accumulate_grad_batches": accumulate}
    by_hand, _ = run(kd(edges=edges), data, epochs=1, callbacks=without, **options)
    weights = [name for name in back if not any(word in name for word in ("running", "tracked"))]
    assert_same({name: back[name] for name in weights}, {name: by_hand[name] for name in weights})


def test_a_second_run_remembers_nothing_of_the_first(known):  # noqa: F811
    class Broken(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("broken off")

    made = kd("rollback", edges=["ce"])
    with pytest.raises(RuntimeError, match="broken off"):
        fit(made, spoilt(20), epochs=1, callbacks=[Broken()])
    assert made.watch.went_back == 1
    for _ in range(2):
        done = fit(made, spoilt(20), epochs=1)
        assert (done.callback_metrics["nonfinite/rollbacks"], made.watch.all_back) == (1, 1)
        assert done.callback_metrics["loss/ce"].isfinite()


def test_numbers_are_looked_at_so_many_steps_later():
    coming, event = Arriving(), type("Event", (), {"synchronize": lambda self: None})()
    for step in range(LAG + 3):
        coming._coming.append(Seen(step, 0, None, [], torch.zeros(0), event))
    assert [seen.step for seen in coming.due()] == [0, 1, 2]
    assert [seen.step for seen in coming.all()] == list(range(3, LAG + 3))


# -- resume ------------------------------------------------------------------------------------------------------------


class Spoil(pl.Callback):
    """Spoils some samples wherever they are seen, and saves in the middle of the second epoch, behind them."""

    def __init__(self, path, *samples):
        self.path, self.samples = path, torch.tensor(samples)

    def on_train_batch_start(self, trainer, module, batch, batch_idx):
        batch[0][torch.isin(batch[2], self.samples)] = torch.nan

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if self.path and trainer.current_epoch == 1 and batch_idx == 15:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("policy", ["skip", "rollback"])
def test_a_resumed_run_remembers(tmp_path, policy):
    def data():
        return kdkit.data.build("digits", image_size=8, subset=200, batch_size=10, padding=1)

    def made():
        student = kdkit.models.build("resnet8", num_classes=10)
        return kdkit.Distiller({"student": student}, ["ce"], lr=0.05, on_nonfinite=policy)

    (loader := data().train_dataloader()).set_epoch(1)
    sample = int(list(loader)[3][2][4])
    path, student = tmp_path / "mid.ckpt", made()
    one = fit(student, data(), epochs=2, callbacks=[Spoil(path, sample)])
    assert student.watch.last == (23 if policy == "skip" else -1)
    again, other = made(), trainer(epochs=2, callbacks=[Spoil(None, sample)])
    other.fit(again, datamodule=data(), ckpt_path=path, weights_only=True)
    assert_same(state(student), state(again))
    assert one.callback_metrics == other.callback_metrics
    assert one.callback_metrics["nonfinite/skipped" if policy == "skip" else "nonfinite/rollbacks"] == 1


def test_all_that_is_counted_is_in_a_checkpoint():
    watch, again = FiniteWatch("rollback"), FiniteWatch("rollback")
    counts = {word: i for i, word in enumerate(("skipped", "row", "last", "went_back", "all_back"), 3)}
    vars(watch).update(counts)
    again.load_state_dict(watch.state_dict(), torch.device("cpu"))
    assert {word: getattr(again, word) for word in counts} == counts


def test_what_a_resumed_run_came_to_is_forgotten_by_the_next():
    watch, distiller = FiniteWatch(), SimpleNamespace(sums=TermSums())
    watch.resumed, watch.all_back = True, 3
    watch.begin(distiller)
    assert watch.all_back == 3
    watch.begin(distiller)
    assert watch.all_back == 0


def test_a_run_does_not_go_back_for_ever():
    watch = FiniteWatch("rollback")
    watch._distiller, watch.all_back = SimpleNamespace(borrow=SimpleNamespace(clip_value=None)), ROLLBACKS
    with pytest.raises(NonFiniteLossError, match=f"more than {ROLLBACKS} times in all"):
        watch._go_back("the loss ce is not finite at step 3", 3)


@pytest.mark.parametrize(("weight", "at"), [(1.0, 4), (math.nan, 2)])
def test_the_last_snapshot_that_is_good_and_not_after_the_step_is_taken(weight, at):
    snapshots, back = Snapshots(), []
    graph = SimpleNamespace(load_state_dict=lambda state: back.append(float(state["models.a.w"])))
    optimizer = SimpleNamespace(load_state_dict=lambda state: None)
    distiller = SimpleNamespace(graph=graph, optimizers=lambda: SimpleNamespace(optimizer=optimizer), captured=None)
    snapshots.ring.keep = 3
    for step, value in ((2, 2.0), (4, weight), (6, 6.0)):
        content = {"graph": {"models.a.w": torch.tensor(value)}, "optimizers": {}, "scaler": {}}
        snapshots.ring.put("run", step, content)
    assert snapshots.back(distiller, 5) == at
    assert back == [2.0 if at == 2 else weight]
