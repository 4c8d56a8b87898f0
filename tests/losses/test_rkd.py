"""`rkd` against loops over pairs and triplets, its invariances, its accuracy in fp32 and the memory it takes."""

import itertools

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from kdkit.losses import RKDAngleLoss, RKDDistanceLoss, RKDLoss, rkd


def huber(x):
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def relative(f):
    d = np.array([[np.sqrt(((a - b) ** 2).sum()) for b in f] for a in f])
    return d / d[d > 0].mean()


def distance_oracle(s, t):
    a, b = relative(s), relative(t)
    return float(np.mean([huber(x - y) for x, y in zip(a.flat, b.flat, strict=True)]))


def cosine(f, i, j, k):
    u, v = f[j] - f[i], f[k] - f[i]
    lengths = np.sqrt((u @ u) * (v @ v))
    return u @ v / lengths if lengths > 0 else 0.0


def angle_oracle(s, t):
    triplets = itertools.product(range(len(s)), repeat=3)
    return float(np.mean([huber(cosine(s, *ijk) - cosine(t, *ijk)) for ijk in triplets]))


def features(*shape):
    return torch.randn(*shape, dtype=torch.float64)


def test_distances_and_angles():
    s, t = features(7, 4), 3 * features(7, 9)
    distance, angle = distance_oracle(s.numpy(), t.numpy()), angle_oracle(s.numpy(), t.numpy())
    assert RKDDistanceLoss()(s, t).item() == pytest.approx(distance, rel=1e-10)
    assert RKDAngleLoss()(s, t).item() == pytest.approx(angle, rel=1e-10)
    assert RKDLoss()(s, t).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-10)
    assert RKDLoss(1.0, 2.0)(s, t).item() == pytest.approx(distance + 2 * angle, rel=1e-10)


def test_the_linear_part_of_huber():
    s, t = torch.tensor([[0.0], [1.0], [1.001], [9.0]]).double(), torch.tensor([[0.0], [7.0], [1.0], [0.001]]).double()
    assert (np.abs(relative(s.numpy()) - relative(t.numpy())) > 1).any()
    assert RKDDistanceLoss()(s, t).item() == pytest.approx(distance_oracle(s.numpy(), t.numpy()), rel=1e-7)
    assert RKDAngleLoss()(s, t).item() == pytest.approx(angle_oracle(s.numpy(), t.numpy()), rel=1e-7)


def test_maps_are_flattened():
    s, t = features(5, 2, 3, 3), features(5, 4, 2, 2)
    torch.testing.assert_close(RKDLoss()(s, t), RKDLoss()(s.flatten(1), t.flatten(1)))


def test_invariances():
    s, t = features(7, 4), features(7, 9)
    rotation = torch.linalg.qr(features(4, 4))[0]
    moved = 3 * s @ rotation + features(4)
    torch.testing.assert_close(RKDDistanceLoss()(moved, t), RKDDistanceLoss()(s, t))
    torch.testing.assert_close(RKDAngleLoss()(moved, t), RKDAngleLoss()(s, t))


@pytest.mark.parametrize("offset", [10.0, 1000.0])
def test_a_common_offset_costs_no_accuracy_in_fp32(offset):
    """Cosines from an uncentred Gram matrix err by up to 8e-3 here."""
    s, t = (features(16, 64) + offset).float(), features(16, 64).float()
    exact = RKDAngleLoss()(s.double(), t.double()), RKDDistanceLoss()(s.double(), t.double())
    assert RKDAngleLoss()(s, t).item() == pytest.approx(exact[0].item(), rel=1e-5)
    assert RKDDistanceLoss()(s, t).item() == pytest.approx(exact[1].item(), rel=1e-5)


def test_identical_samples_are_no_distance_apart_and_send_no_noise_back():
    s, t = features(6, 64).float(), features(6, 64).float()
    s[1] = s[0]
    expected = (
        distance_oracle(s.double().numpy(), t.double().numpy()),
        angle_oracle(s.double().numpy(), t.double().numpy()),
    )
    s.requires_grad_()
    assert RKDDistanceLoss()(s, t).item() == pytest.approx(expected[0], rel=1e-5)
    assert RKDAngleLoss()(s, t).item() == pytest.approx(expected[1], rel=1e-5)
    RKDLoss()(s, t).backward()
    assert s.grad.abs().max() < 10


@pytest.mark.parametrize(
    ("cls", "name"), [(RKDLoss, "rkd"), (RKDDistanceLoss, "rkd_distance"), (RKDAngleLoss, "rkd_angle")]
)
@pytest.mark.parametrize("batch", [1, 2])
def test_one_or_two_samples_have_no_relations(cls, name, batch):
    with pytest.raises(ValueError, match=rf"{name}: batch must hold at least 3 samples, got {batch}"):
        cls()(features(batch, 4), features(batch, 4))


