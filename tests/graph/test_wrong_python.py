"""What a user of the Python API gets wrong is one clear sentence."""

import copy

import pytest
import torch
from torch import nn

import kdkit
from kdkit.losses import KDLoss
from kdkit.registry import KdkitError
from tests.nets import net


def distiller(nodes, edges=("ce",), **options):
    return kdkit.Distiller(nodes, edges, **options)


def compiled_in_place():
    model = net()
    model.compile(backend="eager")
    return model


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:FutureWarning", "ignore:.*torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: kdkit.Edge(lambda s, t: (s - t).mean()), "must be a name, an nn.Module or its class, got '<lambda>'"),
        (lambda: kdkit.Edge(torch.nn.functional.mse_loss), "got 'mse_loss'; write a class whose forward"),
        (lambda: kdkit.Edge({"kd": {"weight": 1}}), r"got a mapping; in Python: Edge\('kd', weight="),
        (lambda: distiller({"student": net()}, [{"kd": {}}]), "got a mapping"),
        (lambda: kdkit.Edge("kd", from_="teacher"), "edge 'kd': in Python a recipe's `from` is called `source`"),
        (lambda: kdkit.Edge("kd", **{"from": "teacher"}), "`from` is called `source`"),
        (lambda: kdkit.Edge("kd", to="student"), "`to` is called `target`"),
        (lambda: distiller({"student": net()}, optimizer="sgd"), """mapping such as {"name": "sgd", .*got 'sgd'"""),
        (lambda: distiller({"student": kdkit.Node(net(), optimizer="adam")}), "mapping such as .*got 'adam'"),
        (lambda: distiller({"student": "resnet20"}), "must be an nn.Module, got 'resnet20'; kdkit.models.build"),
        (lambda: kdkit.frozen("resnet20"), "must be an nn.Module, got 'resnet20'; kdkit.models.build"),
        (lambda: kdkit.Node(net(), mean=(0.5,) * 3, std=(0.2, 0.0, 0.2)), "std must be above 0 for every channel"),
        (lambda: kdkit.Node(nn.Linear), "must be an nn.Module, got <class"),
        (lambda: distiller({"student": nn.DataParallel(net())}), r"DataParallel shares .*`\.module`.*strategy=.ddp"),
        (
            lambda: distiller({"student": torch.compile(net(), backend="eager")}),
            "give the model itself, .*compile=True",
        ),
        (lambda: kdkit.frozen(compiled_in_place()), "give the model itself, .*compile=True"),
        (lambda: kdkit.frozen(torch.jit.script(nn.Linear(2, 2))), "TorchScript cannot be read inside"),
        (lambda: kdkit.Node(nn.Sequential(torch.jit.script(nn.Linear(2, 2)))), "TorchScript cannot be read inside"),
    ],
)
def test_one_sentence(make, words):
    with pytest.raises(KdkitError, match=words):
        make()


def test_one_module_is_not_teacher_and_student():
    student = net()
    for teacher in (student, nn.Sequential(student)):
        with pytest.raises(KdkitError, match=r"models 'teacher' and 'student' share weights, .*copy\.deepcopy"):
            distiller({"teacher": kdkit.frozen(teacher), "student": student})
    assert all(p.requires_grad for p in student.parameters())  # refused before anything was frozen
    distiller({"teacher": kdkit.frozen(copy.deepcopy(student)), "student": student})


def test_what_learns_at_no_time_may_be_shared():
    backbone = net().requires_grad_(False)
    distiller({"teacher": kdkit.frozen(backbone), "student": nn.Sequential(backbone, nn.Linear(5, 5))})


def test_two_views_of_one_teacher_may_share_it():
    one = net()
    near, far = kdkit.frozen(one, image_size=8), kdkit.frozen(one, image_size=4)
    distiller({"near": near, "far": far, "student": net()})


@pytest.mark.parametrize(
    ("nodes", "edges", "words", "told"),
    [
        ([net()], ["ce"], {}, "the models must be a mapping"),
        ({"student": net()}, "ce", {}, "the losses must be a list such as .*, got a str"),
        ({"student": net()}, ["ce"], {"seed": "a"}, "seed must be a whole number, got 'a'"),
        ({"student": net()}, ["ce"], {"optimizer": torch.optim.SGD(net().parameters(), 0.1)}, "got a SGD$"),
    ],
)
def test_arguments_of_another_kind(nodes, edges, words, told):
    with pytest.raises(KdkitError, match=told):
        kdkit.Distiller(nodes, edges, **words)


def test_the_names_that_kdkit_has_are_those_it_means():
    assert dir(kdkit) == sorted([*kdkit.__all__, "__version__"])


def test_an_edge_is_shown_as_it_is_written():
    words = "'kd', source='teacher', weight={'linear': [1, 0]}, when={'to': 0.5}, gather=True, clip=1.0, name='soft'"
    for text in (
        f"Edge({words}, temperature=4)",
        "Edge('cc', order=1)",
        "Edge('ce')",
        "Edge('at', weight={'share': 0.3})",
    ):
        assert repr(eval(text, {"Edge": kdkit.Edge})) == text
    assert repr(kdkit.Edge(KDLoss(), taps="logits")) == "Edge(KDLoss(), taps='logits')"
