"""Stages: who learns when, told by what moves."""

import copy

import pytest
import pytorch_lightning as pl
import torch

import kdkit
from kdkit.graph.stage import Stage
from kdkit.registry import KdkitError
from kdkit.train.norms import GradientNorms
from tests.nets import net
from tests.train.running import compiled_by, fit, loader, pair, trainer


class Moves(pl.Callback):
    """Which parts of the student differ after each epoch, running statistics included."""

    def __init__(self):
        self.seen = []

    def on_train_epoch_start(self, trainer, made):
        self.before = copy.deepcopy(made.student.state_dict())

    def on_train_epoch_end(self, trainer, made):
        now = made.student.state_dict()
        self.seen.append({n.rpartition(".")[0] for n, v in now.items() if not torch.equal(v, self.before[n])})


def trained(stages, edges=("ce", "kd"), epochs=3, **options):
    made = kdkit.Distiller(pair(), list(edges), lr=0.05, stages=stages, **options)
    watch = Moves()
    fit(made, loader(), epochs=epochs, callbacks=[watch])
    return made, watch.seen


ALL = {"conv1", "bn1", "conv2", "bn2", "fc"}


def test_parts_learn_and_the_rest_stands_still():
    """Weight decay, momentum and running statistics included."""
    stages = [
        Stage("first", {"to": 1}),
        Stage("top", {"from": 1, "to": 2}, train=["student.conv2", "student.bn2", "student.fc"]),
        Stage("last", {"from": 2}, train="student.fc"),
    ]
    made, moved = trained(stages)
    assert moved == [ALL, {"conv2", "bn2", "fc"}, {"fc"}]
    assert all(parameter.requires_grad for parameter in made.student.parameters())


def test_a_stage_of_another_model_rests_this_one():
    nodes = {"a": net(8, seed=1), "b": net(8, seed=2)}
    stages = [Stage("a first", {"to": 1}, train=["a"]), Stage("both", {"from": 1})]
    made = kdkit.Distiller(nodes, ["ce"], lr=0.05, stages=stages)
    before = copy.deepcopy(made.b.state_dict())
    seen = []

    def look(*_):
        seen.append(all(torch.equal(v, before[n]) for n, v in made.b.state_dict().items()))

    made.on_train_epoch_end = look
    fit(made, loader(), epochs=2)
    assert seen == [True, False]


def test_what_the_user_froze_stays_frozen():
    nodes = pair()
    nodes["student"].conv1.requires_grad_(False)
    made = kdkit.Distiller(nodes, ["ce"], lr=0.05, stages=[Stage("top", {"to": 1}, train="student.fc")])
    before = made.student.conv1.weight.clone()
    fit(made, loader(), epochs=2)
    assert not made.student.conv1.weight.requires_grad
    assert torch.equal(made.student.conv1.weight, before)
    assert made.student.conv2.weight.requires_grad


def test_fitnets_two_steps():
    """A hint first: nothing behind the hinted layer moves; then the rest learns from labels and teacher."""
    edges = [
        kdkit.Edge("hint", taps="stage1", head="conv1x1", when={"to": 1}),
        kdkit.Edge("ce", when={"from": 1}),
        kdkit.Edge("kd", when={"from": 1}),
    ]
    _, moved = trained([], edges, epochs=2)
    assert moved == [{"conv1", "bn1"}, ALL]


def test_what_the_user_freezes_between_two_fits_stays_frozen():
    made, _ = trained([Stage("top", train="student.fc")], ["ce"], epochs=1)
    made.student.conv1.requires_grad_(False)
    fit(made, loader(), epochs=1)
    assert not made.student.conv1.weight.requires_grad


def test_everything_is_awake_after_a_crash():
    made = kdkit.Distiller(pair(), ["ce"], lr=0.05, stages=[Stage("top", train="student.fc")])
    made.on_train_epoch_end = lambda: 1 / 0
    with pytest.raises(ZeroDivisionError):
        fit(made, loader(), epochs=1)
    assert all(parameter.requires_grad for parameter in made.student.parameters())