def test_a_weight_of_zero_skips_the_work(monkeypatch):
    s, t = features(6, 4), features(6, 4)
    both = RKDLoss(1.0, 0.0)(s, t), RKDLoss(0.0, 1.0)(s, t)
    torch.testing.assert_close(both, (RKDDistanceLoss()(s, t), RKDAngleLoss()(s, t)))
    monkeypatch.setattr(rkd, "_angle_loss", None)
    RKDLoss(angle_weight=0)(s, t)
    monkeypatch.undo()
    monkeypatch.setattr(rkd, "_distance_loss", None)
    RKDLoss(distance_weight=0.0)(s, t)


def broadcast_angle(s, t):
    """As known code has it: all differences, normalised, multiplied with each other; autograd does the rest."""

    def cosines(x):
        directions = torch.nn.functional.normalize(x[None] - x[:, None], dim=2)
        return torch.bmm(directions, directions.mT)

    return torch.nn.functional.smooth_l1_loss(cosines(s), cosines(t))


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_written_out_gradient_is_autograds(scale):
    """Also in the linear part of huber, where two cosines are more than 1 apart."""
    s, t = (scale * features(9, 3)).requires_grad_(), features(9, 5)
    ours, known = RKDAngleLoss()(s, t), broadcast_angle(s, t)
    torch.testing.assert_close(ours, known)
    torch.testing.assert_close(*(torch.autograd.grad(value, s)[0] for value in (ours, known)))
    opposite = torch.tensor([[0.0, 0], [1, 0], [2, 0]], dtype=torch.float64)
    s, t = opposite.clone().requires_grad_(), opposite[[1, 0, 2]]
    with torch.no_grad():
        s += 0.01 * features(3, 2)
    ours, known = RKDAngleLoss()(s, t), broadcast_angle(s, t)
    torch.testing.assert_close(ours, known)
    torch.testing.assert_close(*(torch.autograd.grad(value, s)[0] for value in (ours, known)))


@pytest.mark.parametrize("scale", [1e-18, 1e-20, 1e18])
def test_features_at_the_ends_of_fp32_are_finite(scale):
    """1/d² overflows before d² vanishes."""
    s = (scale * torch.randn(8, 5)).requires_grad_()
    loss = RKDAngleLoss()(s, torch.randn(8, 5))
    assert loss.isfinite()
    assert torch.autograd.grad(loss, s)[0].isfinite().all()


@pytest.mark.parametrize("rows", [1, 5, 11])
def test_pieces_add_up_to_the_whole(monkeypatch, rows):
    s, t = features(12, 4).requires_grad_(), features(12, 9)
    whole = RKDAngleLoss()(s, t)
    gradient = torch.autograd.grad(whole, s)
    monkeypatch.setattr(rkd, "CHUNK", rows * 12 * 12)
    pieces = RKDAngleLoss()(s, t)
    torch.testing.assert_close(pieces, whole)
    torch.testing.assert_close(torch.autograd.grad(pieces, s), gradient)


@pytest.mark.filterwarnings("ignore")  # of inductor
def test_inductor_has_the_gradient():
    s, t = torch.randn(16, 4, requires_grad=True), torch.randn(16, 6)
    (expected,) = torch.autograd.grad(RKDLoss()(s, t), s)
    (found,) = torch.autograd.grad(torch.compile(RKDLoss(), fullgraph=True)(s, t), s)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_pieces_compile(monkeypatch):
    monkeypatch.setattr(rkd, "LARGE_CHUNK", 5 * 8 * 8)
    s, t = features(8, 4).requires_grad_(), features(8, 9)
    gradient = torch.autograd.grad(RKDAngleLoss()(s, t), s)
    torch._dynamo.reset()
    compiled = torch.compile(RKDAngleLoss(), fullgraph=True, backend="aot_eager")(s, t)
    torch.testing.assert_close(torch.autograd.grad(compiled, s), gradient)


class Largest(TorchDispatchMode):
    """Size of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **kwargs or {})
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self.numel = max(self.numel, leaf.numel())
        return result


def test_memory(monkeypatch):
    batch, width, rows = 24, 500, 4
    monkeypatch.setattr(rkd, "CHUNK", rows * batch**2)
    s, t = features(batch, width).requires_grad_(), features(batch, width)
    kept = 0

    def pack(tensor):
        nonlocal kept
        kept += tensor.numel()
        return tensor

    with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        RKDLoss()(s, t).backward()
    assert largest.numel == batch * width  # the features; all differences would be batch times as large
    assert kept < 2 * batch * width + 50 * batch**2  # no B³


def test_refusals():
    with pytest.raises(
        ValueError, match=r"rkd: angle_weight must be a number of at least 0, got -1; 0 switches it off"
    ):
        RKDLoss(angle_weight=-1)
    with pytest.raises(ValueError, match=r"rkd: distance_weight must be above 0 where angle_weight is 0, got 0"):
        RKDLoss(0, 0)
    with pytest.raises(ValueError, match=r"rkd_angle: student must hold teacher's 5 samples, got 4"):
        RKDAngleLoss()(features(4, 3), features(5, 3))
