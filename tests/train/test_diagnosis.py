"""What --diagnose says of the losses' gradients, beside plain autograd."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
import torch

import kdkit
from kdkit import data
from kdkit.registry import KdkitError
from kdkit.train.diagnosis import Diagnosis
from tests.nets import loader, net
from tests.train.running import pair, trainer
from tests.train.test_balance import EDGES, STILL, pulls, table


def test_the_diagnosis_is_plain_autograds(tmp_path):
    torch.manual_seed(0)
    distiller, said = kdkit.Distiller(pair(), EDGES, **STILL), []
    path = tmp_path / "gradients.csv"
    batches = list(loader())
    one = torch.utils.data.DataLoader(batches[:1], batch_size=None)
    watching = Diagnosis(path, said.append, lambda path, text: path.write_text(text))
    distiller.student.eval()
    distiller.graph._asleep = list(distiller.student.modules())  # statistics of the batch move nothing
    run = trainer(epochs=2)
    run.callbacks.append(watching)
    run.fit(distiller, one)
    assert len(distiller.graph.watchers) == 0
    batch = kdkit.train.distiller.Batch.of(batches[0])
    graph = distiller.graph.eval()
    its = pulls(graph, graph.terms(graph.now.updates, graph.outputs(batch), batch))
    rows = table(path)
    assert [(row["epoch"], row["model"], row["loss"]) for row in rows] == [
        (epoch, "student", loss) for epoch in "12" for loss in ("ce", "kd")
    ]
    whole = sum(float(g.norm()) for g in its.values())
    for row in rows:
        mine = its[row["loss"]]
        assert float(row["norm"]) == pytest.approx(float(mine.norm()), rel=1e-3)
        assert float(row["share"]) == pytest.approx(float(mine.norm()) / whole, abs=1e-3)
    cosine = torch.cosine_similarity(its["ce"], its["kd"], dim=0)
    assert float(rows[0]["cosine kd"]) == pytest.approx(float(cosine), abs=1e-3)
    assert rows[0]["cosine ce"] == ""
    assert said[0].startswith("  gradient of student: ce ")
    assert f"cosines: ce·kd {float(cosine):+.2f}" in said[0]


@pytest.mark.parametrize("update", ["simultaneous", "sequential"])
def test_a_diagnosis_goes_on_in_the_middle_of_an_epoch(tmp_path, update):
    def run(name, stop=None, path=None):
        class Keep(pl.Callback):
            def on_train_batch_end(self, trainer, made, outputs, batch, i):
                if (trainer.current_epoch, i) == stop:
                    trainer.save_checkpoint(tmp_path / "at.ckpt")
                    raise KeyboardInterrupt

        nodes = {name: net(4, seed=i, classes=10) for i, name in enumerate("ab")}
        edges = ["ce", kdkit.Edge("dml", among=["a", "b"])]
        words = {"lr": 0.05, "update": update}
        watching = Diagnosis(tmp_path / name, lambda line: None, lambda path, text: path.write_text(text))
        going = trainer(epochs=3, callbacks=[watching, Keep()])
        batches = data.build("digits", image_size=8, subset=96, batch_size=4)
        going.fit(kdkit.Distiller(nodes, edges, **words), batches, ckpt_path=path, weights_only=True)
        return (tmp_path / name).read_text() if (tmp_path / name).is_file() else ""

    straight = run("whole.csv")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        run("cut.csv", stop=(1, 10))
    assert straight.startswith((tmp_path / "cut.csv").read_text())
    (tmp_path / "cut.csv").write_text(straight)  # as a run leaves it that got further than its last checkpoint
    assert run("cut.csv", path=tmp_path / "at.ckpt") == straight


def test_what_a_diagnosis_on_one_rank_does_not_see_is_refused():
    watching = Diagnosis(None, None, None)
    apart = SimpleNamespace(place=SimpleNamespace(apart=True))
    watching.setup(SimpleNamespace(world_size=1), apart, "fit")
    with pytest.raises(KdkitError, match="--diagnose: sees the models of one rank, and `place` spreads them"):
        watching.setup(SimpleNamespace(world_size=2), apart, "fit")
