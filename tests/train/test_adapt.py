"""What follows held-out training samples: by hand in small numbers, and in a run that is cut and resumed."""

import math

import pytest
import pytorch_lightning as pl
import torch
from torch.nn import functional as F

import kdkit
from kdkit import data
from kdkit.graph.control import Climb, Control, entropy, towards
from kdkit.graph.coordinate import Coordination, Standing
from kdkit.graph.factors import factors, pair
from kdkit.recipe import RecipeError, loads
from kdkit.registry import KdkitError
from tests.nets import loader, net
from tests.train.running import fit, trainer

PAIRS = [(a, b) for a in "abc" for b in "abc" if a != b]


def standing(nll, **words):
    made = Standing(Coordination(**words), list(nll))
    made.add(nll)
    return made


def test_the_better_teach_more_and_the_weaker_listen_more():
    nll = {"a": 1.0, "b": 2.0, "c": 3.0}
    w = standing(nll, scale=0.5).weights(PAIRS)
    exp = {name: math.exp(value / 2 / 0.5) for name, value in nll.items()}
    for teacher, learner in PAIRS:
        others = [1 / exp[name] for name in nll if name != learner]
        share = 1 / exp[teacher] / sum(others)
        assert w[teacher, learner] == pytest.approx(3 * exp[learner] / sum(exp.values()) * share)
    listens = {k: sum(w[pair] for pair in PAIRS if pair[1] == k) for k in nll}
    assert sum(listens.values()) == pytest.approx(3)
    assert listens["a"] < listens["b"] < listens["c"]
    assert w["a", "c"] > w["b", "c"]


def test_equal_peers_have_the_weights_of_plain_mutual_learning():
    w = standing(dict.fromkeys("abc", 1.7)).weights(PAIRS)
    assert list(w.values()) == pytest.approx([0.5] * 6)


def test_who_is_not_finite_neither_teaches_nor_listens_and_the_others_go_on():
    w = standing({"a": 1.0, "b": math.nan, "c": 1.0}).weights(PAIRS)
    assert {pair: round(value, 9) for pair, value in w.items() if value} == {("a", "c"): 1, ("c", "a"): 1}
    again = standing({"a": 1.0, "b": math.nan, "c": 1.0}, ema=0.5)
    again.add({"a": 3.0, "b": 2.0, "c": 1.0})
    assert again.nll.tolist() == [2.0, 2.0, 1.0]


def test_the_entropy_is_brought_to_the_target_and_stays_there():
    z = torch.randn(64, 10, generator=torch.Generator().manual_seed(0)) * 8
    p = F.softmax(z.double() / 3, 1)
    assert entropy(z, 3.0) == pytest.approx(float(-(p * p.log()).sum(1).mean()))
    control, T, seen = Control("entropy", target=entropy(z, 3.6), start=1.0), 1.0, []
    for _ in range(9):
        T = towards(T, z, control)
        seen.append(T)
    assert seen == [1.5, 2, 2.5, 3, 3.5, 3.5, 3.5, 3.5, 3.5]
    assert towards(8.0, z, Control("entropy", target=5.0, start=8.0)) == 8
    assert towards(1.0, z, Control("entropy", target=1e-9)) == 1
    assert towards(2.0, torch.zeros(4, 5), Control("entropy", target=1.0)) == 2  # all alike: no move helps


def test_the_limits_of_what_is_controlled():
    assert Control("nll", start=2.0, high=6.0).extremes(3) == (1, 6)
    with pytest.raises(KdkitError, match=r"start must lie in \[1, 8\], got 0.5"):
        Control("nll", start=0.5)


def test_the_past_has_its_share_of_what_is_smoothed():
    standing = Standing(Coordination(ema=0.25), ["a"])
    assert Coordination.parse(True) == Coordination(scale=0.25, ema=0.5)
    for nll in (2.0, 4.0):
        standing.add({"a": nll})
    assert float(standing.nll[0]) == 3.5


def test_the_climb_goes_on_while_it_helps_and_turns_where_it_does_not():
    climb, control, T, seen = Climb(1), Control("nll", start=1.0), 1.0, []
    for nll in (3.0, 2.5, 2.6, 2.55, 2.4, 2.3, math.nan):
        T = climb.move(0, T, nll, control)
        seen.append(T)
    assert seen == [1.5, 2.0, 1.5, 1.0, 1.0, 1.5, 1.0]


def made(**words):
    edge = kdkit.Edge("dml", among=["a", "b", "c"], **words)
    nodes = {name: net(4 + 4 * i, seed=i, classes=10) for i, name in enumerate("abc")}
    return kdkit.Distiller(nodes, ["ce", edge], lr=0.05)


