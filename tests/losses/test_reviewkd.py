"""`reviewkd` against loops over numpy, and what its two parts do."""

import copy

import numpy as np
import pytest
import torch

from kdkit.losses import ReviewKDLoss
from kdkit.losses.reviewkd import hcl

DIMS, SHAPES = ((3, 4, 5), (5, 4, 3)), (((6, 4), (3, 2), None), ((6, 4), (4, 3), None))


def levels(dims, sizes, batch=3):
    made = torch.Generator().manual_seed(sum(dims))
    shapes = [(batch, c, *(size or ())) for c, size in zip(dims, sizes, strict=True)]
    return [torch.randn(*shape, dtype=torch.float64, generator=made) for shape in shapes]


def built(**options):
    torch.manual_seed(0)
    loss = ReviewKDLoss(*DIMS, **options).double()
    with torch.no_grad():
        for word, parameter in loss.named_parameters():
            if "bn" in word:
                parameter.add_(torch.randn_like(parameter) / 3)
    return loss


def normed(x, bn):
    mean, var = x.mean((0, 2, 3), keepdims=True), x.var((0, 2, 3), keepdims=True)
    scale, shift = (p.detach().numpy()[None, :, None, None] for p in (bn.weight, bn.bias))
    return (x - mean) / np.sqrt(var + 1e-5) * scale + shift