def test_resume_in_a_stage(tmp_path):
    stages = [Stage("first", {"to": 1}), Stage("top", {"from": 1}, train="student.fc")]

    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, _):
            if trainer.current_epoch == 1:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole = kdkit.Distiller(pair(), ["ce", "kd"], lr=0.05, stages=stages)
    fit(whole, loader(), epochs=4, callbacks=[Keep()])
    resumed = kdkit.Distiller(pair(), ["ce", "kd"], lr=0.05, stages=stages)
    trainer(4).fit(resumed, loader(), ckpt_path=tmp_path / "half.ckpt", weights_only=False)
    for name, value in whole.student.state_dict().items():
        assert torch.equal(resumed.student.state_dict()[name], value), name


def test_a_checkpoint_knows_since_when_norms_are_compared():
    norms, again = GradientNorms(), GradientNorms()
    norms.since, norms.former = 1.5, {"student": [3.0]}
    again.load_state_dict(norms.state_dict(), torch.device("cpu"))
    assert (again.since, again.former) == (1.5, {"student": [3.0]})


@pytest.mark.parametrize(
    ("train", "problem"),
    [
        ("studnet", "did you mean 'student'"),
        ("teacher", "the model 'teacher' is trained at no time: it is frozen"),
        ("student.fcc", "did you mean 'fc'"),
        ("student.act1", "no part 'act1' with weights"),
        ("kd", "the loss 'kd' has no weights that could learn, for it has no head; give it one"),
        (
            "student.fc",
            "'hint': sends no gradient to what a stage lets learn of 'student' at epoch 0 .fc.; let more of",
        ),
        ("hnit.head", "did you mean 'hint'"),
        ("hint.haed", "did you mean 'head'"),
    ],
)
def test_wrong_parts(train, problem):
    with pytest.raises(KdkitError, match=problem):
        trained([Stage("s", train=train)], ["ce", "kd", HINT])


class MovesBeside(pl.Callback):
    """Which modules of the losses differ after each epoch, by edge."""

    def on_train_epoch_start(self, trainer, made):
        self.before = copy.deepcopy(made.graph.edges.state_dict())

    def on_train_epoch_end(self, trainer, made):
        now = made.graph.edges.state_dict()
        moved = {n for n, v in now.items() if not torch.equal(v, self.before[n])}
        self.seen.append({".".join(n.split(".")[:-1]) for n in moved if "num_batches" not in n})

    def __init__(self):
        self.seen = []


HINT = kdkit.Edge("hint", taps="stage1", head="conv_bn_relu", weight=1.0)
PARAPHRASE = [
    Stage("paraphrase", {"to": 1}, train="ft.paraphraser"),
    Stage("transfer", {"from": 1}, train=["student", "ft.translator"]),
]
FT = [kdkit.Edge("ft"), kdkit.Edge("ce", when={"from": 1})]


def beside(stages, edges, epochs=2, nodes=None, **options):
    made = kdkit.Distiller(nodes or pair(), edges, lr=0.05, stages=stages, **options)
    watches = Moves(), MovesBeside()
    fit(made, loader(), epochs=epochs, callbacks=list(watches))
    return made, [watch.seen for watch in watches]


@pytest.mark.parametrize("options", [{}, {"update": "sequential"}, {"pcgrad": True}, {"compile": True}])
def test_a_loss_learns_while_its_student_rests_and_then_stands_still_itself(options, caplog, monkeypatch):
    """Weight decay, momentum and running statistics included; gradients of unlike weights are not compared."""
    compiled_by(monkeypatch, "eager")
    made, (student, losses) = beside(PARAPHRASE, FT, **options)
    assert student == [set(), ALL]
    coders = {f"ft.losses.0.paraphraser.{side}.convs.{i}" for side in ("encoder", "decoder") for i in range(3)}
    assert losses == [coders, {f"ft.losses.0.translator.convs.{i}" for i in range(3)}]
    assert all(p.requires_grad for p in made.graph.parameters())
    assert "times the usual" not in caplog.text
    assert {"loss/ft", "loss/ce"} <= made.trainer.callback_metrics.keys()


