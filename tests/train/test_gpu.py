"""Training on a GPU on paper: nothing mixes devices, no step waits, a recorded step is the ordinary one."""

import copy
import re
from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch

import kdkit
from kdkit.graph.stage import Stage
from kdkit.recipe import load
from kdkit.runs.fit import fit
from tests.cli.command import kdkit as command
from tests.gpu import gpu
from tests.nets import loader, net
from tests.train.running import pair

CRD = kdkit.Edge("crd", num_negatives=8, embed_dim=8)
MUTUAL = kdkit.Edge("dml", among=["a", "b"])


def peers():
    return {"a": net(8, seed=2), "b": net(8, seed=3)}


def students():
    return {"teacher": kdkit.frozen(net(12, seed=1)), **{f"s{i}": net(8, seed=i) for i in range(2, 5)}}


def slow_copy():
    return {"student": net(8, seed=2), "teacher": kdkit.ema("student")}


CASES = {
    "plain": {},
    "fp32": {"precision": "32-true"},
    "bf16": {"precision": "bf16-true"},
    "clip": {"gradient_clip_val": 1.0},
    "accumulate": {"accumulate_grad_batches": 2},
    "crd": {"edges": ["ce", CRD]},
    "late": {"edges": ["ce", kdkit.Edge("at", when={"from": 1})]},
    "fade": {"edges": ["ce", kdkit.Edge("kd", weight={"linear": [1.0, 0.0]})]},
    "share": {"edges": ["ce", kdkit.Edge("kd", weight={"share": 0.5})]},
    "late head": {"edges": ["ce", kdkit.Edge("hint", head="conv_bn_relu", when={"from": 1})]},
    "charged": {"edges": ["ce", kdkit.Edge("cosine", taps="embedding", head={"sparse": {"l1": 0.1}})]},
    "stages": {"words": {"stages": [Stage("top", {"to": 1}, train="student.fc"), Stage("all", {"from": 1})]}},
    "students": {"nodes": students},
    "head": {"edges": ["ce", kdkit.Edge("hint", head="conv_bn_relu")]},
    "relations": {"edges": ["ce", "rkd", "pkt", "nst"]},
    "ema": {"nodes": slow_copy},
    "peers": {"nodes": peers, "edges": ["ce", MUTUAL]},
    "sequential": {"nodes": peers, "edges": ["ce", MUTUAL], "words": {"update": "sequential"}},
    "skip": {"words": {"on_nonfinite": "skip"}},
    "rollback": {"words": {"on_nonfinite": "rollback"}},
    "gradnorm": {"words": {"balance": "gradnorm"}},
    "uncertainty": {"words": {"balance": "uncertainty"}},
    "equal_share": {"words": {"balance": "equal_share"}},
    "pcgrad": {"words": {"pcgrad": True, "compile": False}},
    "adamw": {"words": {"optimizer": {"name": "adamw"}, "lr": 1e-3}},
}
NOT_RECORDED = {"accumulate", "sequential", "gradnorm", "uncertainty", "equal_share", "share", "pcgrad"}


@pytest.fixture
def there(monkeypatch):
    with gpu(monkeypatch) as mode:
        yield mode


@pytest.fixture
def within(there, monkeypatch):
    """What was waited for from the end of one step to the end of the next, in one epoch."""
    waited, seen, plain = [], [0], kdkit.Distiller.training_step

    def step(self, batch, number):
        assert {p.device.type for p in self.parameters()} == {"cuda"}
        plain(self, batch, number)
        waited.extend(there.waits[seen[0] :] if number else [])
        seen[0] = len(there.waits)

    monkeypatch.setattr(kdkit.Distiller, "training_step", step)
    return waited


def run(case, accelerator="gpu", **words):
    case = {"precision": "bf16-mixed", **case}
    nodes, edges = case.pop("nodes", pair)(), case.pop("edges", ["ce", "kd"])
    made = kdkit.Distiller(nodes, edges, **{"compile": "auto", **words, **case.pop("words", {})})
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = pl.Trainer(accelerator=accelerator, devices=1, max_epochs=2, **quiet, **case)
    trainer.fit(made, loader(n=104), loader(n=32))
    return made


@pytest.mark.parametrize("name", CASES)
def test_no_step_waits(name, there, within):
    run(CASES[name])
    assert within == []
    assert bool(there.recorded) == (name not in NOT_RECORDED)


@pytest.mark.parametrize("name", ["plain", "crd", "ema", "skip", "clip"])
def test_no_ordinary_step_waits(name, there, within):
    run(CASES[name], compile=False)
    assert within == []
    assert there.recorded == 0


@pytest.mark.parametrize("name", ["plain", "pcgrad"])
def test_a_scaler_waits_once_a_step(name, there, within):
    """Torch's own, to know whether gradients overflowed."""
    run({**CASES[name], "precision": "16-mixed"})
    assert {what for what, _ in within} == {"item"}


