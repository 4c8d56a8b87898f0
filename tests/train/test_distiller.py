import copy
import random
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import kdkit
from kdkit import data, generators
from kdkit.registry import KdkitError
from kdkit.train.example import example_batch
from kdkit.train.length import run_epochs
from kdkit.train.optim import NodeOptimizers
from tests.nets import Blobs, loader, net
from tests.train.running import fit, pair, trainer

SGD = {"name": "sgd", "momentum": 0.9, "weight_decay": 5e-4}


def test_training_is_the_loop_anybody_would_write():
    nodes = pair()
    teacher, student = copy.deepcopy(nodes["teacher"].module), copy.deepcopy(nodes["student"])
    edges = [kdkit.Edge("ce", weight=0.1), kdkit.Edge("kd", weight=0.9, temperature=4.0)]
    lr = {"multistep": {"start": 0.1, "at": [0.5], "factor": 0.1}}
    distiller = kdkit.Distiller(nodes, edges, lr=lr, channels_last=False)
    run = fit(distiller, epochs=2)

    optimizer = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    teacher.eval(), student.train()
    for epoch in range(2):
        optimizer.param_groups[0]["lr"] = 0.1 if epoch == 0 else 0.01
        for x, y, _ in loader():
            with torch.no_grad():
                zt = teacher(x)
            zs = student(x)
            kd = 16 * F.kl_div(
                F.log_softmax(zs / 4, 1), F.log_softmax(zt / 4, 1), reduction="batchmean", log_target=True
            )
            (0.1 * F.cross_entropy(zs, y) + 0.9 * kd).backward()
            optimizer.step()
            optimizer.zero_grad()
    for mine, theirs in zip(distiller.student.state_dict().values(), student.state_dict().values(), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert run.global_step == 8


def test_the_modules_passed_in_come_back_bare():
    nodes = pair()
    distiller = kdkit.Distiller(nodes, ["ce", "kd", kdkit.Edge("cosine", taps="embedding", head="linear")])
    fit(distiller)
    assert distiller.student is nodes["student"]
    assert distiller.teacher is nodes["teacher"].module
    assert not distiller.teacher.training
    assert list(distiller.student.state_dict()) == list(net(8).state_dict())
    assert distiller(torch.zeros(2, 3, 8, 8)).shape == (2, 5)


def test_it_learns_and_says_so():
    distiller = kdkit.Distiller({"student": net(8)}, ["ce"], lr=0.1)
    run = fit(distiller, val=loader(), epochs=8)
    got = run.callback_metrics
    assert got["val/student/top1"] > 0.9
    assert {"val/student/nll", "loss/ce", "lr/student"} <= set(got)
    with torch.no_grad():
        student = distiller.student.eval()
        right = torch.cat([student(x).argmax(1) == y for x, y, _ in loader()]).float().mean()
    torch.testing.assert_close(got["val/student/top1"], right)


def test_what_was_trained_is_tested_with_the_images_that_it_was_trained_on():
    """A data module tells its normalisation; a bare loader that comes after it tells none."""
    module = data.build("fake", samples=16, shape=(3, 8, 8), classes=5)
    distiller = kdkit.Distiller({"student": kdkit.Node(net(8), mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))}, ["ce"])
    fit(distiller, module, epochs=1)
    (found,), (again,) = (trainer(1).test(distiller, its, verbose=False) for its in (module, module.test_dataloader()))
    assert again == found


def test_the_epochs_mean_of_each_term():
    distiller = kdkit.Distiller(pair(), ["ce", "kd"], lr=1e-12, optimizer={"name": "sgd"}, channels_last=False)
    seen = []
    distiller.watch.look = lambda terms, step: seen.append({k: v.detach() for k, v in terms.items()})
    run = fit(distiller, epochs=1)
    for name in ("ce", "kd"):
        torch.testing.assert_close(run.callback_metrics[f"loss/{name}"], torch.stack([s[name] for s in seen]).mean())


def test_the_mean_of_a_term_is_of_its_epoch_alone():
    distiller, seen = kdkit.Distiller({"student": net(8)}, ["ce"], lr=0.1), []
    distiller.watch.look = lambda terms, step: seen.append(terms["ce"].detach())
    run = fit(distiller, epochs=2)
    torch.testing.assert_close(run.callback_metrics["loss/ce"], torch.stack(seen[4:]).mean())


def test_the_rate_of_an_epoch_is_that_at_its_beginning():
    lr = {"multistep": {"start": 0.1, "at": [0.5], "factor": 0.1}}
    run = fit(kdkit.Distiller({"student": net(8)}, ["ce"], lr=lr), epochs=1)
    assert float(run.callback_metrics["lr/student"]) == pytest.approx(0.1)


