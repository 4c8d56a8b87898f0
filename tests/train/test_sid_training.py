"""Cascades under the Distiller: stages that close their gradients, modules with optimisers of their own."""

from contextlib import nullcontext

import pytest
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader

import kdkit
from kdkit.graph.factors import set_factor
from kdkit.graph.stage import Stage
from kdkit.losses import SIDLoss
from kdkit.models import build
from kdkit.taps import Taps
from tests.nets import Blobs
from tests.train.running import fit, trainer

EXACT = {"atol": 1e-10, "rtol": 0}


class Doubled(Blobs):
    """In double precision, so that orders of summing do not show."""

    def __init__(self, n=48):
        super().__init__(n)
        self.x = self.x.double()


def cascade(**words):
    torch.manual_seed(0)
    return build("sid", num_classes=5, backbone="resnet8", modules=2, **words).double()


def trained(net, *edges, optimizer=None, **options):
    """Its weights after two epochs, and how often gradients were computed."""
    alone = [kdkit.Edge("sid", alpha={"linear": [0.9, 0.5]})]
    distiller = kdkit.Distiller({"student": net}, list(edges) or alone, optimizer=optimizer, lr=0.05)
    backward, seen = distiller._backward, []
    distiller._backward = lambda loss, *run: (seen.append(1), backward(loss, *run))[1]
    fit(distiller, DataLoader(Doubled(), 8), DataLoader(Doubled(), 48), precision="64-true", **options)
    return {name: value.clone() for name, value in net.state_dict().items()}, len(seen)


def same(one, other):
    assert one.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, msg=name, **EXACT)


def test_stages_that_close_move_as_one_backward_pass_would_move_them(monkeypatch):
    words = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    closed, times = trained(cascade(isolate=["layer1", "layer2"]), **words)
    assert times == 3 * 6 * 2
    monkeypatch.setattr("kdkit.train.distiller.closing", lambda *_: nullcontext())
    detached, times = trained(cascade(isolate=["layer1", "layer2"]), **words)
    assert times == 6 * 2
    same(closed, detached)


@pytest.mark.parametrize("mode", ["joint", "lean"])
def test_modes_train_alike(mode):
    same(trained(cascade(mode=mode, kind="mlp", hidden=8))[0], trained(cascade(kind="mlp", hidden=8))[0])


def by_hand(net, make, limit):
    """The released loop: an optimiser for the extractor and one for each module, each clipped by itself."""
    b = net.beliefs
    groups = [list(net.backbone.parameters()), *b.groups()]
    optimizers = [make(group) for group in groups]
    for _ in range(2):
        for x, y, _ in DataLoader(Doubled(), 8):
            SIDLoss()(b(net.backbone(x)), y).backward()
            for group, optimizer in zip(groups, optimizers, strict=True):
                if limit:
                    torch.nn.utils.clip_grad_norm_(group, limit)
                optimizer.step()
                optimizer.zero_grad()
    return {name: value.clone() for name, value in net.state_dict().items()}


@pytest.mark.parametrize(("limit", "mode"), [(None, "parallel"), (0.1, "joint")])
def test_one_optimiser_per_module(limit, mode):
    """Modules that are separate have each a group, clipping included; else one optimiser of all, as good without it."""
    options = {"optimizer": {"name": "adam"}, "gradient_clip_val": limit}
    words = {"kind": "mlp", "hidden": 6, "mode": mode}
    expected = by_hand(cascade(**words, separate=True), lambda group: torch.optim.Adam(group, lr=0.05), limit)
    separate, _ = trained(cascade(**words, separate=True), "sid", **options)
    same(separate, expected)
    together, _ = trained(cascade(**words), "sid", **options)
    stacked = torch.stack([separate[f"beliefs.feature_weight.{i}"] for i in range(2)])
    assert torch.allclose(together["beliefs.feature_weight"], stacked, atol=1e-10, rtol=0) == (limit is None)


