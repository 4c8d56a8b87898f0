"""Heads: every kind on every form, their policies, penalties and refusals."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.graph.heads import bind_head, charge
from kdkit.models.heads import HEADS, build_head
from kdkit.registry import KdkitError, UnknownNameError

VECTOR, TOKENS, MAP = (6,), (5, 6), (6, 4, 4)
VARIATIONAL = {"bottleneck": {"variational": True, "width": 2, "beta": 0.1}}
POINTWISE = [info.name for info in HEADS.values() if info.form == "pointwise" and info.name != "identity"]


def run(spec: Any, student: tuple[int, ...], teacher: tuple[int, ...], batch: int = 3) -> tuple[Any, Tensor, Tensor]:
    torch.manual_seed(0)
    head = build_head(spec, student, teacher)
    s, t = torch.randn(batch, *student, requires_grad=True), torch.randn(batch, *teacher, requires_grad=True)
    a, b = head(s, t)
    assert a.shape == b.shape == (batch, *head.shape)
    assert not b.requires_grad
    return head, a, b


@pytest.mark.parametrize("name", POINTWISE)
@pytest.mark.parametrize(
    ("student", "teacher", "shape"), [((6,), (7,), (7,)), ((5, 6), (5, 7), (5, 7)), ((6, 4, 4), (7, 4, 4), (7, 4, 4))]
)
def test_pointwise_heads_reach_the_teachers_shape(
    name: str, student: tuple[int, ...], teacher: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    head, a, b = run(name, student, teacher)
    assert head.shape == shape
    (a - b).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


@pytest.mark.parametrize("name", POINTWISE)
def test_a_map_is_a_set_of_vectors_to_a_pointwise_head(name: str) -> None:
    head, _, _ = run(name, (6, 4, 4), (7, 4, 4))
    head.eval()
    x = torch.randn(2, 6, 4, 4)
    whole, _ = head(x, torch.zeros(2, 7, 4, 4))
    torch.testing.assert_close(whole[:, :, 1, 2], head.net(x[:, :, 1, 2]))


@pytest.mark.parametrize("name", list(HEADS))
def test_every_kind_has_a_summary_and_builds(name: str) -> None:
    info = HEADS[name]
    shapes = {"map": (MAP, MAP), "own size": (MAP, MAP), "pointwise": (VECTOR, VECTOR)}
    student, teacher = shapes.get(info.form, (TOKENS, MAP))
    assert info.summary.endswith(".")
    head, _, _ = run(name, student, teacher)
    copy.deepcopy(head)
    pickle.loads(pickle.dumps(head))
    twin = build_head(name, student, teacher)
    twin.load_state_dict(head.state_dict())


def test_linear_low_rank_and_mlp_are_their_formulas() -> None:
    x, t = torch.randn(3, 6), torch.zeros(3, 7)
    head = build_head("linear", (6,), (7,))
    torch.testing.assert_close(head(x, t)[0], x @ head.net.weight.T + head.net.bias)
    head = build_head({"low_rank": {"rank": 2}}, (6,), (7,))
    a, b = head.net
    torch.testing.assert_close(head(x, t)[0], x @ (b.weight @ a.weight).T + b.bias)
    assert sum(p.numel() for p in head.parameters()) == 2 * 6 + 2 * 7 + 7
    head = build_head({"mlp": {"hidden": 5, "activation": "silu", "norm": "batch"}}, (6,), (7,))
    first, _, _, last = head.net
    hidden = x @ first.weight.T + first.bias
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + 1e-5).sqrt()
    torch.testing.assert_close(head(x, t)[0], hidden.mul(hidden.sigmoid()) @ last.weight.T + last.bias)


@pytest.mark.parametrize("shape", [(5, 6), (6, 4, 4)])
def test_batch_norm_counts_every_position(shape: tuple[int, ...]) -> None:
    head, _, _ = run({"mlp": {"norm": "batch"}}, shape, shape)
    assert head.net[1].num_batches_tracked == 1
    seen = []
    head.net[1].register_forward_hook(lambda _, args, out: seen.append(out))
    head(torch.randn(4, *shape), torch.randn(4, *shape))
    rows = seen[0].reshape(-1, 6)
    torch.testing.assert_close(rows.mean(0), torch.zeros(6), atol=1e-5, rtol=0)
    torch.testing.assert_close(rows.var(0, unbiased=False), torch.ones(6), atol=1e-3, rtol=0)


def test_batch_norm_refuses_a_single_row_in_training() -> None:
    head = build_head({"mlp": {"norm": "batch"}}, (6,), (6,))
    with pytest.raises(ValueError, match="batch must be larger than 1 in training"):
        head(torch.randn(1, 6), torch.randn(1, 6))
    head.eval()(torch.randn(1, 6), torch.randn(1, 6))
    conv = build_head("conv_bn_relu", (6, 1, 1), (6, 1, 1))
    with pytest.raises(ValueError, match="batch must be larger than 1 in training on 1×1 maps"):
        conv(torch.randn(1, 6, 1, 1), torch.randn(1, 6, 1, 1))


@pytest.mark.parametrize(
    ("student", "teacher", "kernel", "stride"),
    [
        ((4, 8, 8), (6, 8, 8), (1, 1), (1, 1)),
        ((4, 8, 8), (6, 4, 4), (3, 3), (2, 2)),
        ((4, 4, 4), (6, 8, 8), (4, 4), (2, 2)),
        ((4, 8, 8), (6, 6, 7), (3, 2), (1, 1)),
        ((4, 24, 24), (6, 8, 8), (1, 1), (1, 1)),  # pooled: a 17×17 kernel is not meant
        ((4, 8, 8), (6, 24, 24), (1, 1), (1, 1)),  # the teacher pooled
    ],
)
def test_conv_bn_relu_follows_the_sizes(
    student: tuple[int, ...], teacher: tuple[int, ...], kernel: tuple[int, int], stride: tuple[int, int]
) -> None:
    head, a, b = run("conv_bn_relu", student, teacher)
    assert (head.net.conv.kernel_size, head.net.conv.stride) == (kernel, stride)
    assert head.net.conv.bias is not None
    assert a.min() == 0
    x = torch.randn(2, *student)
    plain = F.relu(F.batch_norm(head.net.conv(head.align(x, x)[0]), None, None, training=True))
    torch.testing.assert_close(head(x, torch.zeros(2, *teacher))[0], plain)
    assert b.shape[2:] == (8, 8) if teacher[1] == 24 else b.shape[1:] == teacher
    _, a, _ = run({"conv_bn_relu": {"relu": False}}, student, teacher)
    assert a.min() < 0


def test_dwsep_is_depthwise_then_pointwise() -> None:
    head, _, _ = run({"dwsep": {"kernel": 5}}, (4, 8, 8), (6, 8, 8))
    assert sum(p.numel() for p in head.parameters()) == 4 * 25 + 4 * 6 + 6
    with pytest.raises(KdkitError, match="kernel must be odd"):
        build_head({"dwsep": {"kernel": 4}}, MAP, MAP)


@pytest.mark.parametrize(
    ("policy", "shape"), [("pool", (7, 4, 3)), ("gap", (7,)), ("resize", (7, 4, 8))], ids=["pool", "gap", "resize"]
)
def test_unequal_maps_follow_the_policy(policy: str, shape: tuple[int, ...]) -> None:
    head, _, b = run({"linear": {"maps": policy}}, (6, 6, 3), (7, 4, 8))
    assert head.shape == shape
    s, t = torch.randn(2, 6, 6, 3), torch.randn(2, 7, 4, 8)
    a, b = head(s, t)
    if policy == "pool":
        torch.testing.assert_close(b, F.adaptive_avg_pool2d(t, (4, 3)))
        pooled = F.adaptive_avg_pool2d(s, (4, 3))
    elif policy == "gap":
        torch.testing.assert_close(b, t.mean((2, 3)))
        torch.testing.assert_close(a, head.net(s.mean((2, 3))))
        return
    else:
        assert torch.equal(b, t)
        pooled = F.interpolate(s, (4, 8), mode="bilinear", align_corners=False)
    torch.testing.assert_close(a, F.conv2d(pooled, head.net.weight[:, :, None, None], head.net.bias))


def test_a_vector_on_one_side_averages_the_other() -> None:
    head = build_head("linear", (6, 4, 4), (7,))
    s, t = torch.randn(2, 6, 4, 4), torch.randn(2, 7)
    torch.testing.assert_close(head(s, t), (head.net(s.mean((2, 3))), t))
    head = build_head("linear", (6,), (5, 7))
    s, t = torch.randn(2, 6), torch.randn(2, 5, 7)
    torch.testing.assert_close(head(s, t), (head.net(s), t.mean(1)))


def test_tokens_and_maps_turn_into_each_other() -> None:
    tokens, image = torch.randn(2, 4 * 4 + 1, 6), torch.randn(2, 7, 8, 8)
    head = build_head("tokens_to_map", (17, 6), (7, 8, 8))
    a, b = head(tokens, image)
    assert head.shape == (7, 4, 4)
    torch.testing.assert_close(a[:, :, 1, 2], head.net(tokens[:, 1 + 4 * 1 + 2]))
    torch.testing.assert_close(b, F.avg_pool2d(image, 2))
    head = build_head("map_to_tokens", (7, 8, 8), (17, 6))
    a, b = head(image, tokens)
    assert head.shape == (16, 6)
    assert torch.equal(b, tokens[:, 1:])
    torch.testing.assert_close(a[:, 6], head.net(F.avg_pool2d(image, 2)[:, :, 1, 2]))
    head = build_head({"tokens_to_map": {"grid": [2, 8]}}, (17, 6), (18, 7))
    assert head.shape == (7, 2, 8)
    head = build_head("tokens_to_map", (197, 6), (50, 7))  # two transformers with other patches
    assert head.shape == (7, 7, 7)


def test_bottleneck_narrows_and_the_variational_one_samples() -> None:
    head, _, _ = run({"bottleneck": {"width": 2}}, (6,), (7,))
    assert head.net[0].out_features == 2
    assert head.penalty is None
    head, _, b = run(VARIATIONAL, (6,), (7,))
    x = torch.randn(3, 6)
    first, second = head(x, b)[0], head(x, b)[0]
    assert not torch.equal(first, second)
    mean, log_variance = head.net.encode(x).chunk(2, -1)
    normal = torch.distributions.Normal(0.0, 1.0)
    kl = torch.distributions.kl_divergence(torch.distributions.Normal(mean, (0.5 * log_variance).exp()), normal)
    torch.testing.assert_close(head.penalty, 0.1 * kl.sum(1).mean())
    head.penalty.backward()
    assert head.net.encode.weight.grad.abs().sum() > 0
    head.eval()
    torch.testing.assert_close(head(x, b)[0], head.net.decode(mean))
    many = build_head(VARIATIONAL, (6,), (7,))
    z: list[Tensor] = []
    many.net.decode.register_forward_pre_hook(lambda _, args: z.append(args[0]))
    many(x[:1].expand(20000, 6), torch.zeros(20000, 7))
    mean, log_variance = many.net.encode(x[:1]).chunk(2, -1)
    torch.testing.assert_close(z[0].mean(0), mean[0], atol=0.05, rtol=0)
    torch.testing.assert_close(z[0].var(0), log_variance[0].exp(), atol=0.05, rtol=0.05)


def test_sparse_charges_or_keeps_few() -> None:
    head, a, _ = run("sparse", (6,), (7,))
    torch.testing.assert_close(head.penalty, 1e-4 * a.abs().mean())
    head, a, _ = run({"sparse": {"top_k": 2}}, (6,), (7,))
    assert head.penalty is None
    assert ((a != 0).sum(1) == 2).all()
    x = torch.randn(3, 6)
    full = head.net.linear(x)
    kept, _ = head(x, torch.zeros(3, 7))
    assert torch.equal(kept.abs().amax(1), full.abs().amax(1))
    smallest_kept = kept.abs().masked_fill(kept == 0, math.inf).amin(1)
    assert (smallest_kept >= full.abs().masked_fill(kept != 0, 0).amax(1)).all()


def test_ensemble_is_the_mean_of_different_heads() -> None:
    head, _, b = run({"ensemble": {"n": 3, "of": VARIATIONAL}}, (6,), (7,))
    nets = head.net.nets
    assert not torch.equal(nets[0].encode.weight, nets[1].encode.weight)
    torch.testing.assert_close(head.penalty, sum(net.penalty for net in nets) / 3)
    head.eval()
    x = torch.randn(3, 6)
    torch.testing.assert_close(head(x, b)[0], sum(net(x) for net in nets) / 3)


def test_a_penalty_neither_copies_nor_pickles(tmp_path: Any) -> None:
    head, _, _ = run("sparse", (6,), (7,))
    assert head.penalty is not None
    assert head.penalty.requires_grad
    assert copy.deepcopy(head).penalty is None
    assert pickle.loads(pickle.dumps(head)).penalty is None
    assert head.penalty is not None


@pytest.mark.parametrize("spec", ["sparse", VARIATIONAL, {"ensemble": {"n": 2, "of": VARIATIONAL}}], ids=str)
def test_a_penalty_is_charged_once(spec: Any) -> None:
    head, _, _ = run(spec, (6,), (7,))
    assert charge(head) is not None
    assert charge(head) is None


def test_a_head_that_was_bound_has_counted_nothing_and_learns() -> None:
    state = torch.random.get_rng_state()
    head, ours, theirs = bind_head("conv_bn_relu", (6, 4, 4), (7, 8, 8), key=0, shared={})
    assert ours == theirs == (7, 8, 8)
    assert head is not None
    assert all(module.training for module in head.modules())
    assert all(module.num_batches_tracked == 0 for module in head.modules() if isinstance(module, nn.BatchNorm2d))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_loss_without_a_teacher_takes_no_head() -> None:
    with pytest.raises(KdkitError, match="a loss that reads no teacher takes none"):
        bind_head("linear", (6,), None, key=0, shared={})


@pytest.mark.parametrize("spec", ["linear", "mlp", "conv1x1", "conv_bn_relu", "dwsep"])
def test_weight_norm_splits_length_and_direction(spec: str) -> None:
    student, teacher = ((6, 4, 4), (7, 8, 8)) if spec == "conv_bn_relu" else ((6, 4, 4), (7, 4, 4))
    torch.manual_seed(0)
    plain = build_head(spec, student, teacher)
    torch.manual_seed(0)
    normed = build_head({spec: {"weight_norm": True}}, student, teacher)
    s, t = torch.randn(2, *student), torch.randn(2, *teacher)
    torch.testing.assert_close(normed(s, t)[0], plain(s, t)[0])
    layers = [m for m in normed.modules() if hasattr(m, "parametrizations")]
    for layer in layers:
        layer.parametrizations.weight.original1.data *= 3  # the direction's length is nothing
    torch.testing.assert_close(normed(s, t)[0], plain(s, t)[0], atol=1e-5, rtol=1e-5)
    if spec == "conv_bn_relu":
        assert layers[0].parametrizations.weight.original0.numel() == 7  # one length an output channel
    with pytest.raises(KdkitError, match="needs a linear layer"):
        build_head({"identity": {"weight_norm": True}}, (6,), (6,))


@pytest.mark.parametrize("shape", [(6,), (5, 6), (6, 4, 4)])
def test_l2_gives_both_sides_length_one(shape: tuple[int, ...]) -> None:
    head = build_head({"linear": {"l2": True}}, shape, shape)
    dim = 1 if len(shape) == 3 else -1
    s, t = torch.randn(2, *shape), torch.randn(2, *shape).bfloat16() * 1e3
    a, b = head(s, t)
    torch.testing.assert_close(a.norm(dim=dim), torch.ones_like(a.norm(dim=dim)))
    torch.testing.assert_close(b.norm(dim=dim), torch.ones_like(b.norm(dim=dim)))
    assert b.dtype == torch.float32
    zero = torch.zeros(2, *shape, requires_grad=True)
    build_head({"identity": {"l2": True}}, shape, shape)(zero, t)[0].sum().backward()
    assert zero.grad.abs().max() <= 1.0  # what is divided by next to nothing has a gradient without bounds


SPARSE: dict[str, Any] = {"sparse": {"l1": 0.1, "top_k": 2}}


@pytest.mark.parametrize(
    "spec", ["mlp", "conv_bn_relu", SPARSE, {"ensemble": {"n": 2, "of": SPARSE}}, VARIATIONAL], ids=str
)
def test_heads_compile_whole(spec: Any) -> None:
    shapes = ((6, 4, 4), (7, 8, 8)) if spec == "conv_bn_relu" else ((6,), (7,))
    head, _, _ = run(spec, *shapes)
    head.eval()

    def step(s: Tensor, t: Tensor) -> Tensor:
        a, b = head(s, t)
        loss = (a - b).square().mean()
        penalty = charge(head)
        return loss if penalty is None else loss + penalty

    s, t = (torch.randn(3, *shape) for shape in shapes)
    torch.compiler.reset()
    torch.testing.assert_close(torch.compile(step, backend="aot_eager", fullgraph=True)(s, t), step(s, t))


@pytest.mark.parametrize(
    ("spec", "student", "teacher", "text"),
    [
        ("linaer", (6,), (7,), "unknown head 'linaer'; did you mean 'linear'"),
        ({"mlp": {"hiden": 3}}, (6,), (7,), "head 'mlp': unknown option 'hiden'; did you mean 'hidden'"),
        ({"mlp": {"norm": "bach"}}, (6,), (7,), "norm must be one of batch, layer, got 'bach'; did you mean 'batch'"),
        ({"mlp": {"activation": "tanh"}}, (6,), (7,), "activation must be one of relu, leaky_relu, gelu, silu"),
        ({"mlp": {"hidden": 0}}, (6,), (7,), "mlp: hidden must be a whole number of at least 1, got 0"),
        ({"mlp": 3}, (6,), (7,), "its options must be a mapping, got 3"),
        ({"mlp": {}, "linear": {}}, (6,), (7,), "head must be a name or one"),
        (3, (6,), (7,), "head must be a name or one"),
        ("identity", (6,), (7,), "both sides must have one shape, got (6,) and (7,); use the head linear"),
        ({"low_rank": {"rank": 7}}, (6,), (7,), "rank must be at most 6, got 7"),
        ("conv1x1", (6,), (7,), "both sides must be maps"),
        ({"conv_bn_relu": {"maps": "gap"}}, MAP, MAP, "with maps: gap; use linear or mlp"),
        ({"linear": {"maps": "gup"}}, MAP, MAP, "maps must be one of pool, gap, resize, got 'gup'; did you mean 'gap'"),
        ({"linear": {"l2": "yes"}}, (6,), (7,), "l2 must be true or false, got 'yes'"),
        ("linear", (5, 6), MAP, "use the head tokens_to_map or map_to_tokens, or `maps: gap`"),
        ("linear", (5, 6), (6, 6), "as many tokens, got 5 and 6"),
        ("linear", (5, 6, 7, 8), (6,), "the student's tap must give (D,), (N, D) or (C, H, W)"),
        ("tokens_to_map", MAP, MAP, "one side must be tokens"),
        ({"tokens_to_map": {"grid": [3, 9]}}, (17, 6), MAP, "grid must be [rows, columns] of at most 17 tokens"),
        ({"linear": {"grid": [2, 2]}}, (5, 6), (5, 6), "grid must go with tokens_to_map"),
        ({"sparse": {"top_k": 9}}, (6,), (7,), "top_k must be at most 7"),
        ({"sparse": {"l1": -1}}, (6,), (7,), "l1 must be a number of at least 0, got -1"),
        ({"ensemble": {"of": "conv1x1"}}, MAP, MAP, "of must be one of linear, low_rank, mlp, bottleneck, sparse"),
        ({"ensemble": {"of": {"mlp": {"norn": 1}}}}, (6,), (7,), "unknown option 'norn'; did you mean 'norm'"),
    ],
)
def test_what_is_refused(spec: Any, student: tuple[int, ...], teacher: tuple[int, ...], text: str) -> None:
    with pytest.raises(KdkitError) as caught:
        build_head(spec, student, teacher)
    assert text in str(caught.value)
    assert isinstance(caught.value, UnknownNameError) == (spec == "linaer")


def test_heads_keep_double_precision_and_run_under_autocast() -> None:
    head = build_head({"mlp": {"l2": True}}, (6,), (7,)).double()
    a, b = head(torch.randn(2, 6).double(), torch.randn(2, 7).double())
    assert a.dtype == b.dtype == torch.float64
    head = build_head({"bottleneck": {"variational": True}}, (6,), (7,))
    with torch.autocast("cpu", torch.bfloat16):
        a, _ = head(torch.randn(2, 6), torch.randn(2, 7))
    assert a.dtype == torch.bfloat16
    assert head.penalty.dtype == torch.float32
    assert isinstance(head.net, nn.Module)