def test_the_mean_of_a_term_is_of_all_steps_of_an_epoch_that_was_resumed(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, module, outputs, batch, i):
            if i == 1:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    found = []
    for callbacks, path in (([Save()], None), ([], tmp_path / "mid.ckpt")):
        distiller = kdkit.Distiller({"net": net(8, seed=1, classes=10)}, ["ce"], lr=0.05)
        batches, run = data.build("digits", image_size=8, subset=128, batch_size=32), trainer(1, callbacks=callbacks)
        run.fit(distiller, batches, ckpt_path=path, weights_only=True)
        found.append(run.callback_metrics["loss/ce"])
    torch.testing.assert_close(*found)


def test_the_trainers_clip_and_accumulation_are_taken_over():
    nodes = pair()
    student = copy.deepcopy(nodes["student"])
    distiller = kdkit.Distiller(nodes, ["ce"], lr=0.1, optimizer={"name": "sgd"}, channels_last=False)
    fit(distiller, epochs=1, gradient_clip_val=0.5, accumulate_grad_batches=3)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.1)
    for i, (x, y, _) in enumerate(loader(), start=1):
        (F.cross_entropy(student(x), y) / 3).backward()
        if i % 3 == 0 or i == 4:
            nn.utils.clip_grad_norm_(student.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    torch.testing.assert_close(distiller.student.state_dict(), student.state_dict())


def peers(seed=0):
    return {name: net(8, seed=i + 10 * seed) for i, name in enumerate("abc")}


def test_sequential_peers_follow_the_papers_order():
    nodes = {k: m.double() for k, m in peers().items()}
    twins = copy.deepcopy(nodes)
    data = DataLoader([(x.double(), y, i) for x, y, i in Blobs()], batch_size=16)
    options = {"lr": 0.1, "optimizer": {"name": "sgd"}, "channels_last": False}
    edges = ["ce", kdkit.Edge("dml", among=["a", "b", "c"])]
    distiller = kdkit.Distiller(nodes, edges, update="sequential", **options)
    fit(distiller, data, epochs=1)

    optimizers = {k: torch.optim.SGD(m.parameters(), lr=0.1) for k, m in twins.items()}
    for x, y, _ in data:
        logits = {k: m(x) for k, m in twins.items()}
        latest = {k: z.detach() for k, z in logits.items()}
        for k in "abc":
            z = logits[k]
            mutual = sum(
                F.kl_div(z.log_softmax(1), latest[j].softmax(1), reduction="batchmean") for j in "abc" if j != k
            )
            optimizers[k].zero_grad()
            (F.cross_entropy(z, y) + mutual / 2).backward()
            optimizers[k].step()
            statistics = copy.deepcopy(dict(twins[k].named_buffers()))
            with torch.no_grad():
                latest[k] = twins[k](x)
            for n, b in twins[k].named_buffers():
                b.copy_(statistics[n])
    for k in "abc":
        theirs = twins[k].state_dict()
        for n, mine in distiller.graph.model(k).state_dict().items():
            if "num_batches" not in n:
                torch.testing.assert_close(mine, theirs[n], rtol=1e-10, atol=1e-12)
    simultaneous = kdkit.Distiller({k: m.double() for k, m in peers().items()}, edges, **options)
    fit(simultaneous, data, epochs=1)
    assert not torch.equal(simultaneous.graph.model("b").fc.weight, distiller.graph.model("b").fc.weight)


def test_each_node_may_bring_its_own_optimizer_and_rate():
    a = kdkit.Node(net(8, seed=1), optimizer={"name": "adamw", "weight_decay": 0.0}, lr={"cosine": [1e-3, 0]})
    distiller = kdkit.Distiller({"a": a, "b": net(8, seed=2)}, ["ce"], lr=0.1)
    run = fit(distiller, epochs=2)
    raw = run.optimizers[0]
    assert isinstance(raw, NodeOptimizers)
    assert [type(raw.of[n]).__name__ for n in "ab"] == ["AdamW", "SGD"]
    assert raw.of["b"].param_groups[0]["lr"] == 0.1
    assert 0 < raw.of["a"].param_groups[0]["lr"] < 5e-4
    assert run.global_step == 8


def test_what_is_inactive_does_not_move_even_with_weight_decay():
    late = kdkit.Edge("mse", taps="embedding", head="linear", when={"from": 1})
    distiller = kdkit.Distiller(pair(), ["ce", late], lr=0.1)
    seen = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(copy.deepcopy(module.graph.edges["mse"].state_dict()))

        on_train_start = on_train_epoch_end

    fit(distiller, epochs=2, callbacks=[Watch()])
    key = next(key for key in seen[0] if key.startswith("heads."))
    assert torch.equal(seen[0][key], seen[1][key])
    assert not torch.equal(seen[1][key], seen[2][key])


class Mixes(nn.Module):
    """A loss that draws its weight."""

    def __init__(self, *drawing):
        super().__init__()
        self.drawing = drawing

    def forward(self, student, labels):
        return F.cross_entropy(student, labels) * sum(draw() for draw in self.drawing)


@pytest.mark.parametrize(
    ("dropout", "loss"), [(0.5, "ce"), *((0, Mixes(draw)) for draw in (random.random, np.random.rand))]
)
def test_what_is_drawn_is_a_function_of_the_step(dropout, loss):
    runs = []
    for noise in (0, 1):
        distiller = kdkit.Distiller({"student": net(8, seed=3, dropout=dropout)}, [kdkit.Edge(loss)], lr=0.1)
        generators.seed(noise, torch.device("cpu"))
        fit(distiller, epochs=1)
        runs.append(distiller.student.fc.weight.detach().clone())
    assert torch.equal(*runs)


def test_every_step_of_every_epoch_draws_anew(monkeypatch):
    seeds, seed = [], generators.seed
    monkeypatch.setattr(generators, "seed", lambda number, device: (seeds.append(number), seed(number, device)))
    fit(kdkit.Distiller({"student": net(8, dropout=0.5)}, ["ce"], lr=0.1), epochs=2)
    assert len(set(seeds)) == len(seeds) == 8


def test_a_step_is_seeded_as_torch_would_and_notes_no_traceback(monkeypatch):
    torch.manual_seed(5)
    wanted = torch.rand(3)
    monkeypatch.setattr("traceback.format_stack", lambda: pytest.fail("a traceback in every step"))
    generators.seed(5, torch.device("cpu"))
    assert torch.equal(torch.rand(3), wanted)


def test_half_precision_trains():
    distiller = kdkit.Distiller(pair(), ["ce", "kd"], lr=0.1)
    run = fit(distiller, val=loader(), epochs=6, precision="bf16-mixed")
    assert run.callback_metrics["val/student/top1"] > 0.8


def test_resume_is_exact(tmp_path):
    def make():
        edges = [
            "ce",
            kdkit.Edge("crd", num_negatives=8, embed_dim=4, num_samples=64),
            kdkit.Edge("kd", weight={"cosine": [1, 0]}),
        ]
        return kdkit.Distiller({**pair(), "slow": kdkit.ema("student", 0.9)}, edges, lr={"cosine": [0.1, 0.0]})

    whole = make()
    fit(whole, epochs=4)
    path = tmp_path / "half.ckpt"

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(path)

    fit(make(), epochs=4, callbacks=[Save()])
    rest = make()
    run = trainer(epochs=4)
    run.fit(rest, loader(), ckpt_path=path, weights_only=False)
    for (key, a), b in zip(whole.state_dict().items(), rest.state_dict().values(), strict=True):
        assert torch.equal(a, b), key


@pytest.mark.parametrize("options", [{"max_steps": 6}, {"max_steps": 6, "max_epochs": -1}])
def test_a_run_may_be_measured_in_steps(options):
    distiller = kdkit.Distiller({"student": net()}, ["ce"], lr={"cosine": [0.1, 0.0]})
    run = trainer(epochs=options.pop("max_epochs", None), **options)
    run.fit(distiller, loader())
    assert run.global_step == 6
    assert distiller.graph.epochs == 1.5
    rate = run.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(distiller.rates["student"](1.25))


def test_the_length_of_a_run_of_steps_counts_an_epochs_last_update_too():
    """Of 5 batches two at a time an update: 3 in an epoch."""
    run = SimpleNamespace(max_epochs=-1, max_steps=6, num_training_batches=5)
    run.fit_loop = SimpleNamespace(setup_data=lambda: None)
    assert run_epochs(SimpleNamespace(trainer=run, update="simultaneous", borrow=SimpleNamespace(accumulate=2))) == 2


def test_the_example_leaves_the_generator_alone():
    """A data set of one's own may draw from torch's."""
    noise = [(torch.zeros(3), 0)] * 8
    batches = DataLoader(noise, batch_size=4, collate_fn=lambda rows: (torch.randn(len(rows), 3), torch.arange(4)))
    source = SimpleNamespace(is_defined=lambda: True, dataloader=lambda: batches)
    before = torch.get_rng_state()
    assert example_batch(SimpleNamespace(fit_loop=SimpleNamespace(_data_source=source)))[0].shape == (4, 3)
    assert torch.equal(torch.get_rng_state(), before)


class Filled(nn.Module):
    """A loss whose buffer is made by its first batch."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", None)

    def forward(self, student):
        mean = student.detach().mean(0)
        if self.centre is None:
            self.centre = mean.clone()
        return (student - self.centre.lerp_(mean, 0.1).clone()).square().mean()


def test_a_buffer_that_a_first_batch_makes_goes_on_with_the_run(tmp_path):
    def make():
        return kdkit.Distiller({"student": net(8, seed=3)}, ["ce", kdkit.Edge(Filled(), name="own")], lr=0.1)

    whole, half, rest = make(), make(), make()
    fit(whole, epochs=2)
    fit(half, epochs=2, max_steps=4).save_checkpoint(tmp_path / "half.ckpt")
    trainer(2).fit(rest, loader(), ckpt_path=tmp_path / "half.ckpt")
    assert torch.equal(rest.graph.edges["own"].losses[0].centre, whole.graph.edges["own"].losses[0].centre)
    assert torch.equal(rest.student.fc.weight, whole.student.fc.weight)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.6, 0.7])
def test_a_span_begins_with_the_step_that_its_share_names(share):
    begun = []

    class Look(pl.Callback):
        def on_train_batch_end(self, trainer, module, *_):
            begun.append([edge.name for edge in module.graph.now.edges])

    edges = ["ce", kdkit.Edge("kd", when={"from": share})]
    fit(kdkit.Distiller(pair(), edges), loader(n=160), epochs=3, callbacks=[Look()])
    assert begun.index(["ce", "kd"]) == round(30 * share)


def test_index_is_asked_for_before_training():
    distiller = kdkit.Distiller(pair(), [kdkit.Edge("crd", num_samples=64, num_negatives=8)])
    with pytest.raises(KdkitError, match=r"let the training batches be \(x, y, index\)"):
        fit(distiller, loader(indexed=False))
    batches = list(loader())  # whose number of samples nobody tells
    with pytest.raises(KdkitError, match=r"num_samples.*give it as an option"):
        fit(kdkit.Distiller(pair(), [kdkit.Edge("crd", num_negatives=8)]), batches)
    both = r"index; .* item i is \(\*item, i\); and it needs `num_samples`.*give it as an option$"
    with pytest.raises(KdkitError, match=both):
        fit(kdkit.Distiller(pair(), [kdkit.Edge("crd", num_negatives=8)]), [batch[:2] for batch in batches])


def test_banks_are_kept_out_of_ddps_broadcast():
    distiller = kdkit.Distiller(pair(), ["ce", kdkit.Edge("crd", num_samples=64, num_negatives=8, embed_dim=4)])
    fit(distiller, epochs=1)
    ignored = set(distiller._ddp_params_and_buffers_to_ignore)
    big = {name for name, buffer in distiller.graph.edges.named_buffers("graph.edges") if buffer.numel() >= 64}
    assert big
    assert big <= ignored
    assert ignored <= dict(distiller.named_buffers()).keys()


def test_clip_and_accumulation_survive_a_validation_before():
    distiller = kdkit.Distiller(pair(), ["ce"], lr=0.1)
    run = trainer(epochs=1, gradient_clip_val=0.5, accumulate_grad_batches=2)
    run.validate(distiller, loader(), verbose=False)
    run.fit(distiller, loader())
    assert (distiller.borrow.clip_value, distiller.borrow.accumulate, run.global_step) == (0.5, 2, 2)


def test_peers_without_a_bond_move_alike_in_any_order():
    runs = []
    for update in ("simultaneous", "sequential"):
        nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
        distiller = kdkit.Distiller(nodes, ["ce"], lr=0.1, update=update)
        run = fit(distiller, epochs=1, accumulate_grad_batches=2, gradient_clip_val=0.3)
        runs.append([distiller.graph.model(name).fc.weight for name in "ab"])
        assert run.callback_metrics["loss/ce"] > 2  # of both peers together, in either order
    torch.testing.assert_close(*runs)


def test_steps_are_the_optimizers():
    distiller = kdkit.Distiller({"student": net()}, ["ce"], lr={"linear": [0.1, 0.0]})
    run = trainer(epochs=None, max_steps=4, accumulate_grad_batches=2)
    run.fit(distiller, loader())
    assert (run.global_step, distiller.graph.epochs) == (4, 2.0)


def test_an_edges_clip_means_unscaled_gradients():
    weights = []
    for accumulate, batch_size in ((1, 32), (2, 16)):
        edges = [kdkit.Edge("mse", weight=1000.0, clip=0.01)]
        nodes = {"teacher": kdkit.frozen(net(12, seed=1)), "student": NoNorm()}
        distiller = kdkit.Distiller(nodes, edges, lr=0.1, optimizer={"name": "sgd"})
        fit(distiller, loader(batch_size, n=32), epochs=1, accumulate_grad_batches=accumulate)
        weights.append((distiller.student.fc.bias - NoNorm().fc.bias).detach())
    assert float(weights[0].norm()) > 1e-5
    assert 0.3 < float(weights[1].norm() / weights[0].norm()) < 3  # and not half of it, or a half of a half


class NoNorm(nn.Module):
    """Its gradient does not depend on who else is in the batch."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.fc = nn.Linear(192, 5)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_what_the_user_put_to_sleep_sleeps_on():
    student = net(8, seed=2)
    student.bn1.eval()
    before = student.bn1.running_mean.clone()
    fit(kdkit.Distiller({"student": student}, ["ce"], lr=0.1), epochs=1)
    assert torch.equal(student.bn1.running_mean, before)
    assert not torch.equal(student.bn2.running_mean, torch.zeros(8))


def test_a_phase_in_which_nobody_teaches_passes():
    distiller = kdkit.Distiller({"student": net(8)}, [kdkit.Edge("ce", when={"to": 1})], lr=0.1)
    seen = []

    class Watch(pl.Callback):
        def on_train_epoch_end(self, trainer, module):
            seen.append(module.student.fc.weight.detach().clone())

    fit(distiller, epochs=2, callbacks=[Watch()])
    assert torch.equal(*seen)


def test_a_second_fit_goes_on_with_heads_and_banks():
    distiller = kdkit.Distiller(pair(), [kdkit.Edge("crd", num_samples=64, num_negatives=8, embed_dim=4)], lr=1e-9)
    fit(distiller, epochs=1)
    bank = distiller.graph.edges["crd"].losses[0].student_bank.clone()
    fit(distiller, epochs=1)
    again = distiller.graph.edges["crd"].losses[0]
    assert int(again.step) == 8
    assert not torch.equal(bank, again.student_bank)


class Counting(nn.Module):
    """Keeps what is no tensor, as torch lets modules."""

    def __init__(self):
        super().__init__()
        self.calls = {"all": 0}

    def forward(self, student, labels):
        self.calls["all"] += 1
        return F.cross_entropy(student, labels)

    def get_extra_state(self):
        return self.calls

    def set_extra_state(self, state):
        self.calls = state


def test_what_a_loss_keeps_beside_tensors_outlasts_a_second_fit():
    distiller = kdkit.Distiller(pair(), [kdkit.Edge(Counting)], lr=0.1)
    fit(distiller, epochs=1)
    before = distiller.graph.edges["Counting"].losses[0].calls["all"]
    fit(distiller, epochs=1)
    assert distiller.graph.edges["Counting"].losses[0].calls["all"] >= before + 4


def test_what_a_loss_is_built_by_cannot_move():
    edge = kdkit.Edge("ft", rate={"linear": [1.0, 0.25]})
    with pytest.raises(KdkitError, match="edge 'ft': rate cannot be a schedule, for the loss is built by it"):
        fit(kdkit.Distiller(pair(), ["ce", edge], lr=0.1), epochs=1)


def test_a_checkpoint_is_tested_by_a_fresh_distiller(tmp_path):
    edges = ["ce", kdkit.Edge("cosine", taps="embedding", head="linear")]
    run = fit(kdkit.Distiller(pair(), edges, lr=0.1), val=loader(), epochs=2)
    run.save_checkpoint(tmp_path / "c.ckpt")
    got = trainer().test(kdkit.Distiller(pair(), edges), loader(), ckpt_path=tmp_path / "c.ckpt", verbose=False)
    assert got[0]["test/student/top1"] == pytest.approx(float(run.callback_metrics["val/student/top1"]))


def test_an_ema_node_reads_what_its_model_reads():
    student = kdkit.Node(net(8), image_size=4)
    distiller = kdkit.Distiller({"student": student, "slow": kdkit.ema("student")}, ["ce"], lr=0.1)
    fit(distiller, epochs=1)
    assert distiller.graph.adapters["slow"].image_size == 4
    with pytest.raises(KdkitError, match=r"decay must lie in \[0, 1\]"):
        fit(kdkit.Distiller({"student": net(8), "slow": kdkit.ema("student", 1.5)}, ["ce"]))