def nearest(x, size):
    rows, columns = ([i * n // m for i in range(m)] for n, m in zip(x.shape[2:], size, strict=True))
    return x[:, :, rows][:, :, :, columns]


def by_loops(loss, students, teachers):
    """As the formula says, a position at a time."""
    total, deeper = 0.0, None
    for abf, s, t in reversed(list(zip(loss.fusions, students, teachers, strict=True))):
        s, t = (x.numpy().reshape(*x.shape, *[1] * (4 - x.ndim)) for x in (s, t))
        x = normed(np.einsum("oc,bchw->bohw", abf.conv1.weight.detach().numpy()[:, :, 0, 0], s), abf.bn1)
        if deeper is not None:
            up = nearest(deeper, x.shape[2:])
            weight, bias = abf.attention.weight.detach().numpy()[:, :, 0, 0], abf.attention.bias.detach().numpy()
            both = np.einsum("oc,bchw->bohw", weight, np.concatenate([x, up], 1)) + bias[None, :, None, None]
            a, b = (1 / (1 + np.exp(-both[:, i : i + 1])) for i in (0, 1))
            x = a * x + b * up
        deeper = x = nearest(x, t.shape[2:])
        padded, kernel = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), abf.conv2.weight.detach().numpy()
        out = np.zeros(t.shape)
        for i, j in np.ndindex(t.shape[2:]):
            out[:, :, i, j] = np.einsum("ocij,bcij->bo", kernel, padded[:, :, i : i + 3, j : j + 3])
        error, terms = normed(out, abf.bn2) - t, []
        for grid in (None, 4, 2, 1):
            if grid is None or grid < min(t.shape[2:]):
                terms.append([pooled(error, grid), 1 / 2 ** len(terms)])
        total += sum(v * w for v, w in terms) / sum(w for _, w in terms)
    return total


def pooled(x, grid):
    if grid is not None:
        edges = [[(i * n // grid, -(-(i + 1) * n // grid)) for i in range(grid)] for n in x.shape[2:]]
        x = np.stack([x[:, :, a:b, c:d].mean((2, 3)) for a, b in edges[0] for c, d in edges[1]])
    return (x**2).mean()


@pytest.mark.parametrize("hidden", [None, 2])
def test_it_is_the_formula(hidden):
    loss, students, teachers = built(hidden=hidden), levels(DIMS[0], SHAPES[0]), levels(DIMS[1], SHAPES[1])
    assert loss(students, teachers).item() == pytest.approx(by_loops(loss, students, teachers), rel=1e-12)


def test_square_maps_with_all_grids_are_the_formula():
    sizes = ((8, 8), (4, 4), None)
    loss, students, teachers = built(), levels(DIMS[0], sizes), levels(DIMS[1], sizes)
    assert loss(students, teachers).item() == pytest.approx(by_loops(loss, students, teachers), rel=1e-12)


def test_an_error_that_is_the_same_everywhere_counts_once_and_one_that_cancels_at_full_size_alone():
    zero, sign = torch.zeros(2, 3, 8, 8), torch.ones(8, 8).cumsum(0).add(torch.ones(8, 8).cumsum(1)) % 2 * 2 - 1
    assert hcl(zero + 3, zero).item() == pytest.approx(9)
    assert hcl(zero + 3 * sign, zero).item() == pytest.approx(9 / (1 + 1 / 2 + 1 / 4 + 1 / 8))
    assert hcl(zero[..., :4, :4] + sign[:4, :4], zero[..., :4, :4]).item() == pytest.approx(1 / (1 + 1 / 2 + 1 / 4))
    assert hcl(zero[..., :1, :1] + 2, zero[..., :1, :1]).item() == pytest.approx(4)


def test_deep_levels_review_the_shallow_ones_and_not_the_other_way_round():
    loss, students, teachers = built(), levels(DIMS[0], SHAPES[0]), levels(DIMS[1], SHAPES[1])
    for told in range(3):  # an error at one level alone
        tensors = [s.clone().requires_grad_() for s in students]
        outputs = []
        hooks = [abf.register_forward_hook(lambda m, i, o, to=outputs: to.insert(0, o[0])) for abf in loss.fusions]
        loss(tensors, teachers)
        [hook.remove() for hook in hooks]
        found = torch.autograd.grad(
            outputs[told].square().mul(torch.rand_like(outputs[told])).sum(), tensors, allow_unused=True
        )
        assert [g is not None and bool(g.abs().max() > 0) for g in found] == [level >= told for level in range(3)]


def test_the_width_inside_is_the_deepest_levels_512_at_most_or_what_is_said():
    """In mdistiller the option is read and 512 taken."""
    assert ReviewKDLoss((16, 64), (16, 64)).fusions[0].conv1.out_channels == 64
    assert ReviewKDLoss((16, 1280), (16, 64)).fusions[0].conv1.out_channels == 512
    assert ReviewKDLoss((16, 1280), (16, 64), hidden=256).fusions[1].conv2.in_channels == 256


def test_convolutions_begin_as_the_authors():
    for fusion in ReviewKDLoss((16, 64), (16, 64)).fusions:
        for conv in (fusion.conv1, fusion.conv2):
            assert conv.weight.abs().max().item() == pytest.approx((3 / conv.weight[0].numel()) ** 0.5, rel=0.01)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s, t: (s[:2], t), "students and teachers must be 3 levels each, got 2 and 3"),
        (lambda s, t: ([x[:1] for x in s], [x[:1] for x in t]), "batch must hold at least 2 samples, got 1"),
        (lambda s, t: (s, [x[:2] for x in t]), "student must hold teacher's 2 samples, got 3"),
        (lambda s, t: ([s[0][:2], *s[1:]], [t[0][:2], *t[1:]]), "student must hold teacher's 3 samples, got 2"),
        (lambda s, t: ([*s[:2], s[2][:, None]], t), r"students must be maps \(B, C, H, W\) or vectors \(B, D\), got"),
        (lambda s, t: ([s[1], *s[1:]], t), "students must have 3 channels at level 1, got 4"),
        (lambda s, t: (s, [t[0], t[0], t[2]]), "teachers must have 4 channels at level 2, got 5"),
    ],
)
def test_what_does_not_fit_is_told(change, words):
    with pytest.raises(ValueError, match=f"reviewkd: .*{words}"):
        built()(*change(levels(DIMS[0], SHAPES[0]), levels(DIMS[1], SHAPES[1])))


@pytest.mark.parametrize(
    ("dims", "words"),
    [
        (((3, 4), (3,)), "student_dims must be as many as teacher_dims, 1, got 2"),
        (((), ()), "student_dims must be"),
        (((3, 0), (3, 4)), "student_dims must be a whole number of at least 1, got 0"),
    ],
)
def test_levels_that_cannot_be_are_refused(dims, words):
    with pytest.raises(ValueError, match=words):
        ReviewKDLoss(*dims)


@pytest.mark.parametrize(("weights", "tensors"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float64)])
def test_weights_of_another_type_compute_in_that_of_the_tensors(weights, tensors):
    loss = built().to(weights)
    students, teachers = (levels(dims, sizes) for dims, sizes in zip(DIMS, SHAPES, strict=True))
    exact = copy.deepcopy(loss).double()(students, teachers)
    found = loss([s.to(tensors) for s in students], [t.to(tensors) for t in teachers])
    assert found.dtype == tensors
    torch.testing.assert_close(found.double(), exact, rtol=5e-3 if weights is torch.bfloat16 else 1e-6, atol=0)
