"""`sid` against loops over modules, its floors and minimisers, and what each module's gradient may depend on."""

import math

import numpy as np
import pytest
import torch

from kdkit.losses import CrossEntropyLoss, SIDLoss


def kl(p, q):
    return sum(a * (math.log(a) - math.log(b)) for a, b in zip(p, q, strict=True) if a > 0)


def oracle(logits, labels, alpha, direction, smoothing):
    total = 0.0
    for cascade, label in zip(logits, labels, strict=True):
        classes = cascade.shape[1]
        target = np.full(classes, smoothing / classes)
        target[label] += 1 - smoothing
        before = np.full(classes, 1 / classes)
        for z in cascade:
            p = np.exp(z) / np.exp(z).sum()
            ends = [(target, p), (before, p)] if direction == "forward" else [(p, target), (p, before)]
            total += alpha * kl(*ends[0]) + (1 - alpha) * kl(*ends[1])
            before = p
    return total / len(labels)


def beliefs(batch=6, modules=3, classes=5):
    return torch.randn(batch, modules, classes, dtype=torch.float64), torch.randint(classes, (batch,))


@pytest.mark.parametrize(("direction", "smoothing"), [("forward", 0.0), ("forward", 0.1), ("reverse", 0.1)])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_sum_over_modules(direction, smoothing, alpha):
    z, y = beliefs()
    expected = oracle(z.numpy(), y.tolist(), alpha, direction, smoothing)
    loss = SIDLoss(alpha=alpha, direction=direction, label_smoothing=smoothing)
    assert loss(z, y).item() == pytest.approx(expected, rel=1e-10)
    loss.reduce = "mean"
    assert loss(z, y).item() == pytest.approx(expected / 3, rel=1e-10)


def ladder(classes, modules, alpha):
    """p_i = α·onehot + (1 − α)·p_{i−1} from uniform, for one sample of class 0."""
    p, rows = torch.full((classes,), 1 / classes, dtype=torch.float64), []
    for _ in range(modules):
        p = (1 - alpha) * p
        p[0] += alpha
        rows.append(p)
    return torch.stack(rows).log()[None].requires_grad_()


@pytest.mark.parametrize(("classes", "modules", "floor"), [(10, 5, 0.8604), (100, 8, 1.0585)])
def test_forward_floor_is_the_progressive_mixture(classes, modules, floor):
    z, y = ladder(classes, modules, 0.5), torch.tensor([0])
    assert z.exp()[0, -1, 0].item() == pytest.approx(1 - 0.5**modules * (1 - 1 / classes))
    loss = SIDLoss()(z, y)
    assert loss.item() == pytest.approx(floor, abs=5e-5)
    loss.backward()
    assert z.grad.abs().max() < 1e-12


def test_reverse_is_least_at_the_geometric_mean():
    y, target = torch.tensor([1]), torch.full((5,), 0.02, dtype=torch.float64)
    target[1] += 0.9
    log_p, rows = torch.full((5,), -math.log(5), dtype=torch.float64), []
    for _ in range(3):
        log_p = (0.5 * target.log() + 0.5 * log_p).log_softmax(0)
        rows.append(log_p)
    z = torch.stack(rows)[None].requires_grad_()
    SIDLoss(direction="reverse", label_smoothing=0.1)(z, y).backward()
    assert z.grad.abs().max() < 1e-12


def test_each_module_learns_from_its_own_two_targets_only():
    """∂L/∂z_i = (p_i − α·onehot − (1 − α)·p_{i−1})/B: nothing comes back from the module after."""
    z, y = beliefs()
    z.requires_grad_()
    SIDLoss(alpha=0.3)(z, y).backward()
    p = z.detach().softmax(-1)
    before = torch.cat([torch.full_like(p[:, :1], 1 / 5), p[:, :-1]], 1)
    onehot = torch.nn.functional.one_hot(y, 5)[:, None].double()
    torch.testing.assert_close(z.grad, (p - 0.3 * onehot - 0.7 * before) / 6)


def test_one_module_that_hears_only_labels_is_supervised_training():
    z, y = beliefs(modules=1)
    torch.testing.assert_close(SIDLoss(alpha=1.0)(z, y), CrossEntropyLoss()(z[:, 0], y))


