"""Weights that move by themselves, beside gradients by plain autograd."""

import copy
import csv

import pytest
import torch

import kdkit
from kdkit.graph.balance import balanced
from kdkit.graph.share import Share
from kdkit.models import build
from kdkit.recipe import RecipeError, fingerprint, loads, resolved
from kdkit.registry import KdkitError
from kdkit.runs.check import check
from kdkit.runs.fit import fit as run_recipe
from kdkit.train import balance
from kdkit.train.balance import Balance, watch_balance
from kdkit.train.share import begin_step, calibrating, measure, weights
from tests.nets import loader, net
from tests.train.running import fit, pair

STILL = {"lr": 0.0, "optimizer": {"name": "sgd"}}
EDGES = [kdkit.Edge("ce", weight=2.0), kdkit.Edge("kd", weight=0.5, temperature=2.0)]


@pytest.fixture
def still(monkeypatch):
    """A graph, a batch, and a function that takes a step of the weights alone."""
    monkeypatch.setattr(balance, "RATE", {"gradnorm": 0.1, "uncertainty": 0.1})
    monkeypatch.setattr(balance, "EVERY", 1)
    distiller = kdkit.Distiller(pair(), EDGES, **STILL)
    fit(distiller, epochs=1)
    graph = distiller.graph.eval()
    batch = kdkit.train.distiller.Batch.of(next(iter(loader())))

    def step():
        begin_step(graph)
        terms = graph.terms(graph.now.updates, graph.outputs(batch), batch)
        measure(graph, terms)
        return terms

    return graph, step