def test_an_epoch_of_two_stages_is_compared_with_none():
    stages = [Stage("paraphrase", {"to": 0.25}, train="ft.paraphraser"), Stage("transfer", {"from": 0.25})]
    made, _ = beside(stages, ["ce", FT[0]])
    assert "gradient/student/max" in made.trainer.callback_metrics
    assert "gradient/student/spike" not in made.trainer.callback_metrics


def test_a_loss_beside_the_named_one_sits_out_while_the_student_rests():
    _, (student, losses) = beside(PARAPHRASE, ["ce", FT[0], HINT])
    assert student == [set(), ALL]
    assert not any(path.startswith("hint") for path in losses[0])
    assert any(path.startswith("hint") for path in losses[1])


def test_a_head_learns_first():
    stages = [Stage("head", {"to": 1}, train="hint.head"), Stage("all", {"from": 1})]
    _, (student, losses) = beside(stages, ["ce", HINT])
    assert student == [set(), ALL]
    assert losses[0] == losses[1] == {"hint.heads.0.net.conv", "hint.heads.0.net.bn"}


def test_heads_learn_with_the_part_of_a_student_that_does():
    _, (student, losses) = beside([Stage("first", train=["student.conv1", "student.bn1"])], [HINT], epochs=1)
    assert student == [{"conv1", "bn1"}]
    assert losses == [{"hint.heads.0.net.conv", "hint.heads.0.net.bn"}]


def test_a_resting_head_keeps_its_running_statistics():
    _, (student, losses) = beside([Stage("s", train=["student", "hint.head.net.conv"])], [HINT], epochs=1)
    assert student == [{"conv1", "bn1"}]
    assert losses == [{"hint.heads.0.net.conv"}]


def test_of_two_students_only_the_one_that_learns_or_is_named_is_run():
    nodes = {"teacher": pair()["teacher"], "a": net(8, seed=1), "b": net(8, seed=2)}
    edges = [kdkit.Edge("hint", target="a", taps="stage1", head="conv1x1"), kdkit.Edge("ce")]
    made = kdkit.Distiller(nodes, edges, lr=0.05, stages=[Stage("head", train="hint")])
    before = copy.deepcopy([made.a.state_dict(), made.b.state_dict()])
    fit(made, loader(), epochs=1)
    assert made.graph.now.updates == ("a",)
    assert [edge.name for edge in made.graph.now.edges] == ["hint"]
    for net_before, its in zip(before, (made.a, made.b), strict=True):
        assert all(torch.equal(v, net_before[n]) for n, v in its.state_dict().items())


def test_a_student_that_rests_hears_only_the_loss_that_learns():
    nodes = {"teacher": pair()["teacher"], "a": net(8, seed=1), "b": net(8, seed=2)}
    edges = [
        "ce",
        kdkit.Edge("vid", name="to_b", target="b", taps="stage1"),
        kdkit.Edge("hint", taps="stage1", head="conv1x1"),
    ]
    stages = [Stage("s", train=["a", "to_b"])]
    made = kdkit.Distiller(nodes, edges, lr=0.05, stages=stages)
    before = copy.deepcopy(made.b.state_dict())
    watch = MovesBeside()
    fit(made, loader(), epochs=1, callbacks=[watch])
    assert made.graph.now.updates == ("a", "b")
    assert all(torch.equal(v, before[n]) for n, v in made.b.state_dict().items())
    layers = {"to_b.losses.0", *(f"to_b.losses.0.layers.{i}" for i in range(3))}
    assert watch.seen == [{*layers, "hint.heads.0.net"}]  # the head towards a, and not that towards b