def digits(**words):
    return data.build("digits", image_size=8, subset=200, batch_size=50, padding=1, **words)


WORDS = [
    {"coordinate": True, "temperature": {"control": "entropy", "target": 1.9, "start": 4.0}},
    {"temperature": {"control": "nll", "start": 2.0}},
]


@pytest.mark.parametrize("words", WORDS, ids=["coordinated", "climbing"])
def test_a_run_that_is_cut_goes_on_as_if_it_were_not(words, tmp_path):
    whole, cut, again = made(**words), made(**words), made(**words)
    run = fit(whole, digits(val_split=0.2), epochs=3)

    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            trainer.should_stop = trainer.current_epoch == 1

    short = trainer(epochs=3, callbacks=[Stop()])
    short.fit(cut, digits(val_split=0.2))
    short.save_checkpoint(tmp_path / "two.ckpt")
    rest = trainer(epochs=3)
    rest.fit(again, digits(val_split=0.2), ckpt_path=tmp_path / "two.ckpt", weights_only=False)
    state = again.state_dict()
    assert any("factors" in key or "temperature" in key for key in state)
    for key, value in whole.state_dict().items():
        assert torch.equal(value, state[key]), key
    logged = {key: float(value) for key, value in run.callback_metrics.items()}
    told = {key for key in logged if key.startswith(("weight/dml/", "temperature/dml/"))}
    assert {key.rpartition("/")[2] for key in told} == {f"{one}_to_{other}" for one, other in PAIRS}


def test_the_entropy_is_that_of_what_the_loss_softens():
    """Loud logits are too sure at any T, so that it would rise; standardised ones are not sure enough, and it falls."""
    teacher = net(4, seed=1, classes=10)
    with torch.no_grad():
        [m for m in teacher.modules() if isinstance(m, torch.nn.Linear)][-1].weight.mul_(1000)
    control = {"control": "entropy", "target": 1.8, "start": 2.0, "by": 1.0}
    nodes = {"teacher": kdkit.frozen(teacher), "student": net(4, seed=2, classes=10)}
    edge = kdkit.Edge("kd", standardise=True, temperature=control)
    run = fit(kdkit.Distiller(nodes, ["ce", edge], lr=0.05), digits(val_split=0.2), epochs=1)
    assert float(run.callback_metrics["temperature/kd/teacher_to_student"]) == 1.0


def test_factors_and_the_log_are_the_weights():
    coordinated = made(coordinate={"ema": 0.0})
    run = fit(coordinated, digits(val_split=0.2), epochs=1)
    found = factors(coordinated.graph, "dml")
    for (sources, target), factor in found.items():
        logged = run.callback_metrics[f"weight/dml/{sources[0]}_to_{target}"]
        assert factor == pytest.approx(2 * float(logged), rel=1e-5)
    assert sum(found.values()) / 2 == pytest.approx(3, rel=1e-5)
    assert len(set(found.values())) > 1


@pytest.mark.parametrize(("leaves", "word"), [(0.5, 0.125), (1.5, 1.5)])  # below 1: a share of the four epochs
def test_who_leaves_in_the_middle_of_an_epoch_leaves_its_weight_to_the_others(leaves, word):
    """What each one is told is one mean over its teachers before and after; before the first look all count alike."""
    seen = {}

    class Look(pl.Callback):
        def on_train_batch_end(self, run, module, outputs, batch, i):
            edge = module.graph.edges["dml"]
            told = edge.audience(edge.factors, {}) / 2
            known = module.graph.edges["dml"].coordination.nll
            found = {PAIRS[j]: float(v) for j, v in enumerate(told) if j not in edge.audience.idle}
            seen[run.current_epoch + i / run.num_training_batches] = found, known.tolist()

    cohort = kdkit.Cohort(leave={"c": {"epoch": word}})
    coordinated = made(coordinate=True)
    run = fit(coordinated, digits(val_split=0.2), epochs=4, callbacks=[cohort, Look()])
    pairs = [(pair(call)[0][0], call.target) for call in coordinated.graph.edges["dml"].calls]
    assert pairs == PAIRS
    after, known = seen[max(t for t in seen if t < math.ceil(leaves))]
    if leaves < 1:
        assert after == pytest.approx({("a", "b"): 1.0, ("b", "a"): 1.0})
    else:
        assert after == pytest.approx(standing(dict(zip("abc", known, strict=True))).weights([("a", "b"), ("b", "a")]))
        before, _ = seen[1.0]
        assert len(before) == 6
        assert sum(before.values()) == pytest.approx(3)
        assert sum(after.values()) == pytest.approx(2)
    assert run.callback_metrics["weight/dml/a_to_b"] != 1


