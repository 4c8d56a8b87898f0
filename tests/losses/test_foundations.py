"""What all losses stand on: full precision, directions, distances."""

import inspect

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.losses.geometry import centred_gram, pooled, squared_distances, unit, unit_of_powers
from kdkit.losses.precision import full_precision
from kdkit.registry import LOSSES, register_loss


class Probe(nn.Module):
    """Reports what its decorated forward is given."""

    @full_precision
    def forward(self, student, teachers=None, labels=None):
        self.seen = (student, *(teachers or ()), labels)
        return (student @ student.T).mean()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_becomes_single_also_inside_lists_and_keywords(dtype):
    probe, x, labels = Probe(), torch.randn(3, 3, dtype=dtype), torch.arange(3)
    with torch.autocast("cpu", torch.bfloat16):
        assert (
            probe(x, teachers=[x, x.double()], labels=labels).dtype == torch.float32
        )  # a product autocast would halve
    assert [t.dtype for t in probe.seen] == [torch.float32, torch.float32, torch.float64, torch.int64]


def test_signature_is_kept_and_each_forward_has_its_own_code():
    assert list(inspect.signature(Probe.forward).parameters) == ["self", "student", "teachers", "labels"]

    def forward(self, student):
        return student

    one, two = full_precision(forward), full_precision(Probe.forward)
    assert one.__code__ is not two.__code__


def test_autocast_outside_is_left_as_it_was():
    with torch.autocast("cpu", torch.bfloat16):
        Probe()(torch.randn(3, 3))
        assert (torch.randn(3, 3) @ torch.randn(3, 3)).dtype == torch.bfloat16


def test_autocast_is_that_of_the_first_tensors_device_which_may_lie_in_a_list(monkeypatch):
    class Late(nn.Module):
        @full_precision
        def forward(self, students):
            return students[0].sum()

    asked, real = [], torch.is_autocast_enabled
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: asked.append(device) or real(device))
    for x in (torch.zeros(1), torch.zeros(1, device="meta")):
        Late()([x])
        Late()(students=[x])
    assert asked == ["cpu", "cpu"], "a dry run's meta device knows no autocast"


def test_unit_vectors():
    x = torch.randn(5, 4, dtype=torch.float64)
    x[2] = 0
    x.requires_grad_()
    y = unit(x)
    torch.testing.assert_close(y, nn.functional.normalize(x))
    torch.testing.assert_close(unit(x.T, 0), y.T)
    y.sum().backward()
    assert (x.grad[2] == 1).all()  # F.normalize sends 1e12 here
    assert torch.autograd.gradcheck(unit, torch.randn(5, 4, dtype=torch.float64, requires_grad=True))


def test_a_vector_too_long_for_its_type_is_seen():
    y = unit(torch.tensor([[1e20, 1.0], [3e15, 4e15]]))
    assert y[0].isnan().all()
    torch.testing.assert_close(y[1], torch.tensor([0.6, 0.8]))


@pytest.mark.parametrize("size", [1e-10, 1e-12, 1e-14, 1e-18, 1e-30])
def test_a_vector_that_is_nearly_zero_has_a_finite_gradient(size):
    x = torch.tensor([[size, -size], [1.0, 2.0]], requires_grad=True)
    unit(x)[:, 0].sum().backward()
    assert x.grad.isfinite().all()
    torch.testing.assert_close(x.grad[1], torch.tensor([4.0, -2.0]) / 5**1.5)


def test_powers_that_are_nearly_zero_stay_so():
    x = torch.tensor([[1e-20, 2e-20], [3.0, 4.0]], requires_grad=True)
    y = unit_of_powers(x)
    torch.testing.assert_close(y, torch.stack([x[0], x[1] / 5]), rtol=1e-6, atol=0)
    assert torch.autograd.grad(y[0].sum(), x)[0][0].tolist() == [1, 1]


def test_squared_distances():
    x = torch.randn(6, 4, dtype=torch.float64) + 5
    torch.testing.assert_close(squared_distances(centred_gram(x)), torch.cdist(x, x) ** 2)
    x = torch.randn(8, 300) * 100
    twins = x + 1e-5 * torch.randn(8, 300)  # nearer than fp32 can tell: its own rounding must not pass for a distance
    square = squared_distances(centred_gram(torch.cat([x, twins])))
    assert (square[:8, 8:].diagonal() == 0).all()
    assert (square.diagonal() == 0).all()
    assert (square > 0).sum() == 16 * 15 - 16
    x = torch.randn(512, 64) * 100  # of so many some are off by more than one last digit
    assert (squared_distances(centred_gram(torch.cat([x, x * (1 + 1e-7)])))[:512, 512:].diagonal() == 0).all()


class Seen(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("shape", "size", "even"), [((8, 6), (4, 2), True), ((8, 6), (1, 1), True), ((5, 6), (4, 2), False)]
)
def test_maps_are_averaged_to_a_size_without_the_adaptive_gradient_where_it_divides(shape, size, even):
    x = torch.randn(2, 3, *shape, dtype=torch.float64, requires_grad=True)
    with Seen() as seen:
        found = pooled(x, size)
        found.square().sum().backward()
    torch.testing.assert_close(found, F.adaptive_avg_pool2d(x, size))
    assert any("_adaptive_avg_pool2d_backward" in name for name in seen.names) is not even


def registered(monkeypatch, cls):
    monkeypatch.setattr(LOSSES, "_entries", dict(LOSSES))
    words = {"paper": "", "tap": "logits", "weight": 1.0, "weight_source": "", "zero_at_match": True}
    return register_loss("odd", example=lambda: ({}, {}), **words)(cls)


class Module(nn.Module):
    def extra_repr(self):
        return "as its author says"


@pytest.mark.parametrize(("base", "shown"), [(nn.Module, "mask=True, power=2"), (Module, "as its author says")])
def test_a_loss_shows_itself_whatever_else_it_keeps(monkeypatch, base, shown):
    class Odd(base):
        def __init__(self, mask=True, power=2):
            super().__init__()
            self.register_buffer("mask", torch.tensor(mask))
            self.register_buffer("power", torch.tensor(power))
            self.most, self.turn = np.log(10.0), torch.tensor(1j)

        def forward(self, student):
            return student

    assert repr(registered(monkeypatch, Odd)()) == f"Odd({shown})"
