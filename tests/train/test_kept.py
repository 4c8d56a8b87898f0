"""What a run borrows it gives back; what is copied, sent to another process or rounded says the same."""

import copy
import pickle

import pytest
import torch
from pytorch_lightning import Callback
from torch import nn

import kdkit
from kdkit.graph.batch import Batch
from kdkit.registry import KdkitError
from kdkit.train.borrow import Borrow
from tests.nets import Blobs, loader, net
from tests.train.running import fit, pair, trainer


def test_a_loaders_data_set_tells_the_number_of_samples():
    distiller = kdkit.Distiller(pair(), [kdkit.Edge("crd", num_negatives=8, embed_dim=4)], lr=0.1)
    fit(distiller, epochs=1)
    assert distiller.graph.edges["crd"].losses[0].num_samples == 64


class Stop(Callback):
    """Ends a run in its second step."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, module, batch, step):
        if step == 1:
            raise self.error


@pytest.mark.parametrize(
    ("error", "raised"), [(None, None), (RuntimeError("stop"), RuntimeError), (KeyboardInterrupt(), SystemExit)]
)
def test_the_trainer_has_its_clip_and_accumulation_back(error, raised):
    distiller = kdkit.Distiller({"student": net(8)}, ["ce"], lr=0.1)
    options = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value", "accumulate_grad_batches": 2}
    run = trainer(epochs=1, callbacks=[Stop(error)] if error else [], **options)
    if error:
        with pytest.raises(raised):
            run.fit(distiller, loader())
    else:
        run.fit(distiller, loader())
        run.fit_loop.max_epochs = 2
        run.fit(distiller, loader())
        assert run.global_step == 4  # borrowed anew by the second fit
    assert {word: getattr(run, word) for word in options} == options
    assert sum(isinstance(callback, Borrow) for callback in run.callbacks) == 1


def test_a_run_that_is_refused_gives_back_too():
    run = trainer(gradient_clip_val=0.5, accumulate_grad_batches=2)
    with pytest.raises(KdkitError, match="empty"):
        run.fit(kdkit.Distiller({"student": net(8)}, ["ce"]), [])
    assert (run.gradient_clip_val, run.accumulate_grad_batches) == (0.5, 2)


class Classified(nn.Module):
    """Reads the teacher's classifier."""

    tap = "embedding"

    def forward(self, student, teacher, teacher_classifier):
        return (teacher_classifier(student) - teacher_classifier(teacher)).square().mean()


EVERY_WORD = [
    {"linear": [1.0, 0.5]},
    {"cosine": [1.0, 0.5]},
    {"exp": [1.0, 0.1]},
    {"step": [1.0, 1]},
    {"warmup": {"to": {"multistep": {"start": 1.0, "at": [2]}}, "over": 1, "by": "epoch"}},
    {"one_cycle": [1.0]},
    0.7,
]


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda bound: pickle.loads(pickle.dumps(bound))])
def test_a_bound_distiller_copies_and_pickles(twin):
    edges = [kdkit.Edge("ce", name=f"ce{i}", weight=weight) for i, weight in enumerate(EVERY_WORD)]
    edges += [kdkit.Edge("kd", temperature={"linear": [4.0, 2.0]}), kdkit.Edge(Classified), kdkit.Edge("at")]
    edges += [kdkit.Edge("mse", taps="embedding", head={"linear": {"teacher": "pca"}}), kdkit.Edge("crd", embed_dim=4)]
    nodes = {"teacher": kdkit.frozen(net(8, seed=1)), "student": net(8, seed=2), "slow": kdkit.ema("student", 0.9)}
    distiller = kdkit.Distiller(nodes, edges, lr={"cosine": [0.1, 0.0]})
    fit(distiller, epochs=3)
    other = twin(distiller)
    data = Batch(Blobs().x[:6], Blobs().y[:6], torch.arange(6))
    for t in (0.5, 2.25):
        values = []
        for one in (distiller, other):
            graph = one.graph.eval()
            graph.set_time(t)
            terms = graph.terms(graph.now.updates, graph.outputs(data), data)
            values.append({**terms, "all": graph.weighted(terms), "lr": torch.tensor(one.rates["student"](t))})
        torch.testing.assert_close(values[1], values[0], rtol=0, atol=0)
    other.student.fc.weight.data.zero_()
    other.graph.set_time(0.0)
    assert distiller.student.fc.weight.any()  # nothing is shared
    assert float(distiller.graph.edges["ce0"].weight) == pytest.approx(0.625)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_schedules_stay_exact_in_half_precision(dtype):
    edges = [
        kdkit.Edge("ce", weight=0.1),
        kdkit.Edge("kd", weight={"linear": [0.9, 0.7]}, temperature={"linear": [3.3, 2.0]}, clip=0.123),
    ]
    distiller = kdkit.Distiller(pair(), edges, lr=0.1)
    fit(distiller, epochs=2)
    distiller.to(dtype)
    assert distiller.student.fc.weight.dtype == distiller.teacher.fc.weight.dtype == dtype
    graph = distiller.graph
    graph.set_time(1 / 3)
    kd = graph.edges["kd"]
    told = [graph.edges["ce"].weight, kd.weight, kd.losses[0].temperature, kd.clip, graph.progress]
    assert all(number.dtype == torch.float32 for number in told)
    assert [float(n) for n in told] == pytest.approx([0.1, 0.9 - 0.1 / 3, 3.3 - 1.3 / 6, 0.123, 1 / 6], rel=1e-6)
    assert distiller.double().graph.edges["kd"].weight.dtype == torch.float64


def test_a_run_in_true_bf16_weighs_as_told():
    distiller = kdkit.Distiller(pair(), [kdkit.Edge("ce", weight=0.1), kdkit.Edge("kd", weight=0.9)], lr=0.01)
    fit(distiller, epochs=1, precision="bf16-true")
    assert distiller.student.fc.weight.dtype == torch.bfloat16
    assert float(distiller.graph.edges["kd"].weight) == pytest.approx(0.9, rel=1e-6)
