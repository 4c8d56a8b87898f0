"""`nst` against loops over pairs of channels, in both of the forms it is computed in."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.losses import NSTLoss


def maps(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def oracle(student, teacher):
    values = []
    for s, t in zip(student.numpy(), teacher.numpy(), strict=True):
        s, t = ([channel.ravel() / np.linalg.norm(channel) for channel in x] for x in (s, t))

        def kernel(a, b):
            return np.mean([np.dot(i, j) ** 2 for i in a for j in b])

        values.append(kernel(t, t) + kernel(s, s) - 2 * kernel(s, t))
    return np.mean(values)


@pytest.mark.parametrize(
    ("student", "teacher"),
    [((3, 4, 6, 5), (3, 7, 6, 5)), ((3, 20, 2, 3), (3, 31, 2, 3)), ((3, 1, 2, 2), (3, 40, 2, 2))],
    ids=["few channels", "few positions", "one channel"],
)
def test_value(student, teacher):
    s, t = maps(*student), maps(*teacher)
    assert NSTLoss()(s, t).item() == pytest.approx(oracle(s, t), rel=1e-12)


def test_unequal_sizes_are_pooled_to_the_smaller():
    s, t = maps(2, 3, 8, 8), maps(2, 4, 4, 4)
    torch.testing.assert_close(NSTLoss()(s, t), NSTLoss()(F.adaptive_avg_pool2d(s, 4), t))
    torch.testing.assert_close(NSTLoss()(t, s), NSTLoss()(t, F.adaptive_avg_pool2d(s, 4)))


@pytest.mark.parametrize("side", [8, 2])
def test_order_scale_and_sign_of_channels_do_not_count(side):
    s, t = maps(3, 6, side, side), maps(3, 5, side, side)
    factors = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0, 7.0], dtype=torch.float64)[:, None, None]
    expected = NSTLoss()(s, t)
    torch.testing.assert_close(NSTLoss()((s * factors)[:, torch.randperm(6)], t), expected)
    torch.testing.assert_close(NSTLoss()(torch.cat([s, s], 1), t), expected)


@pytest.mark.parametrize("side", [8, 2])
def test_gradient_reaches_the_student_alone(side):
    s, t = maps(2, 6, side, side).requires_grad_(), maps(2, 5, side, side).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: NSTLoss()(x, t), s)
    NSTLoss()(s, t).backward()
    assert s.grad.abs().max() > 0
    assert t.grad is None


def test_a_silent_channel_has_a_finite_gradient():
    s = maps(2, 3, 4, 4)
    s[:, 1] = 0
    s.requires_grad_()
    NSTLoss()(s, maps(2, 3, 4, 4)).backward()
    assert s.grad.isfinite().all()


def plain(s, t):
    """Channels scaled to length 1 first, and autograd for all the rest."""
    s, t = (F.normalize(x.flatten(2), dim=2) for x in (s, t))
    found = [(a @ b.mT).square().mean((1, 2)) for a, b in ((t, t), (s, s), (s, t))]
    return (found[0] + found[1] - 2 * found[2]).mean()


@pytest.mark.parametrize("side", [8, 2])
def test_the_gradient_is_that_of_the_plain_formula(side):
    s, t = maps(3, 6, side, side).requires_grad_(), maps(3, 5, side, side)
    gradients = [torch.autograd.grad(value, s, create_graph=True)[0] for value in (NSTLoss()(s, t), plain(s, t))]
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*(torch.autograd.grad(g.square().sum(), s)[0] for g in gradients))


def test_maps_are_read_by_products_alone():
    """Their squares would be two more passes over them, and three backward."""

    class Large(TorchDispatchMode):
        made = ()

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            if isinstance(out, torch.Tensor) and out.numel() == s.numel() and not func.is_view:
                self.made += (func.__name__.split(".")[0],)
            return out

    s, t = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(2, 4, 8, 8)
    with Large() as seen:
        torch.autograd.grad(NSTLoss()(s, t), s)
    assert set(seen.made) <= {"bmm", "_unsafe_view", "add"}


@pytest.mark.filterwarnings("ignore")  # of inductor
def test_inductor_has_the_gradient():
    s, t = torch.randn(12, 3, 4, 4, requires_grad=True), torch.randn(12, 5, 4, 4)
    (expected,) = torch.autograd.grad(NSTLoss()(s, t), s)
    (found,) = torch.autograd.grad(torch.compile(NSTLoss(), fullgraph=True)(s, t), s)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
