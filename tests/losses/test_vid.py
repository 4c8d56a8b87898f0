"""`vid` against numpy, what it says of information, and what learns in it."""

import copy
import math

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import nn
from torch.nn import functional as F

from kdkit.losses import VIDLoss


def maps(*shape):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def rows(x):
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])


def moved(loss):
    """With variances that differ."""
    with torch.no_grad():
        loss.alpha.copy_(torch.linspace(-3, 4, len(loss.alpha)))
    return loss.double()


def test_it_is_the_negative_log_density_of_scipy():
    loss, s, t = moved(VIDLoss(3, 5, hidden=4)), maps(2, 3, 4, 4), maps(2, 5, 4, 4)
    first, second, last = (layer.weight.detach().numpy() for layer in loss.layers)
    variance = np.log1p(np.exp(loss.alpha.detach().numpy())) + 1e-5
    total = 0.0
    for b, y, x in np.ndindex(2, 4, 4):
        mean = last @ np.maximum(second @ np.maximum(first @ s.numpy()[b, :, y, x], 0), 0)
        total -= norm.logpdf(t.numpy()[b, :, y, x], mean, np.sqrt(variance)).sum()
    count = 2 * 4 * 4 * 5
    assert loss(s, t).item() == pytest.approx(total / count - 0.5 * math.log(2 * math.pi), rel=1e-12)


def test_it_begins_with_a_variance_of_5_whose_gradient_is_known():
    loss, s, t = VIDLoss(3, 5).double(), maps(4, 3, 2, 2), maps(4, 5, 2, 2)
    variance = F.softplus(loss.alpha) + 1e-5
    assert variance.tolist() == pytest.approx([5.0] * 5)
    error = (loss._predict(rows(s)) - rows(t)).square().mean(0)
    slope = (1 / variance - error / variance**2) / 10 * loss.alpha.sigmoid()  # ∂/∂α of the formula, 5 channels
    torch.testing.assert_close(torch.autograd.grad(loss(s, t), loss.alpha)[0], slope)


def test_both_the_net_and_the_variances_learn():
    """In mdistiller the variances are in no optimiser."""
    torch.manual_seed(0)
    loss, s = VIDLoss(3, 2, hidden=16), torch.randn(64, 3, 2, 2)
    t = torch.cat([s[:, :1].abs(), torch.randn(64, 1, 2, 2) * 3], 1)  # one channel can be told, the other cannot
    optimizer = torch.optim.Adam(loss.parameters(), 0.02)
    for _ in range(400):
        optimizer.zero_grad()
        loss(s, t).backward()
        optimizer.step()
    sure, unsure = (F.softplus(loss.alpha) + 1e-5).tolist()
    assert sure < 0.1
    assert unsure > 5


def test_the_larger_map_is_pooled_on_either_side():
    loss, s, t = moved(VIDLoss(3, 5)), maps(2, 3, 4, 4), maps(2, 5, 2, 2)
    torch.testing.assert_close(loss(s, t), loss(F.avg_pool2d(s, 2), t))
    s, t = maps(2, 3, 2, 2), maps(2, 5, 4, 4)
    torch.testing.assert_close(loss(s, t), loss(s, F.avg_pool2d(t, 2)))


def test_batch_norm_stands_before_each_relu_of_the_net_where_it_is_asked_for():
    loss, s, t = VIDLoss(3, 5, norm="batch").double(), maps(8, 3, 2, 2), maps(8, 5, 2, 2)
    plain = nn.Sequential(loss.layers[0], loss.norms[0], nn.ReLU(), loss.layers[1], loss.norms[1], nn.ReLU())
    torch.testing.assert_close(loss._predict(rows(s)), loss.layers[2](plain(rows(s))))
    assert not torch.isclose(loss(s, t), moved(VIDLoss(3, 5))(s, t))
    assert {type(module) for module in VIDLoss(3, 5).norms} == {nn.Identity}


def test_batch_norm_counts_places_and_in_evaluation_takes_a_single_one():
    loss, one = VIDLoss(3, 5, norm="batch"), (torch.ones(1, 3, 1, 1), torch.ones(1, 5, 1, 1))
    assert loss(*(x.expand(-1, -1, 2, 1) for x in one)).isfinite()
    assert loss.eval()(*one).isfinite()


def test_left_out_the_net_is_as_wide_inside_as_the_teacher():
    assert [tuple(layer.weight.shape) for layer in VIDLoss(3, 5).layers] == [(5, 3), (5, 5), (5, 5)]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_batch_norm_takes_maps_of_another_type_than_its_weights(weights):
    torch.manual_seed(0)
    loss, s, t = VIDLoss(3, 5, norm="batch").to(weights), maps(8, 3, 2, 2), maps(8, 5, 2, 2)
    exact = copy.deepcopy(loss).double()(s, t)
    found = loss(s, t)
    found.backward()
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, exact, rtol=torch.finfo(weights).eps, atol=0)
    assert all(p.grad.isfinite().all() for p in loss.parameters())
    assert loss(s.bfloat16(), t.bfloat16()).dtype == torch.float32


def test_refusals():
    with pytest.raises(ValueError, match=r"vid: norm must be 'none' or 'batch', got 'layer'; choose"):
        VIDLoss(3, 5, norm="layer")
    with pytest.raises(ValueError, match=r"vid: student must be \(B, C, H, W\), got shape \(4, 3\)"):
        VIDLoss(3, 5)(torch.zeros(4, 3), torch.zeros(4, 5, 2, 2))
    with pytest.raises(ValueError, match=r"vid: teacher must have 5 channels, got 6; build the loss with"):
        VIDLoss(3, 5)(torch.zeros(4, 3, 2, 2), torch.zeros(4, 6, 2, 2))
    with pytest.raises(ValueError, match=r"vid: student must hold teacher's 5 samples, got 4"):
        VIDLoss(3, 5)(torch.zeros(4, 3, 2, 2), torch.zeros(5, 5, 2, 2))
    with pytest.raises(ValueError, match=r"vid: batch must hold at least 2 samples, got 1; BatchNorm cannot"):
        VIDLoss(3, 5, norm="batch")(torch.zeros(1, 3, 1, 1), torch.zeros(1, 5, 1, 1))
