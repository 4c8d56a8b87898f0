import copy
from contextlib import contextmanager

import pytest
import torch

import kdkit
from kdkit.train import branches as module
from kdkit.train.branches import branches, side_by_side
from tests.nets import net
from tests.train.running import fit


def groups(nodes, edges):
    distiller = kdkit.Distiller({"teacher": kdkit.frozen(net(16)), **nodes}, edges)
    fit(distiller)
    return branches(distiller.graph)


def students(n):
    return {f"s{i}": net(8, seed=i) for i in range(n)}


def test_students_of_one_teacher_learn_without_each_other():
    assert groups(students(3), ["ce", kdkit.Edge("kd", source="teacher")]) == [("s0",), ("s1",), ("s2",)]


def test_peers_are_one_group():
    edges = ["ce", kdkit.Edge("dml", among=["s0", "s2"])]
    assert groups(students(4), edges) == [("s0", "s2"), ("s1",), ("s3",)]


def test_a_slow_copy_teaches_for_its_original():
    nodes = {**students(2), "slow": kdkit.ema("s0")}
    edges = ["ce", kdkit.Edge("kd", source="slow", target="s1")]
    assert groups(nodes, edges) == [("s0", "s1")]


def test_a_shared_layer_joins():
    nodes = students(3)
    nodes["s2"].fc = nodes["s0"].fc
    with pytest.raises(kdkit.registry.KdkitError):  # one optimiser for each weight: refused before
        groups(nodes, ["ce"])


def test_a_student_beside_others_learns_what_it_learns_alone():
    first = students(3)
    alone = copy.deepcopy(first["s1"])
    teacher = net(16)
    fit(kdkit.Distiller({"teacher": kdkit.frozen(copy.deepcopy(teacher)), **first}, ["ce", "kd"]))
    fit(kdkit.Distiller({"teacher": kdkit.frozen(teacher), "s1": alone}, ["ce", "kd"]))
    for one, other in zip(first["s1"].state_dict().values(), alone.state_dict().values(), strict=True):
        assert torch.equal(one, other)


class Stream:
    def __init__(self, name, said):
        self.name, self.said = name, said

    def wait_stream(self, other):
        self.said.append((self.name, "waits for", other.name))


def test_every_stream_begins_after_and_ends_before(monkeypatch):
    said = []
    here, streams = Stream("here", said), [Stream("a", said), Stream("b", said)]

    @contextmanager
    def on(stream):
        said.append(("on", stream.name))
        yield

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: here)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "stream", on)
    monkeypatch.setattr(module, "_streams_of", lambda device, count: streams[:count])
    side_by_side([("x",), ("y",)], lambda group: said.append(("work", *group)))
    assert said == [
        ("a", "waits for", "here"), ("on", "a"), ("work", "x"),
        ("b", "waits for", "here"), ("on", "b"), ("work", "y"),
        ("here", "waits for", "a"), ("here", "waits for", "b"),
    ]  # fmt: skip
    said.clear()
    side_by_side([("x", "y")], lambda group: said.append(("work", *group)))
    assert said == [("work", "x", "y")]