def test_what_is_seen_are_the_held_out_images_and_never_the_test_set(monkeypatch):
    seen = []
    module = digits(val_split=0.2)
    monkeypatch.setattr(type(module), "test_dataloader", lambda self: pytest.fail("test data"))
    from kdkit.train import adapt

    look = adapt._look
    monkeypatch.setattr(adapt, "_look", lambda *args: seen.append(look(*args)) or seen[-1])
    coordinated = made(coordinate=True)
    fit(coordinated, module, epochs=1, limit_val_batches=0)
    held = module.read_labels(True)[module.parts[1]]
    assert torch.equal(seen[0].labels, held)
    x = torch.cat([x for x, _ in module.val_dataloader()])
    want = F.cross_entropy(coordinated.graph.model("a").eval()(x).detach(), held)
    assert seen[0].nll("a") == pytest.approx(float(want), rel=1e-4)
    assert coordinated.graph.edges["dml"].coordination.nll[0] == pytest.approx(float(want), rel=1e-4)


def test_of_many_held_out_images_the_first_are_looked_at(monkeypatch):
    module, distiller = digits(val_split=0.2), made(coordinate=True)
    monkeypatch.setattr("kdkit.train.adapt.MOST", 40)
    fit(distiller, module, epochs=1, limit_train_batches=1, limit_val_batches=0)
    x, y = (part[:40] for part in next(iter(module.val_dataloader())))
    want = F.cross_entropy(distiller.graph.model("a").eval()(x).detach(), y)
    assert distiller.graph.edges["dml"].coordination.nll[0] == pytest.approx(float(want), rel=1e-4)


def test_without_held_out_images_it_is_refused():
    for words in WORDS:
        with pytest.raises(KdkitError, match=r"edge 'dml': follows held-out training samples, .* say `val_split: 0.1`"):
            fit(made(**words), digits(), epochs=1)
        with pytest.raises(KdkitError, match="none are held out"):
            fit(made(**words), loader(classes=10), loader(classes=10), epochs=1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ({"temperature": {"control": "entropy"}}, "target, in nats, goes with `control: entropy`"),
        ({"temperature": {"control": "nll", "target": 1}}, "target, in nats, goes with `control: entropy`"),
        ({"temperature": {"control": "val"}}, "control must be 'entropy' or 'nll', got 'val'"),
        ({"temperature": {"control": "nll", "start": 9}}, "start must lie in"),
        ({"temperature": {"control": "nll", "stat": 2}}, "control: unknown word 'stat'; did you mean 'start'"),
        ({"coordinate": {"scale": 0}}, "scale must be above 0"),
        ({"coordinate": {"ema": 1}}, r"ema in \[0, 1\), got 0.25, 1$"),
        ({"coordinate": {"sacle": 1}}, "coordinate: unknown word 'sacle'; did you mean 'scale'"),
        ({"coordinate": True, "ensemble": "arithmetic"}, "it goes with `among`, no ensemble"),
        ({"weight": {"control": "nll"}}, "unknown schedule 'control'"),
    ],
)
def test_wrong_words_are_refused(words, said):
    with pytest.raises(KdkitError, match=said):
        made(**words)


RECIPE = """data: {name: digits}
models: {a: {arch: resnet8}, b: {arch: resnet20}}
losses:
  - ce
  - dml: {among: [a, b]}
optimizer: {name: sgd}
lr: 0.1
trainer: {max_epochs: 2}
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("coordinate: true", "recipe:5: losses.dml.coordinate: follows held-out training samples"),
        ("coordinate: {ema: 2}", "recipe:5: losses.dml.coordinate"),
        ("temperature: {control: nll}", "recipe:5: losses.dml.temperature: follows held-out"),
        ("temperature: {control: entropy}", "recipe:5: losses.dml.temperature: control: target"),
        ("clip: {control: nll}", "recipe:5: losses.dml.clip: unknown schedule"),
    ],
)
def test_a_recipe_that_is_wrong_is_refused_at_its_line(words, said):
    with pytest.raises(RecipeError, match=said):
        loads(RECIPE.replace("among: [a, b]", f"among: [a, b], {words}"))


def test_a_recipe_says_them():
    words = "among: [a, b], coordinate: {scale: 0.5}, temperature: {control: entropy, target: 1.5}"
    text = RECIPE.replace("among: [a, b]", words).replace("name: digits", "name: digits, val_split: 0.1")
    recipe = loads(text)
    edge = recipe.losses[1].edge()
    assert edge.coordinate == Coordination(scale=0.5)
    assert edge.options["temperature"] == Control("entropy", 1.5)
