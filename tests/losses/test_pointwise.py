"""`mse`, `hint` and `cosine` against plain loops."""

import numpy as np
import pytest
import torch

from kdkit.losses import CosineLoss, HintLoss, MSELoss


def pair(*shape):
    return torch.randn(*shape, dtype=torch.float64).requires_grad_(), torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("cls", [MSELoss, HintLoss])
@pytest.mark.parametrize("shape", [(4, 5), (4, 3, 6, 6)])
def test_mean_squared_error_over_all_entries(cls, shape):
    s, t = pair(*shape)
    expected = float(np.mean([(a - b) ** 2 for a, b in zip(s.detach().numpy().flat, t.numpy().flat, strict=True)]))
    loss = cls()(s, t)
    assert loss.item() == pytest.approx(expected, rel=1e-12)
    loss.backward()
    torch.testing.assert_close(s.grad, 2 * (s.detach() - t) / t.numel())


@pytest.mark.parametrize(("shape", "axis"), [((4, 5), 1), ((4, 6, 5), 2), ((4, 5, 3, 2), 1)])
def test_cosine_is_taken_over_channels(shape, axis):
    s, t = pair(*shape)
    a = np.moveaxis(s.detach().numpy(), axis, -1).reshape(-1, 5)
    b = np.moveaxis(t.numpy(), axis, -1).reshape(-1, 5)
    cosines = [x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)]
    assert CosineLoss()(s, t).item() == pytest.approx(1 - float(np.mean(cosines)), rel=1e-12)


def test_cosine_ignores_lengths_and_calls_a_zero_vector_orthogonal():
    s, t = pair(4, 5)
    lengths = torch.rand(4, 1, dtype=torch.float64) + 0.1
    torch.testing.assert_close(CosineLoss()(s * lengths, t / lengths), CosineLoss()(s, t))
    assert CosineLoss()(torch.zeros(4, 5), torch.randn(4, 5)) == 1
    assert CosineLoss()(-t, t).item() == pytest.approx(2)


@pytest.mark.parametrize(("cls", "name"), [(MSELoss, "mse"), (CosineLoss, "cosine"), (HintLoss, "hint")])
def test_another_batch_is_told_as_such(cls, name):
    with pytest.raises(ValueError, match=f"^{name}: student must hold teacher's 7 samples, got 8; give both the same"):
        cls()(torch.randn(8, 5), torch.randn(7, 5))


@pytest.mark.parametrize("shape", [(5,), (4, 3, 2, 6, 6)])
def test_cosine_refuses_what_has_no_known_axis_of_features(shape):
    with pytest.raises(ValueError, match=r"cosine: student and teacher must be \(B, D\), .* got shape"):
        CosineLoss()(torch.randn(shape), torch.randn(shape))


@pytest.mark.parametrize(("cls", "name"), [(MSELoss, "mse"), (CosineLoss, "cosine"), (HintLoss, "hint")])
def test_unequal_shapes_are_refused_instead_of_broadcast(cls, name):
    with pytest.raises(
        ValueError, match=rf"^{name}: student must be shaped like teacher, \(4, 5\), got \(4, 1\); .*head"
    ):
        cls()(torch.randn(4, 1), torch.randn(4, 5))
