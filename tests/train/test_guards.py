"""What would train to no purpose is refused before the first step; what is only small is not."""

import pytest
import torch
from torch import nn

import kdkit
from kdkit.registry import KdkitError
from tests.nets import loader, net
from tests.train.running import fit, pair

RELATIONS = {
    "rkd": 3,
    "rkd_distance": 3,
    "rkd_angle": 3,
    "pkt": 2,
    "sp": 2,
    "cc": 2,
    "reviewkd": 2,
    "nt_xent": 2,
    "crd_inbatch": 2,
}


class Own(nn.Module):
    """The loss that `of` says."""

    def __init__(self, of):
        super().__init__()
        self.of = of
        self.probe = nn.Linear(5, 5)

    def forward(self, student, teacher):
        return self.of(self, student, teacher)


def detached(self, student, teacher):
    return self.probe(student.detach()).sub(teacher).square().mean()  # the probe learns, the student does not


def constant(self, student, teacher):
    return torch.ones((), requires_grad=True)


@pytest.mark.parametrize("name", RELATIONS)
def test_too_small_a_batch_for_relations_is_refused_before_training(name):
    least = RELATIONS[name]
    words = (
        rf"edge '{name}': the loss compares the samples .* at least {least} of them, got {least - 1}; raise the batch"
    )
    with pytest.raises(KdkitError, match=words):
        fit(kdkit.Distiller(pair(), ["ce", name]), loader(least - 1, n=6))


@pytest.mark.parametrize(("edges", "steps"), [(["ce", "rkd", "pkt"], 3), (["rkd"], 2)])
def test_a_last_batch_of_one_is_sat_out(edges, steps):
    distiller = kdkit.Distiller(pair(), edges, lr=0.01)
    run = fit(distiller, loader(8, n=17), epochs=1)
    assert run.global_step == steps
    assert distiller.graph.edges["rkd"].start == 0
    sums = []
    distiller = kdkit.Distiller(pair(), edges, lr=1e-12)
    distiller.sums.add = lambda terms: sums.append(set(terms))
    fit(distiller, loader(8, n=17), epochs=1)
    assert sums == [set(edges), set(edges), set(edges) & {"ce"}]


def test_what_was_accumulated_before_a_batch_of_one_still_counts():
    weights = []
    for n in (16, 17):
        distiller = kdkit.Distiller(pair(), ["rkd"], lr=0.1, optimizer={"name": "sgd"})
        run = fit(distiller, loader(8, n=n), epochs=1, accumulate_grad_batches=4)
        assert run.global_step == 1
        weights.append(distiller.student.conv1.weight.detach())
    torch.testing.assert_close(*weights)
    assert not torch.equal(weights[0], net(8, seed=2).conv1.weight)


def test_an_own_loss_says_how_many_samples_it_compares():
    class Sixfold(nn.Module):
        min_batch = 6

        def forward(self, student):
            return student[:6].var(0).mean()

    fit(kdkit.Distiller({"student": net()}, [Sixfold()]), loader(6, n=13), epochs=1)
    with pytest.raises(KdkitError, match="at least 6 of them, got 5"):
        fit(kdkit.Distiller({"student": net()}, [Sixfold()]), loader(5, n=10), epochs=1)


@pytest.mark.parametrize("of", [detached, constant])
def test_a_loss_without_a_gradient_for_the_student_is_refused(of):
    with pytest.raises(KdkitError, match=r"edge 'mine': sends no gradient to student.logits: .* without detach\(\)"):
        fit(kdkit.Distiller(pair(), ["ce", kdkit.Edge(Own(of), name="mine")]))
    fit(kdkit.Distiller(pair(), ["ce", kdkit.Edge(Own(of), name="mine", weight=0)]), epochs=1)
    fading = kdkit.Edge(Own(of), name="mine", weight={"linear": [0.0, 1.0]})
    with pytest.raises(KdkitError, match="sends no gradient"):
        fit(kdkit.Distiller(pair(), ["ce", fading]))


def test_a_tap_below_which_nothing_learns_is_refused():
    student = net(8)
    student.conv1.requires_grad_(False), student.bn1.requires_grad_(False)
    edges = ["ce", kdkit.Edge("at", taps=["stage1", "stage2"])]
    with pytest.raises(KdkitError, match=r"edge 'at': sends no gradient to student.stage1"):
        fit(kdkit.Distiller({**pair(), "student": student}, edges))
    edges[1] = kdkit.Edge("at", taps="stage2")
    fit(kdkit.Distiller({**pair(), "student": student}, edges), epochs=1)


@pytest.mark.parametrize("word", ["weight", "clip"])
@pytest.mark.parametrize("value", [-1, {"linear": [1.0, -0.5]}])
def test_negative_numbers_are_refused(word, value):
    with pytest.raises(KdkitError, match=rf"edge 'kd': {word} must never be negative, got"):
        fit(kdkit.Distiller(pair(), [kdkit.Edge("kd", **{word: value})]))


def test_attention_to_a_single_place_names_tap_and_shape():
    with pytest.raises(KdkitError, match=r"edge 'at': .*\(taps: teacher.pool 12×1×1, student.pool 8×1×1\)"):
        fit(kdkit.Distiller(pair(), ["ce", kdkit.Edge("at", taps=["stage2", "pool"])]))


def test_a_heads_complaint_names_the_edge():
    edge = kdkit.Edge("mse", taps="embedding", head={"linear": {"bais": True}}, name="mine")
    with pytest.raises(KdkitError, match=r"edge 'mine': head 'linear': unknown option 'bais'; did you mean 'bias'"):
        fit(kdkit.Distiller(pair(), [edge]))


def test_none_is_no_head():
    distiller = kdkit.Distiller(pair(), [kdkit.Edge("rkd", head="none")])
    fit(distiller, epochs=1)
    assert not list(distiller.graph.edges.parameters())


def test_an_unknown_model_is_no_unknown_tap():
    for end in ("techer", "techer.stage2"):
        with pytest.raises(KdkitError, match=r"edge 'kd': no model is called 'techer'; did you mean 'teacher'\?"):
            fit(kdkit.Distiller(pair(), [kdkit.Edge("kd", source=end)]))
    with pytest.raises(KdkitError, match="unknown tap 'stag2'"):
        fit(kdkit.Distiller(pair(), [kdkit.Edge("mse", source="stag2")]))