def test_a_share_is_of_those_who_learn():
    nodes = {"teacher": pair()["teacher"], "a": net(8, seed=1), "b": net(8, seed=2)}
    made = kdkit.Distiller(nodes, ["ce", kdkit.Edge("kd", weight={"share": 0.3})], stages=[Stage("s", train="a")])
    fit(made, loader(), epochs=1)
    assert made.trainer.callback_metrics["weight/kd"] > 0


@pytest.mark.parametrize("loss", ["kd", "ft"])
def test_of_a_model_and_a_loss_of_one_name_the_model_is_meant(loss):
    nodes = {"teacher": pair()["teacher"], loss: net(8, seed=1)}
    made = kdkit.Distiller(nodes, ["ce", loss], lr=0.05, stages=[Stage("s", train=[f"{loss}.conv1"])])
    before = copy.deepcopy(made.graph.model(loss).state_dict())
    fit(made, loader(), epochs=1)
    moved = {n for n, v in made.graph.model(loss).state_dict().items() if not torch.equal(v, before[n])}
    assert moved == {"conv1.weight", "conv1.bias"}


def test_resume_in_the_stage_of_a_loss(tmp_path):
    class Keep(pl.Callback):
        def on_train_epoch_end(self, trainer, _):
            trainer.save_checkpoint(tmp_path / f"{trainer.current_epoch}.ckpt")

    stages = [Stage("one", {"to": 2}, train="ft.paraphraser"), Stage("two", {"from": 2}, train=["student"])]
    edges = [FT[0], kdkit.Edge("ce", when={"from": 2})]
    whole = kdkit.Distiller(pair(), edges, lr=0.05, stages=stages)
    fit(whole, loader(), epochs=4, callbacks=[Keep()])
    for epoch in (0, 2):
        resumed = kdkit.Distiller(pair(), edges, lr=0.05, stages=stages)
        trainer(4).fit(resumed, loader(), ckpt_path=tmp_path / f"{epoch}.ckpt", weights_only=False)
        for name, value in whole.graph.state_dict().items():
            assert torch.equal(resumed.graph.state_dict()[name], value), name


@pytest.mark.parametrize(
    ("edges", "train", "problem"),
    [
        (["ce", kdkit.Edge("ft", weight={"share": 0.3})], "ft", "'ft', share 0.3: student rests .* give it a number"),
        ([kdkit.Edge("ft")], ["ft.paraphraser.decoder.norms"], "no part 'paraphraser.decoder.norms' with weights"),
        (["ce", "kd"], "ce", "the loss 'ce' has no weights that could learn"),
        (["ce", kdkit.Edge("ft", when={"from": 1})], "ft", "the loss 'ft' has no part in this stage; what one stage"),
    ],
)
def test_what_a_loss_that_learns_alone_cannot_be(edges, train, problem):
    with pytest.raises(KdkitError, match=problem):
        beside([Stage("s", {"to": 1}, train=train)], edges)


def test_a_part_that_nothing_reaches_is_told():
    class Idle(torch.nn.Module):
        tap = "stage1"

        def __init__(self):
            super().__init__()
            self.used, self.unused = torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)

        def forward(self, student):
            return self.used(student.mean().view(1)).sum()

    with pytest.raises(
        KdkitError, match=r"'Idle': sends no gradient to student\.stage1, nor to what a stage lets learn"
    ):
        beside([Stage("s", train="Idle.unused")], [Idle])


def test_time_in_which_nothing_learns_is_told(caplog):
    edges = [kdkit.Edge("ce", when={"to": 1}), kdkit.Edge("kd", when={"from": 2})]
    trained([], edges, epochs=4)
    trained([Stage("s", {"from": 3}, train="student.fc")], ["ce"], epochs=4)
    assert [r.getMessage() for r in caplog.records if "nothing learns" in r.getMessage()] == [
        "warning: from epoch 1 to 2 nothing learns: no loss reaches what may"
    ]


