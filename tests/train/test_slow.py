"""What a slow copy keeps of its first weights, beside numbers of steps."""

import math
from types import SimpleNamespace

import pytest
import torch

import kdkit
from kdkit.graph.slow import slow
from kdkit.train.example import tell_odd
from tests.nets import loader, net
from tests.train.running import fit


def made(decay):
    nodes = {"teacher": kdkit.ema("student", decay=decay), "student": net(4)}
    return kdkit.Distiller(nodes, ["ce", "kd"], lr=0.01)


@pytest.mark.parametrize(
    ("decay", "kept"),
    [
        (0.999, 0.999**20),
        (0.5, 0.5**20),
        ({"linear": [0.9, 1.0]}, math.exp(20 * (9 * math.log(10 / 9) - 1))),  # 20 times the mean of log(0.9 … 1)
    ],
)
def test_it_is_the_product_of_the_decays(decay, kept, caplog):
    distiller = made(decay)
    fit(distiller, loader(n=80), epochs=4)  # 5 batches of 16
    told = list(slow(distiller.graph, 20))
    assert bool(told) == (kept > 0.1)
    assert all(line.startswith(f"teacher keeps {kept:.0%} of its first weights to the end, 20 steps") for line in told)
    assert [record.message for record in caplog.records if "keeps" in record.message] == [f"warning: {t}" for t in told]


def test_a_decay_that_it_names_is_enough():
    distiller = made(0.999)
    fit(distiller, loader(n=16), epochs=1)
    (told,) = slow(distiller.graph, 50)
    assert "0.819 has the memory of a tenth of them" in told
    fit(better := made(0.819), loader(n=16), epochs=1)
    assert not list(slow(better.graph, 50))


def test_a_share_of_the_batch_is_told_where_processes_share_it(caplog):
    distiller = kdkit.Distiller({"student": net(4), "teacher": kdkit.frozen(net(8))}, ["ce", "rkd"], lr=0.01)
    fit(distiller, batches := loader(n=16), epochs=1)
    assert "share a batch" not in caplog.text
    source = SimpleNamespace(_data_source=SimpleNamespace(dataloader=lambda: batches))
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    tell_odd(SimpleNamespace(fit_loop=source, world_size=2, precision="32-true", strategy=strategy), distiller.graph, 5)
    assert "rkd sees the samples of one process alone, of 2 that share a batch" in caplog.text


def test_half_weights_are_told():
    distiller = made(0.5)
    fit(distiller, loader(n=16), epochs=1)
    distiller.teacher.bfloat16()
    (told,) = slow(distiller.graph, 50)
    assert told == "teacher moves by less than its half-precision weights can tell; train in bf16-mixed"