def test_refusals():
    with pytest.raises(
        ValueError, match=r"sid: label_smoothing must be above 0 with direction 'reverse', got 0; .*infinite"
    ):
        SIDLoss(direction="reverse")
    with pytest.raises(ValueError, match=r"sid: alpha must lie in \[0, 1\], got 1.5; give it as a share"):
        SIDLoss(alpha=1.5)
    with pytest.raises(ValueError, match=r"sid: direction must be 'forward' or 'reverse', got 'backward'"):
        SIDLoss(direction="backward")
    with pytest.raises(ValueError, match=r"sid: reduce must be 'sum' or 'mean', got 'max'"):
        SIDLoss(reduce="max")
    with pytest.raises(ValueError, match=r"sid: student must be \(B, L, C\), got shape \(6, 5\); choose another tap"):
        SIDLoss()(torch.randn(6, 5), torch.zeros(6, dtype=torch.int64))


def monitored(logits, labels, alpha, direction, smoothing):
    """Proposition 2 sample by sample: each L_i at p_i and at p_{i−1}, and both sides of the bound."""
    improved, slack = [], []
    for cascade, label in zip(logits, labels, strict=True):
        classes = cascade.shape[1]
        target = np.full(classes, smoothing / classes)
        target[label] += 1 - smoothing
        ps = [np.full(classes, 1 / classes), *(np.exp(z) / np.exp(z).sum() for z in cascade)]

        def distance(p, q):
            return kl(q, p) if direction == "forward" else kl(p, q)

        def loss(p, before, target=target):
            return alpha * distance(p, target) + (1 - alpha) * distance(p, before)

        pairs = list(zip(ps[1:], ps[:-1], strict=True))
        improved.append([loss(p, before) <= loss(before, before) for p, before in pairs])
        moved = sum(distance(p, before) for p, before in pairs)
        slack.append(distance(ps[0], target) - (1 - alpha) / alpha * moved - distance(ps[-1], target))
    return np.array(improved, dtype=float), np.array(slack)


@pytest.mark.parametrize(("direction", "smoothing"), [("forward", 0.0), ("forward", 0.1), ("reverse", 0.1)])
@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_monitor_tells_proposition_2(direction, smoothing, alpha):
    z, y = beliefs(batch=200)
    rising = torch.nn.functional.one_hot(y, 5)[:, None] * torch.tensor([0.3, 0.6, 0.9])[:, None]
    z[:100] = 0.05 * z[:100] + rising[:100]  # half of them walk towards their labels
    improved, slack = monitored(z.numpy(), y.tolist(), alpha, direction, smoothing)
    told = SIDLoss(alpha=alpha, direction=direction, label_smoothing=smoothing).monitor(z, y)
    assert np.array_equal(told["improved"].numpy(), improved)
    np.testing.assert_allclose(told["slack"].numpy(), slack, atol=1e-12)
    everywhere = improved.all(1)
    assert 0 < everywhere.sum() < 200
    assert (told["slack"][torch.from_numpy(everywhere)] >= 0).all(), "the bound holds where its hypothesis does"
    assert (told["slack"] < 0).any(), "and may fail where it does not"


def test_a_module_that_says_what_the_one_before_says_is_no_worse():
    z, y = beliefs(modules=1)
    told = SIDLoss().monitor(z.expand(-1, 3, -1), y)
    assert (told["improved"][:, 1:] == 1).all()


def test_monitor_counts_in_full_precision():
    z, y = beliefs()
    told, exact = (SIDLoss().monitor(x, y) for x in (z.bfloat16(), z.bfloat16().float()))
    assert all(torch.equal(told[word], exact[word]) for word in exact)


def test_monitor_at_the_optimum():
    """On the ladder of mixtures every module improves, and beliefs sharpen with depth."""
    z, y = ladder(10, 5, 0.5), torch.tensor([0])
    told = SIDLoss().monitor(z, y)
    assert told["improved"].tolist() == [[1.0] * 5]
    assert told["accuracy"].tolist() == [[1.0] * 5]
    torch.testing.assert_close(told["belief"][0], torch.tensor([0.55, 0.775, 0.8875, 0.94375, 0.971875]).double())
    assert (told["entropy"].diff() < 0).all()
    assert told["entropy"][0, 0].item() == pytest.approx(-(0.55 * math.log(0.55) + 0.45 * math.log(0.05)))
    assert told["slack"].item() > 0
    assert not any(value.requires_grad for value in told.values())
    assert "slack" not in SIDLoss(alpha=0.0).monitor(z, y), "without labels there is no bound"