def test_a_loss_whose_models_rest_in_its_time_is_told(caplog):
    edges = ["ce", kdkit.Edge("hint", taps="stage1", head="conv1x1"), kdkit.Edge("kd", when={"to": 2})]
    trained([Stage("s", {"to": 2}, train="hint.head")], edges, epochs=3)
    trained([Stage("s", {"to": 1}, train="hint.head")], edges, epochs=3)
    assert [r.getMessage() for r in caplog.records if "nobody" in r.getMessage()] == [
        "warning: the loss 'kd' teaches nobody: all it reaches rests in its time"
    ]


def test_a_head_that_two_losses_share_learns_where_one_of_them_does():
    edges = [
        kdkit.Edge("hint", taps="stage1", head={"conv1x1": {"share": "p"}}),
        kdkit.Edge("mse", taps="stage1", head={"conv1x1": {"share": "p"}}, name="other"),
        kdkit.Edge("vid", taps="stage1"),
    ]
    stages = [Stage("a", {"to": 1}, train=["vid"]), Stage("b", {"from": 1, "to": 2}, train=["hint.head"])]
    _, (_, losses) = beside(stages, edges, epochs=3)
    assert [any("head" in path for path in paths) for paths in losses] == [False, True, True]


def test_a_stage_that_never_comes():
    with pytest.raises(KdkitError, match="never comes"):
        trained([Stage("s", {"from": 9})])


def test_an_update_that_is_begun_is_ended_by_those_who_began_it():
    """A stage that ends in the middle of an accumulation left gradients, which a later stage took for its own."""

    class Watch(pl.Callback):
        seen = ()

        def on_train_batch_start(self, trainer, module, batch, batch_idx):
            if batch_idx % 4 == 0:
                left = [n for n, p in module.graph.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
                assert not left

        def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
            self.seen += (module.graph.now.updates,)

    stages = [Stage("one", {"to": 0.3}, train="a"), Stage("two", {"from": 0.3, "to": 0.6}, train="b")]
    stages.append(Stage("three", {"from": 0.6}, train="a"))
    nodes = {"a": net(4, seed=1), "b": net(4, seed=2)}
    made = kdkit.Distiller(nodes, ["ce"], lr=0.05, stages=stages)
    fit(made, loader(n=160), epochs=1, callbacks=[watch := Watch()], accumulate_grad_batches=4)
    # of ten batches stage two begins at the fourth, within the first update, and three at the seventh, in the second
    assert watch.seen == (("a",),) * 4 + (("b",),) * 4 + (("a",),) * 2


@pytest.mark.parametrize(
    ("when", "accumulate", "told"),
    [
        ({"from": 0.5, "to": 0.9}, 10, "from epoch 0.5 to 0.9 never does: no update begins there, of 1 in an epoch"),
        ({"from": 0.95}, 4, "from epoch 0.95 to 1 never does: no update begins there, of 3 in an epoch"),
        ({"from": 0.5, "to": 0.9}, 4, ""),
        (
            {"from": 0.42, "to": 0.48},
            1,
            "from epoch 0.42 to 0.48 never does: no update begins there, of 10 in an epoch",
        ),
        ({"from": 0.4, "to": 0.5}, 1, ""),
    ],
)
def test_a_span_that_holds_no_update_is_told(when, accumulate, told, caplog):
    made = kdkit.Distiller({"a": net(4)}, ["ce", kdkit.Edge("ce", name="more", when=when)], lr=0.05)
    fit(made, loader(n=160), epochs=1, accumulate_grad_batches=accumulate)
    said = [record.message for record in caplog.records if "never does" in record.message]
    assert [line.partition("happen ")[2] for line in said] == [told] * bool(told)
