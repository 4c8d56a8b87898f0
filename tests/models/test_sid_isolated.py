"""Isolated stages against stages that are detached by hand; what closing saves; where a net cannot be cut."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import kdkit
from benchmarks.timing import peak_bytes
from kdkit.graph.batch import Batch, Facts
from kdkit.graph.closing import closing
from kdkit.graph.graph import Graph
from kdkit.losses import SIDLoss
from kdkit.models import build
from kdkit.models.sid_isolated import IsolatedCascade
from kdkit.registry import KdkitError
from kdkit.taps import Taps
from tests.nets import Net

N = 5
EXACT = {"atol": 1e-10, "rtol": 0}


def isolated(arch: Any = "resnet8", cuts: tuple[str, ...] = ("layer1", "layer2"), **words: Any) -> IsolatedCascade:
    torch.manual_seed(0)
    return build("sid", num_classes=N, backbone=arch, isolate=list(cuts), **{"modules": 2, **words}).double()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    made = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 16, 16, dtype=torch.float64, generator=made), torch.arange(4) % N


def by_hand(net: IsolatedCascade, x: Tensor, labels: Tensor, alpha: float) -> list[float]:
    """Three nets that are trained by themselves, one on what the other gave: plain autograd, module by module."""
    b = net.backbone
    stages = [
        lambda x: b.layer1(b.relu(b.bn1(b.conv1(x)))),
        b.layer2,
        lambda x: b.avgpool(b.layer3(x)).flatten(1),
    ]
    p = torch.full((len(x), N), 1 / N, dtype=torch.float64)
    values = []
    for stage, part in zip(stages, net.beliefs.parts, strict=True):
        x = stage(x)
        z = x.mean((2, 3)) if x.ndim == 4 else x
        total = 0.0
        for i in range(len(part.bias)):
            weight = torch.cat([part.belief_weight[i], part.feature_weight[i]], 1)
            logits = nn.functional.linear(torch.cat([p, z], 1), weight, part.bias[i])
            if part.out_weight is not None:
                logits = nn.functional.linear(logits.relu(), part.out_weight[i], part.out_bias[i])
            log_p = logits.log_softmax(1)
            to_labels = -log_p[torch.arange(len(x)), labels]
            to_before = (p * (p.log() - log_p)).sum(1)
            total = total + (alpha * to_labels + (1 - alpha) * to_before).mean()
            p = log_p.exp().detach()
        total.backward()
        values.append(total.item())
        x = x.detach()
    return values


def grads(net: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in net.named_parameters()}


def bound(net: nn.Module, x: Tensor, labels: Tensor, *edges: kdkit.Edge | str) -> Graph:
    graph = Graph({"student": net}, list(edges) or [kdkit.Edge("sid", alpha=0.3)])
    graph.bind(Batch(x, labels), Facts(num_classes=N), 10)
    return graph.train()


@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize(("mode", "kind"), [("parallel", "linear"), ("joint", "mlp"), ("lean", "mlp")])
def test_gradients_are_those_of_stages_detached_by_hand(
    mode: str, kind: str, close: bool, batch: tuple[Tensor, Tensor]
) -> None:
    net = isolated(mode=mode, kind=kind, hidden=6)
    plain = copy.deepcopy(net)
    data, closed = Batch(*batch), []

    def backward(loss: Tensor) -> None:
        closed.append(loss.detach())
        loss.backward()

    graph = bound(net, *batch)
    start = copy.deepcopy(plain.state_dict())
    for key, value in net.state_dict().items():
        assert torch.equal(value, start[key]), "binding leaves no trace"
    if close:
        with closing(graph, data, backward):
            outputs = graph.outputs(data)
    else:
        outputs = graph.outputs(data)
    terms = graph.terms(graph.now.updates, outputs, data)
    graph.weighted(terms).backward()
    values = by_hand(plain, *batch, alpha=0.3)
    assert len(closed) == 2 * close
    torch.testing.assert_close(terms["sid"].item(), sum(values), **EXACT)
    ours, theirs = grads(net), grads(plain)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, msg=name, **EXACT)
    for (name, one), other in zip(net.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name, **EXACT)
    assert net.close is None


def test_a_stage_that_closes_its_own_gradient_is_gone_before_the_next_one_runs(batch: tuple[Tensor, Tensor]) -> None:
    """The largest stage instead of all of them; a detach alone, with one backward pass, saves nothing."""
    x, labels = torch.randn(16, 3, 32, 32), torch.arange(16) % N
    vit = {"arch": "timm/test_vit", "img_size": 32, "patch_size": 4, "depth": 6}
    net = isolated(vit, ("blocks.1", "blocks.3")).float()
    data = Batch(x, labels)
    graph = bound(net, x, labels, kdkit.Edge("sid"))
    whole = build("sid", num_classes=N, backbone=vit, modules=6)
    together = bound(whole, x, labels, kdkit.Edge("sid"))

    def step(graph: Graph, close: bool) -> None:
        if close:
            with closing(graph, data, lambda loss: loss.backward()):
                outputs = graph.outputs(data)
        else:
            outputs = graph.outputs(data)
        graph.weighted(graph.terms(graph.now.updates, outputs, data)).backward()
        graph.zero_grad()

    cpu = torch.device("cpu")
    closed, detached = (peak_bytes(lambda c=c: step(graph, c), cpu) for c in (True, False))
    bp = peak_bytes(lambda: step(together, False), cpu)
    assert closed < 0.5 * bp
    assert detached > 0.95 * bp


@pytest.mark.parametrize(
    ("arch", "cuts"),
    [
        ("simple_cnn", ("relu2", "relu3")),
        ({"arch": "timm/test_vit", "img_size": 32, "patch_size": 8}, ("blocks.1", "blocks.3")),
        ("timm/test_resnet", ("layer1", "layer3")),
        ("torchvision/shufflenet_v2_x0_5", ("stage2",)),
    ],
)
def test_any_net_is_cut(arch: Any, cuts: tuple[str, ...]) -> None:
    net = isolated(arch, cuts).float()
    x, labels = torch.randn(2, 3, 32, 32), torch.arange(2)
    taps = Taps(net, ["beliefs", "embedding", "logits"], x)
    values = taps(x)
    assert values["beliefs"].shape == (2, 2 * (len(cuts) + 1), N)
    assert torch.equal(values["beliefs"][:, -1], values["logits"])
    graph = bound(net, x, labels)
    with closing(graph, Batch(x, labels), lambda loss: loss.backward()):
        outputs = graph.outputs(Batch(x, labels))
    graph.weighted(graph.terms(graph.now.updates, outputs, Batch(x, labels))).backward()
    missing = [name for name, p in net.named_parameters() if p.grad is None]
    assert not missing
    with torch.no_grad():
        assert torch.isfinite(net.eval()(x)).all()


class Around(nn.Module):
    """A net with a path around its first layer."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem, self.first, self.second = (nn.Conv2d(3 if i == 0 else 4, 4, 3, padding=1) for i in range(3))
        self.act, self.fc = nn.ReLU(), nn.Linear(4, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.act(self.stem(x))
        return self.fc((self.act(self.second(self.first(stem))) + stem).mean((2, 3)))


@pytest.mark.parametrize(
    ("arch", "cuts", "message"),
    [
        ("resnet8", ["layr1"], r"ResNet has no layer 'layr1'; did you mean 'layer1'"),
        ("resnet8", ["nothing"], r"no layer 'nothing'; its layers: conv1, bn1, relu, layer1"),
        (
            "resnet8",
            "layer1",
            r"isolate must be a list of the backbone's layers such as \[layer1, layer2\], got 'layer1'",
        ),
        ("resnet8", ["layer2", "layer1"], "must name layers in the order in which they run: layer1, layer2"),
        ("resnet8", ["layer1", "layer1"], "must name each layer once"),
        ("simple_cnn", ["pool"], "'pool' runs 2 times in a forward; cut at a layer that runs once"),
        (Around(N), ["first"], r"'first' does not cut Around in two: stem\.\w+ acts before and after it"),
    ],
)
def test_where_it_cannot_be_cut(arch: Any, cuts: Any, message: str) -> None:
    with pytest.raises(KdkitError, match=message):
        build("sid", num_classes=N, backbone=arch, isolate=cuts)


class Mixed(nn.Module):
    """A loss whose modules look at each other."""

    tap = "beliefs"

    def forward(self, student: Tensor, labels: Tensor) -> Tensor:
        return student.mean(1).logsumexp(1).mean()


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (["ce"], "learn from their beliefs alone, and no loss reads these at epoch 0; add `sid`"),
        ([kdkit.Edge("sid", when={"from": 2}), "ce"], "no loss reads these at epoch 0"),
        (["sid", kdkit.Edge("mse", target="stage1", source="teacher.stage1")], r"lies in a stage of 'student' that is"),
        ([kdkit.Edge("sid", weight={"share": 0.5}), "ce"], "a share cannot be measured where stages are isolated"),
        ([kdkit.Edge(Mixed)], "isolated stages take only a loss whose gradient at each module needs no module after"),
        ([kdkit.Edge("sid", clip=1.0)], "isolated stages learn one by one, and take no clip; leave it out"),
    ],
)
def test_what_isolated_stages_refuse(edges: list[Any], message: str) -> None:
    x, labels = torch.randn(4, 3, 16, 16), torch.arange(4)
    graph = Graph({"teacher": kdkit.frozen(build("resnet8", num_classes=N)), "student": isolated().float()}, edges)
    with pytest.raises(KdkitError, match=message):
        graph.bind(Batch(x, labels), Facts(num_classes=N), 10)


def test_it_is_not_compiled() -> None:
    with pytest.raises(
        KdkitError, match=r"model 'student': its isolated stages learn while it runs, .*leave `isolate`"
    ):
        kdkit.Distiller({"student": isolated()}, ["sid"], compile=True)
    recompute = build("sid", num_classes=N, backbone="resnet8", recompute=True)
    with pytest.raises(KdkitError, match="parts of it run twice, which cannot be compiled; leave `recompute`"):
        kdkit.Distiller({"student": recompute}, ["sid"], compile=True)
    kdkit.Distiller({"student": Net()}, ["ce"], compile=True)


def test_one_stage_is_the_whole_cascade(batch: tuple[Tensor, Tensor]) -> None:
    net = isolated(cuts=())
    logits = Taps(net, ["beliefs"], batch[0])(batch[0])["beliefs"]
    assert logits.shape == (4, 2, N)
    assert torch.isfinite(SIDLoss()(logits, batch[1]))
