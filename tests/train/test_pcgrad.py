"""PCGrad against its formula in numpy, and what it leaves alone."""

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import kdkit
from kdkit.registry import KdkitError
from kdkit.train.pcgrad import projected
from tests.nets import Blobs, Net, net
from tests.train.running import fit


def by_hand(gradients, orders):
    """Algorithm 1 of Yu et al. 2020."""
    total = 0
    for i, g in enumerate(gradients):
        mine = g.copy()
        for j in orders[i]:
            if j != i and (dot := mine @ gradients[j]) < 0:
                mine = mine - dot / (gradients[j] @ gradients[j]) * gradients[j]
        total = total + mine
    return total


def test_it_is_the_formula(monkeypatch):
    made = np.random.default_rng(0)
    for n in (2, 3, 5):
        gradients = [made.normal(size=7) for _ in range(n)]
        orders = [made.permutation(n) for _ in range(n)]
        turns = iter(orders)
        with monkeypatch.context() as patch:
            patch.setattr("kdkit.draws.permutation", lambda *_, turns=turns: torch.tensor(next(turns)))
            got = projected([torch.tensor(g) for g in gradients], 0)
        np.testing.assert_allclose(got, by_hand(gradients, orders), rtol=1e-10)


def test_every_task_meets_the_others_in_an_order_of_its_own(monkeypatch):
    keys = []
    monkeypatch.setattr("kdkit.draws.permutation", lambda key, n, device: keys.append(key) or torch.arange(n))
    projected([torch.ones(2)] * 4, 0)
    assert len(set(keys)) == 4


def test_two_that_conflict_become_orthogonal_parts_and_zeros_are_no_trouble():
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([-1.0, 1.0])
    torch.testing.assert_close(projected([a, b], 0), torch.tensor([0.5, 0.5]) + torch.tensor([0.0, 1.0]))
    assert torch.equal(projected([a, torch.zeros(2)], 0), a)
    assert torch.equal(projected([a, a], 0), 2 * a)


class TwoHeads(Net):
    def __init__(self):
        super().__init__(6)
        self.second = nn.Linear(6, 5)

    def forward(self, x):
        x = self.act2(self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x))))))
        x = self.pool(x).flatten(1)
        self.second(x)
        return self.fc(x)


def made():
    """Two heads of which each wants what the other does not."""
    torch.manual_seed(3)
    model = TwoHeads().double()
    model.second.weight.data.copy_(-model.fc.weight.data)
    return model


LOSSES = ["ce", kdkit.Edge("ce", name="other", target="net.second", weight=2.0)]
MUTUAL = [
    kdkit.Edge("dml", source="net.fc", target="net.second"),
    kdkit.Edge("dml", name="back", source="net.second", target="net.logits"),
]


def one_step(pcgrad, model, edges, callbacks=()):
    data = DataLoader([(x.double(), y, i) for x, y, i in Blobs(n=16)], batch_size=16)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    distiller = kdkit.Distiller(
        {"net": model}, edges, lr=1.0, optimizer={"name": "sgd"}, pcgrad=pcgrad, channels_last=False
    )
    fit(distiller.double(), data, epochs=1, callbacks=[*callbacks])
    return {name: before[name] - p.detach() for name, p in model.named_parameters()}


def test_a_trunk_moves_by_the_formula_and_heads_as_ever():
    got, model = one_step(True, made(), LOSSES + MUTUAL), made()
    plain = one_step(False, made(), LOSSES + MUTUAL)
    x, y = torch.stack([x for x, *_ in Blobs(n=16)]).double(), Blobs(n=16).y
    features = model.pool(model.act2(model.bn2(model.conv2(model.act1(model.bn1(model.conv1(x))))))).flatten(1)
    one, two = model.fc(features), model.second(features)

    def kl(z, teacher):
        return F.kl_div(z.log_softmax(1), teacher.detach().log_softmax(1), reduction="batchmean", log_target=True)

    tasks = [
        F.cross_entropy(one, y) + kl(one, two),
        2 * F.cross_entropy(two, y) + kl(two, one),
    ]
    trunk = [name for name, _ in model.named_parameters() if not name.startswith(("fc", "second"))]
    parameters = dict(model.named_parameters())
    grads = [torch.autograd.grad(task, [parameters[n] for n in trunk], retain_graph=True) for task in tasks]
    flat = [torch.cat([g.flatten() for g in several]).numpy() for several in grads]
    assert flat[0] @ flat[1] < 0
    want = by_hand(flat, [[1], [0]])
    np.testing.assert_allclose(torch.cat([got[n].flatten() for n in trunk]), want, rtol=1e-8, atol=1e-12)
    for name in set(got) - set(trunk):
        torch.testing.assert_close(got[name], plain[name])
    assert not torch.allclose(got["conv1.weight"], plain["conv1.weight"])


def test_the_order_of_tasks_is_drawn_anew_in_every_step(monkeypatch):
    keys = []
    monkeypatch.setattr("kdkit.train.pcgrad.projected", lambda found, key: keys.append(key) or projected(found, key))
    fit(kdkit.Distiller({"net": made().float()}, LOSSES, lr=0.1, pcgrad=True), epochs=1)
    assert len({*keys}) == len(keys) == 4


def test_hooks_of_a_backward_are_called_as_ever():
    class Watch(pl.Callback):
        seen = ()

        def on_before_backward(self, trainer, made, loss):
            self.seen += (made.net.fc.weight.grad is None and loss.item() > 0,)

        def on_after_backward(self, trainer, made):
            self.seen += (made.net.fc.weight.grad is not None,)

    one_step(True, made(), LOSSES, callbacks=[watch := Watch()])
    assert watch.seen == (True, True)


def test_models_that_share_nothing_are_left_alone():
    def trained(pcgrad):
        nodes = {name: net(4 + 2 * i, seed=i) for i, name in enumerate("ab")}
        distiller = kdkit.Distiller(nodes, ["ce", kdkit.Edge("dml", among=["a", "b"])], lr=0.1, pcgrad=pcgrad)
        fit(distiller, epochs=1, accumulate_grad_batches=2)
        return distiller.graph.state_dict()

    one, other = trained(False), trained(True)
    for key, value in one.items():
        torch.testing.assert_close(other[key], value)


def test_what_cannot_be_done_is_said():
    with pytest.raises(KdkitError, match="pcgrad: looks at the gradient of every task by itself"):
        kdkit.Distiller({"net": made()}, LOSSES, pcgrad=True, compile="auto")
    with pytest.raises(KdkitError, match="pcgrad must be True or False, got 'yes'"):
        kdkit.Distiller({"net": made()}, LOSSES, pcgrad="yes")