@pytest.mark.parametrize("isolate", [(), ("layer1",)])
def test_every_epoch_tells_what_its_modules_believe(isolate):
    """The columns are means over the validation data, at the α of that time, and disturb nothing."""

    class Rows(pl.Callback):
        def on_validation_end(self, trainer, distiller):
            rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    rows = []
    net = cascade(isolate=isolate).float()
    alone = kdkit.Edge("sid", alpha={"linear": [0.9, 0.5]})
    distiller = kdkit.Distiller({"student": net}, [alone], lr=0.05)
    run = trainer(epochs=2, callbacks=[Rows()])
    val = DataLoader(Blobs(50), 16)
    run.fit(distiller, DataLoader(Blobs(48), 8), val)
    told = [{k: v for k, v in row.items() if k.startswith("monitor/")} for row in rows]
    told = [row for row in told if row]
    assert len(told) == 2
    modules = 2 * (1 + len(isolate))
    words = ("accuracy", "entropy", "belief", "improved")
    columns = {f"monitor/student/sid/{word}/{i + 1}" for word in words for i in range(modules)}
    assert told[1].keys() == columns | {"monitor/student/sid/slack"}
    x, y = (torch.cat(part) for part in list(zip(*val, strict=True))[:2])
    logits = Taps(net.eval(), ["beliefs"], x)(x)["beliefs"]
    loss = SIDLoss(alpha=float(distiller.graph.bound[0].losses[0].alpha))
    for word, value in loss.monitor(logits, y).items():
        found = [told[1][key] for key in sorted(columns | {"monitor/student/sid/slack"}) if f"/{word}" in key]
        assert found == pytest.approx(value.mean(0).flatten().tolist(), abs=1e-5), word
    assert rows[-1]["val/student/top1"] == pytest.approx(told[1][f"monitor/student/sid/accuracy/{modules}"])


def test_who_has_left_a_cohort_tells_no_more():
    class Columns(pl.Callback):
        def on_validation_end(self, trainer, distiller):
            if not trainer.sanity_checking:
                told.append({name.split("/")[1] for name in distiller.monitor.means()})

    told = []
    nets = {name: cascade().float() for name in "ab"}
    distiller = kdkit.Distiller(nets, ["sid"], lr=0.05)
    leaving = kdkit.Cohort(leave={"a": {"epoch": 1}})
    fit(distiller, DataLoader(Blobs(16), 8), DataLoader(Blobs(16), 16), epochs=2, callbacks=[leaving, Columns()])
    assert told == [{"a", "b"}, {"b"}]


@pytest.mark.parametrize("value", [0.0, 0.5])
def test_a_factor_reaches_isolated_stages(value):
    class Halve(pl.Callback):
        def on_train_start(self, trainer, distiller):
            set_factor(distiller.graph, "sid", value, target="student")

    def run(weight, *callbacks):
        edge = kdkit.Edge("sid", weight=weight)
        net, rest = cascade(isolate=["layer1"]), {"optimizer": {"name": "sgd"}, "callbacks": list(callbacks)}
        return trained(net, edge, kdkit.Edge("ce", weight=0.1), **rest)[0]

    factored, weighted = run(1.0, Halve()), run(value)
    same(factored, weighted)


@pytest.mark.parametrize("train", ["student.backbone.layer1", "student.backbone.layer3", "hint", ["peer", "hint"]])
def test_isolated_stages_that_rest_stand_still(train):
    """Those of a whole cascade, too, while a head behind it learns."""
    nodes = {name: cascade(isolate=["layer1", "layer2"]) for name in ("student", "peer")}
    edges = ["sid", kdkit.Edge("hint", source="peer", target="student", taps="logits", head="linear")]
    made = kdkit.Distiller(nodes, edges, lr=0.05, stages=[Stage("s", train=train)])
    before = {name: value.clone() for name, value in made.graph.models.state_dict().items()}
    fit(made, DataLoader(Doubled(), 8), epochs=1, precision="64-true")
    moved = {name for name, value in made.graph.models.state_dict().items() if not torch.equal(value, before[name])}
    part = train if isinstance(train, str) else "peer"
    assert moved == {name for name in moved if name.startswith(part)}
    assert bool(moved) == (part != "hint")