def table(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def pulls(graph, terms):
    """Gradient of each weighted term in one vector."""
    theirs = list(graph.models["student"].parameters())
    found = {}
    for name, term in terms.items():
        value = graph.edges[name].weight * term
        parts = torch.autograd.grad(value, theirs, retain_graph=True, allow_unused=True)
        zeros = [torch.zeros_like(p) if g is None else g for g, p in zip(parts, theirs, strict=True)]
        found[name] = torch.cat([g.flatten() for g in zeros])
    return found


def test_uncertainty_ends_where_every_weighted_loss_is_one(still):
    graph, step = still
    watch_balance(graph, "uncertainty")
    assert calibrating(graph)
    for _ in range(250):
        terms = step()
    for name, term in terms.items():
        assert float(graph.edges[name].weight * term.detach()) == pytest.approx(1, rel=0.05)
    assert {k: float(v) for k, v in weights(graph).items()} == {
        f"weight/{name}": float(graph.edges[name].weight) for name in terms
    }


def test_gradnorm_ends_where_losses_that_learn_alike_pull_alike(still):
    graph, step = still
    before = {name: g.norm().item() for name, g in pulls(graph, step()).items()}
    watch_balance(graph, "gradnorm")
    for _ in range(120):
        terms = step()
    after = {name: g.norm().item() for name, g in pulls(graph, terms).items()}
    assert max(before.values()) / min(before.values()) > 1.5
    assert after["ce"] == pytest.approx(after["kd"], rel=0.15)
    factors = [float(graph.edges[name].weight) / base for name, base in (("ce", 2.0), ("kd", 0.5))]
    assert sum(factors) / 2 == pytest.approx(1, abs=1e-4)


def test_gradnorm_pulls_harder_at_the_loss_that_learns_slower(still):
    graph, step = still
    step()
    graph.watchers.append(moving := Balance("gradnorm", ["ce", "kd"]))
    terms = step()
    moving.first.copy_(torch.stack([terms["ce"].detach() * 4, terms["kd"].detach()]))  # ce has learned much
    for _ in range(120):
        terms = step()
    after = {name: g.norm().item() for name, g in pulls(graph, terms).items()}
    assert after["kd"] / after["ce"] == pytest.approx(4**balance.ALPHA, rel=0.3)


def test_weights_go_on_from_a_checkpoint(still):
    graph, step = still
    graph.watchers.append(Balance("uncertainty", ["ce", "kd"]))
    for _ in range(3):
        step()
    saved = copy.deepcopy(graph.watchers[0].state_dict())
    for _ in range(2):
        step()
    whole = float(graph.edges["kd"].weight)
    graph.watchers[0] = Balance("uncertainty", ["ce", "kd"])
    graph.watchers[0].load_state_dict(saved)
    for _ in range(2):
        step()
    assert float(graph.edges["kd"].weight) == whole
    assert graph.watchers[0].steps == 5


def test_the_weight_of_a_loss_whose_time_is_over_is_logged_after_a_resume_as_before(still):
    graph, step = still
    graph.watchers.append(Balance("uncertainty", ["ce", "kd"]))
    for _ in range(3):
        step()
    before = {word: float(weight) for word, weight in weights(graph).items()}
    assert before == {f"weight/{name}": float(graph.edges[name].weight) for name in ("ce", "kd")}
    graph.edges["kd"].weight.fill_(0.5)  # as it is built
    assert {word: float(weight) for word, weight in weights(graph).items()} == before


def test_a_loss_that_is_not_above_zero_is_told(still):
    graph, step = still
    graph.watchers.append(moving := Balance("uncertainty", ["ce", "kd"]))
    step()
    moving.logs.fill_(-balance.FARTHEST)
    with pytest.raises(KdkitError, match="weight of 'ce' 10,000 times what it was"):
        weights(graph)


def test_equal_shares_are_shares_beside_the_first():
    told = balanced("equal_share", [*EDGES, kdkit.Edge("mse")])
    assert [edge.weight for edge in told[1:]] == [Share(1 / 3), Share(1 / 3)]
    assert told[0].weight == EDGES[0].weight
    assert [edge.weight for edge in balanced(None, EDGES)] == [edge.weight for edge in EDGES]
    assert not isinstance(EDGES[1].weight, Share)


@pytest.mark.parametrize(
    ("kind", "edges", "text"),
    [
        ("evenly", EDGES, "must be one of equal_share, gradnorm, uncertainty, got 'evenly'"),
        ("gradnorm", EDGES[:1], "gradnorm weighs losses against each other, and there is one"),
        ("uncertainty", [*EDGES[:1], kdkit.Edge("kd", weight={"share": 0.5})], "must begin as a number, got share 0.5"),
        ("gradnorm", [*EDGES[:1], kdkit.Edge("kd", weight={"cosine": [1, 0]})], "must begin as a number, got cosine"),
        ("gradnorm", [*EDGES[:1], kdkit.Edge("kd", weight=0)], "the weight of 'kd' must be above 0, got 0"),
    ],
)
def test_what_cannot_be_balanced(kind, edges, text):
    with pytest.raises(KdkitError, match=text):
        balanced(kind, edges)


RECIPE = """\
data: {name: digits, image_size: 8, batch_size: 64}
models:
  teacher: {arch: resnet8, weights: random}
  student: {arch: resnet8}
losses: [ce, kd]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 2, accelerator: cpu, limit_train_batches: 4, limit_val_batches: 1}
balance: uncertainty
"""


def test_a_recipe_that_balances_and_a_run_that_is_diagnosed(tmp_path, capsys):
    recipe = loads(RECIPE)
    assert loads(resolved(recipe)) == recipe
    assert fingerprint(recipe) == fingerprint(loads(RECIPE.replace("balance: uncertainty\n", "")))
    run_recipe(recipe, out=tmp_path / "run", diagnose=True)
    metrics = table(tmp_path / "run" / "metrics.csv")
    assert float(metrics[0]["weight/ce"]) == pytest.approx(1, abs=0.05)
    assert float(metrics[1]["weight/ce"]) != float(metrics[0]["weight/ce"])
    rows = table(tmp_path / "run" / "gradients.csv")
    assert len(rows) == 4
    assert "gradient of student: ce" in capsys.readouterr().out
    with pytest.raises(RecipeError, match=r"balance: .*begin as a number, got cosine"):
        loads(RECIPE.replace("kd]", "kd: {weight: {cosine: [1, 0]}}]"))
    with pytest.raises(RecipeError, match="balance"):
        loads(RECIPE.replace("uncertainty", "gradnrm"))


@pytest.mark.parametrize("kind", ["gradnorm", "uncertainty", "equal_share"])
def test_a_distiller_takes_the_same_word(kind):
    """What a recipe's `balance` does, `balance=` does: the weights move, or are measured, in a plain Trainer's run."""
    distiller = kdkit.Distiller(pair(), ["ce", kdkit.Edge("kd", weight=0.5)], balance=kind)
    moves = [watcher.kind for watcher in distiller.graph.watchers]
    assert moves == ([] if kind == "equal_share" else [kind])
    assert isinstance(distiller.graph.unbound[1].weight, Share) == (kind == "equal_share")
    fit(distiller, epochs=1)
    weight = float(distiller.graph.edges["kd"].weight)
    assert weight > 0
    assert weight != 0.5


def test_words_that_a_distiller_cannot_balance_by():
    with pytest.raises(KdkitError, match="balance must be one of equal_share, gradnorm, uncertainty, got 'gradnrm'"):
        kdkit.Distiller(pair(), ["ce", "kd"], balance="gradnrm")
    with pytest.raises(KdkitError, match="there is one"):
        kdkit.Distiller(pair(), ["ce"], balance="gradnorm")
    with pytest.raises(KdkitError, match="losses must be a list"):
        kdkit.Distiller(pair(), "ce", balance="gradnorm")


def test_isolated_stages_are_refused():
    net = build("sid", num_classes=5, backbone="resnet8", modules=1, isolate=["layer1"])
    distiller = kdkit.Distiller({"student": net}, ["sid", "ce"], **STILL)
    with pytest.raises(KdkitError, match="balance: the stages of 'student' close their own gradients"):
        watch_balance(distiller.graph, "gradnorm")


PEERS = """\
data: {name: digits, image_size: 8, batch_size: 64}
models: {a: {arch: resnet8}, b: {arch: resnet8}, c: {arch: resnet8}}
losses: [ce, dml: {among: [a, b, c]}]
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 2}
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trainer.update=sequential", "balance=uncertainty"], "weighs all terms of a step together; leave `update"),
        (["trainer.update=sequential", "balance=gradnorm"], "weighs all terms of a step together; leave `update"),
        (["cohort={join: {c: {epoch: 1}}}", "balance=gradnorm"], "its first value, which changes with who takes part"),
    ],
)
def test_what_peers_cannot_be_balanced_by(words, said):
    with pytest.raises(RecipeError, match=said):
        loads(PEERS, overrides=words)
    loads(PEERS, overrides=[words[0], "balance=equal_share"])


def test_the_same_from_python():
    nodes = {name: net(4, seed=i) for i, name in enumerate("ab")}
    edges = ["ce", kdkit.Edge("dml", among=["a", "b"])]
    with pytest.raises(KdkitError, match="balance: uncertainty weighs all terms of a step together"):
        kdkit.Distiller(nodes, edges, balance="uncertainty", update="sequential")
    with pytest.raises(KdkitError, match="its first value, which changes with who takes part"):
        fit(kdkit.Distiller(nodes, edges, balance="gradnorm", lr=0.1), callbacks=[kdkit.Cohort()])


def test_equal_shares_that_do_not_fit_are_told_as_such_before_training():
    text = PEERS.replace("[ce, dml", "[ce: {to: a}, ce: {name: other, to: b}, dml") + "balance: equal_share\n"
    with pytest.raises(KdkitError, match=r"'other' and 'dml', share 0.333333 \(balance: equal_share\): shares are of"):
        check(loads(text))
    told = check(loads(PEERS + "balance: equal_share"))
    assert "share 0.5 (balance: equal_share)" in {row.weight for row in told.edges}
