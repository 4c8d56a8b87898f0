"""A student with a head for the labels and one for the teacher, as DeiT's distilled transformers are."""

import pytest
import torch
from timm.models.deit import VisionTransformerDistilled

import kdkit
from tests.nets import loader, net
from tests.train.running import fit


def deit():
    torch.manual_seed(0)
    size = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 1, "num_heads": 2}
    return VisionTransformerDistilled(**size, num_classes=5)


def distiller(student, **weights):
    models = {"teacher": kdkit.frozen(net(12, seed=1)), "student": student}
    ends = {"ce": "student.head", "hard": "student.head_dist"}
    edges = [kdkit.Edge(name, target=end, weight=weights.get(name, 0.5)) for name, end in ends.items()]
    return kdkit.Distiller(models, edges, lr=0.1, optimizer={"name": "sgd"})


@pytest.mark.parametrize(("silent", "still"), [("ce", "head"), ("hard", "head_dist")])
def test_each_head_learns_from_its_own(silent, still):
    student = deit()
    before = {name: p.clone() for name, p in student.named_parameters()}
    fit(distiller(student, **{silent: 0.0}), epochs=1)
    moved = {name for name, p in student.named_parameters() if not torch.equal(p, before[name])}
    assert {"head", "head_dist"} - {name.split(".")[0] for name in moved} == {still}
    assert "blocks.0.attn.qkv.weight" in moved


def test_both_together_answer():
    student = deit()
    run = fit(distiller(student), val=loader(), epochs=1)
    student.eval()
    right = torch.cat([student(x).argmax(1) == y for x, y, *_ in loader()])
    assert run.callback_metrics["val/student/top1"].item() == pytest.approx(right.float().mean().item())