@pytest.mark.parametrize("name", ["plain", "crd", "late", "late head", "charged", "stages", "students"])
def test_what_is_learned_there(name, monkeypatch):
    case = {"precision": "32-true", **CASES[name]}
    here = run(case, accelerator="cpu").state_dict()
    with gpu(monkeypatch) as there:
        found = {key: value.cpu() for key, value in run(case).state_dict().items()}
    assert there.started > 3
    for key, value in here.items():
        torch.testing.assert_close(found[key], value, rtol=1e-4, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ("crd_kd_cifar100", ["losses.crd.num_negatives=64"]),
        ("dml_elastic_cifar100", ["cohort.join.c.epoch=1", "cohort.leave.a.epoch=1", "cohort.ramp=0"]),
        ("dml_elastic_cifar100", ["cohort.join.c.epoch=0.1", "cohort.leave.a.epoch=0.2", "cohort.ramp=1"]),
        ("kd_cifar100", ["models.teacher.cache=true"]),
    ],
)
def test_recipes(recipe, words, there, within, tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    words = [*words, "data.fake=true", "data.batch_size=4", "trainer.max_epochs=2", "trainer.limit_train_batches=6"]
    words += ["trainer.limit_val_batches=1", "trainer.accelerator=gpu", "trainer.compile=auto"]
    words += [f"models.{name}.arch=resnet8" for name in load(recipe).models]
    words += ["models.teacher.weights=random"] if "teacher" in load(recipe).models else []
    assert fit(load(recipe, words), out=tmp_path / "run").last
    assert within == []


def test_why_a_run_has_no_cuda_graph_is_told(there, tmp_path, capsys):
    words = ["data.fake=true", "data.batch_size=4", "trainer.max_epochs=1", "trainer.limit_train_batches=2"]
    words += [
        "trainer.limit_val_batches=1",
        "trainer.accelerator=gpu",
        "trainer.compile=auto",
        "models.student.arch=resnet8",
    ]
    fit(load("student_resnet20_cifar100", [*words, "trainer.accumulate_grad_batches=2"]), out=tmp_path / "run")
    assert "training without a CUDA graph: gradients are accumulated" in capsys.readouterr().out


def test_latency(there):
    """Timed by the GPU's own events, under its name."""
    said = command("latency", "resnet8", "--mode", "eager", "--batch", "2", "--repeats", "5", "--seconds", "0")
    assert said.code == 0, said
    assert "on cuda: a GPU on paper" in said.out
    assert ("synchronize", "deploy/latency.py") in {(what, line.partition(":")[0]) for what, line in there.waits}


class TestThePaper:
    """It finds what it is for."""

    def test_two_devices(self, there):
        with pytest.raises(RuntimeError, match=r"add.*on the CPU"):
            torch.ones(2, device="cuda") + torch.ones(2)
        assert (torch.ones(2, device="cuda") + torch.tensor(1.0)).device.type == "cuda"

    def test_numpy(self, there):
        with pytest.raises(TypeError, match="can't convert cuda"):
            torch.ones(2, device="cuda").numpy()

    def test_places_follow(self, there):
        net = torch.nn.Linear(2, 2).to("cuda")
        net(torch.ones(1, 2, device="cuda")).sum().backward()
        assert {net.weight.device.type, net.weight.grad.device.type, net.weight.T.device.type} == {"cuda"}
        assert copy.deepcopy(net).weight.device.type == "cuda"
        assert net.to("cpu").weight.device.type == "cpu"

    @pytest.mark.parametrize(
        "look",
        [
            lambda x: x[0].item(),
            lambda x: bool((x > 0).all()),
            lambda x: x[x > 0],
            lambda x: x.cpu(),
            lambda x: x[torch.tensor([0])],
            lambda x: torch.tensor([1.0], device="cuda"),
            lambda x: torch.ones(2).to("cuda"),
            lambda x: x.nonzero(),
            lambda x: torch.where(x > 0),
            lambda x: x.__setitem__(x > 0, x * 2),
        ],
    )
    def test_waits(self, look, there):
        x = torch.ones(2, device="cuda")
        look(x)
        assert len(there.waits) == 1
        with pytest.raises(RuntimeError, match="previous error") as caught, torch.cuda.graph(torch.cuda.CUDAGraph()):
            look(x)
        assert re.search("capturing|no replay|same again", str(caught.value.__context__))

    def test_work_on_the_host_is_not_recorded(self, there):
        x = torch.ones(2)
        with pytest.raises(RuntimeError, match="previous error") as caught, torch.cuda.graph(torch.cuda.CUDAGraph()):
            x.add_(1)
        assert "no replay repeats" in str(caught.value.__context__)

    @pytest.mark.parametrize("held", [False, True])
    def test_a_gradient_of_another_stream(self, held, there):
        """Only where the graph of a step before, from outside of the recording, is still held."""
        layer, x = torch.nn.Linear(2, 2).to("cuda"), torch.ones(1, 2, device="cuda")
        before = layer(x)
        if not held:
            del before
        refused = pytest.raises(RuntimeError, match="previous error") if held else nullcontext()
        with refused, torch.cuda.graph(torch.cuda.CUDAGraph()):
            layer(x)

    def test_a_stream_that_joins(self, there):
        layer, x, beside = torch.nn.Linear(2, 2).to("cuda"), torch.ones(1, 2, device="cuda"), torch.cuda.Stream()
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):
                layer(x)
        assert there.recorded == 1

    def test_a_pool_ends_with_its_graphs(self, there):
        pool = torch.cuda.graph_pool_handle()
        made = [torch.cuda.CUDAGraph() for _ in range(2)]
        for one in made:
            with torch.cuda.graph(one, pool=pool):
                pass
        del made, one
        with pytest.raises(RuntimeError, match="use_count"), torch.cuda.graph(torch.cuda.CUDAGraph(), pool=pool):
            pass

    def test_a_replay(self, there):
        graph, x = torch.cuda.CUDAGraph(), torch.zeros(2, device="cuda")
        with torch.cuda.graph(graph):
            x.add_(1)
        graph.replay()
        graph.replay()
        assert x.tolist() == [2, 2]
