"""CRD's value and gradients against the published formula, written out plainly in float64."""

import copy

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from kdkit.losses import crd_negatives, crd_side
from kdkit.losses.crd import CRDLoss
from kdkit.losses.crd_negatives import Drawn

N, CLASSES, K, S, T = 60, 5, 24, 7, 9
LABELS = torch.arange(N) % CLASSES


def small(**options):
    torch.manual_seed(0)
    sizes = {"embed_dim": 8, "num_negatives": K, "sample_labels": LABELS, "seed": 3}
    return CRDLoss(S, T, N, **(sizes | options)).double()


def batch(step, size=6, dtype=torch.float64):
    g = torch.Generator().manual_seed(step)
    index = torch.randperm(N, generator=g)[:size]
    student, teacher = (torch.randn(size, d, generator=g, dtype=dtype) for d in (S, T))
    return student.requires_grad_(), teacher, index


class Published:
    """The paper as its code computes it: exponentials over Z·n, P_n = 1/n, gathered rows, autograd."""

    def __init__(self, loss):
        self.heads = copy.deepcopy(loss.embed_student), copy.deepcopy(loss.embed_teacher)
        self.banks = loss.student_bank.clone(), loss.teacher_bank.clone()
        self.Z = [None, None]

    def __call__(self, student, teacher, index, positive, negative):
        """`negative` holds the ids that each sample is contrasted with; K/len of them count as K."""
        v = self.heads[0](student), self.heads[1](teacher)
        total = 0.0
        for side, bank in ((0, self.banks[1].clone()), (1, self.banks[0].clone())):
            pos = torch.stack([(v[side][b] @ bank[positive[b]] / 0.07).exp() for b in range(len(index))])
            neg = [(bank[negative[b]] @ v[side][b] / 0.07).exp() for b in range(len(index))]
            scale = [K / len(n) for n in neg]
            if self.Z[side] is None:
                every = pos.sum() + sum(c * n.sum() for c, n in zip(scale, neg, strict=True))
                self.Z[side] = (every / (len(index) * (K + 1)) * N).detach()
            noise = K * (1 / N)
            for b in range(len(index)):
                p, q = pos[b] / self.Z[side], neg[b] / self.Z[side]
                total = total - (p / (p + noise)).log() - scale[b] * (noise / (q + noise)).log().sum()
        with torch.no_grad():
            for bank, new in zip(self.banks, v, strict=True):
                moved = 0.5 * bank[index] + 0.5 * new
                bank[index] = moved / moved.norm(dim=1, keepdim=True)
        return total / len(index)


def negatives_of(loss, index):
    """The rows that each sample of the batch will be contrasted with, one after the other."""
    label = loss.pairs.label[index]
    found = loss._negatives(index, label)
    if isinstance(found, Drawn):
        return list(found.index)
    rows = torch.arange(N) if found.rows is None else found.rows
    return [rows[loss.pairs.label[rows] != c] for c in label]


@pytest.mark.parametrize("path", ["product", "gather", "in parts"])
@pytest.mark.parametrize("positives", ["exact", "relax"])
@pytest.mark.parametrize("negatives", ["sampled", "shared", "all"])
def test_follows_the_published_formula(negatives, positives, path, monkeypatch):
    """Value, gradients of the input and of both heads, Z and banks over several steps of training."""
    if path != "product":
        monkeypatch.setattr(crd_negatives, "GATHER_BEYOND", 0)
    if path == "in parts":
        monkeypatch.setattr(crd_side, "CHUNK", 2 * N)  # two anchors at a time, scores not kept
    loss = small(negatives=negatives, positives=positives)
    oracle = Published(loss)
    parameters = [*loss.parameters()], [*oracle.heads[0].parameters(), *oracle.heads[1].parameters()]
    for step in range(4):
        student, teacher, index = batch(step)
        again = student.detach().clone().requires_grad_()
        positive = index
        if positives == "relax":
            positive = loss.pairs.same_class(loss.step, index, LABELS[index])
        chosen = negatives_of(loss, index)
        value, expected = loss(student, teacher, index=index), oracle(again, teacher, index, positive, chosen)
        grads = torch.autograd.grad(value, [student, *parameters[0]])
        wanted = torch.autograd.grad(expected, [again, *parameters[1]])
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=0)
        for got, want in zip(grads, wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)
        with torch.no_grad():
            for side, gradients in zip(parameters, (grads[1:], wanted[1:]), strict=True):
                for p, g in zip(side, gradients, strict=True):
                    p -= 0.1 * g
    torch.testing.assert_close(loss.log_z.exp() * N, torch.stack(oracle.Z), rtol=1e-12, atol=0)
    torch.testing.assert_close((loss.student_bank, loss.teacher_bank), oracle.banks, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("negatives", ["sampled", "shared", "all"])
def test_first_value(negatives):
    """2·(ln K + 1/(2·128·τ²) + 1) = 23.0 for random banks; RepDistiller's own code gives 22.7–23.0."""
    torch.manual_seed(1)
    loss = CRDLoss(64, 64, 50_000, negatives=negatives, sample_labels=torch.arange(50_000) % 100)
    value = loss(torch.randn(8, 64), torch.randn(8, 64), index=torch.arange(8) * 6_000)
    assert 22.3 < value.item() < 23.7


@pytest.mark.parametrize("replace", [True, False])
def test_value_does_not_depend_on_the_size_of_the_training_set(replace):
    """Every sample three times over: the same mean, the same value."""
    loss = small(negatives="all", replace=replace)
    torch.manual_seed(0)
    larger = CRDLoss(S, T, 3 * N, 8, K, negatives="all", replace=replace, sample_labels=LABELS.repeat(3)).double()
    larger.load_state_dict(
        loss.state_dict() | {f"{s}_bank": getattr(loss, f"{s}_bank").repeat(3, 1) for s in ("student", "teacher")}
    )
    student, teacher, index = batch(0)
    torch.testing.assert_close(loss(student, teacher, index=index), larger(student, teacher, index=index))


def test_aligned_banks_lower_it():
    loss = small()
    student, teacher, index = batch(0)
    loss(student, teacher, index=index)  # sets Z
    loss.eval()
    before = loss(student, teacher, index=index)
    with torch.no_grad():
        loss.teacher_bank[index], loss.student_bank[index] = loss.embed_student(student), loss.embed_teacher(teacher)
    assert loss(student, teacher, index=index).item() < before.item() - 5


def test_the_modes_agree_on_average():
    """`all` is the expectation of `sampled`; `shared` scatters about the same value."""
    means = {}
    for negatives in ("sampled", "shared", "all"):
        loss = small(negatives=negatives).eval()
        loss.log_z.fill_(0.4)
        student, teacher, index = batch(0)
        values = []
        for _ in range(600 if negatives != "all" else 2):
            values.append(loss(student, teacher, index=index).item())
            loss.step += 1
        means[negatives] = torch.tensor(values).double()
    expected = float(means["all"][0])
    for negatives in ("sampled", "shared"):
        v = means[negatives]
        assert float(v.std()) > 0.01
        assert abs(float(v.mean()) - expected) < 4 * float(v.std()) / len(v) ** 0.5, negatives


@pytest.mark.parametrize("negatives", ["sampled", "shared", "all"])
def test_order_of_the_batch_does_not_matter(negatives):
    loss = small(negatives=negatives)
    other = copy.deepcopy(loss)
    for step in range(3):
        student, teacher, index = batch(step)
        order = torch.randperm(len(index))
        value = loss(student, teacher, index=index)
        shuffled = other(student[order], teacher[order], index=index[order])
        torch.testing.assert_close(value, shuffled)
        torch.testing.assert_close(*(torch.autograd.grad(v, student)[0] for v in (value, shuffled)))
    torch.testing.assert_close(loss.student_bank, other.student_bank)


def test_gradient_is_exact_numerically():
    loss = small().eval()
    loss.log_z.fill_(0.4)
    student, teacher, index = batch(0)
    assert torch.autograd.gradcheck(lambda x: loss(x, teacher, index=index), student)


def test_teacher_is_a_constant_but_its_head_learns():
    loss = small()
    student, teacher, index = batch(0)
    teacher.requires_grad_()
    loss(student, teacher, index=index).backward()
    assert teacher.grad is None
    assert all(float(p.grad.norm()) > 0 for p in loss.parameters())
    assert {n.split(".")[0] for n, _ in loss.named_parameters()} == {"embed_student", "embed_teacher"}


def test_labels_stand_in_for_those_of_the_samples():
    student, teacher, index = batch(0)
    plain, told, free, free_told = small(), small(), small(sample_labels=None), small(sample_labels=None)
    value = plain(student, teacher, index=index)
    assert torch.equal(value, told(student, teacher, LABELS[index], index=index))
    assert not torch.equal(value, small()(student, teacher, (LABELS[index] + 1) % CLASSES, index=index))
    assert torch.equal(free(student, teacher, index=index), free_told(student, teacher, LABELS[index], index=index))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e3])
@pytest.mark.parametrize("temperature", [0.005, 0.07, 10.0])
def test_finite_in_fp32(temperature, scale):
    """e^(1/0.005) = e^200 overflows in fp32; nothing here computes it."""
    loss = small(temperature=temperature).float()
    for step in range(3):
        student, teacher, index = batch(step, dtype=torch.float32)
        value = loss(student * scale, teacher * scale, index=index)
        value.backward()
        assert bool(torch.stack([value.isfinite(), student.grad.isfinite().all()]).all())


def test_a_scheduled_temperature_may_be_a_tensor():
    student, teacher, index = batch(0)
    fixed, moving = small(temperature=0.1, momentum=0.25), small()
    moving.temperature, moving.momentum = torch.tensor(0.1).double(), torch.tensor(0.25).double()
    torch.testing.assert_close(
        fixed(student, teacher, index=index), moving(student, teacher, index=index), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_promoted(dtype):
    loss = small().float()
    student, teacher, index = batch(0, dtype=torch.float32)
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    exact = copy.deepcopy(loss)(student.float(), teacher.float(), index=index)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = loss(student, teacher, index=index)
    (1024 * value).backward()  # what a GradScaler does
    assert value.dtype == torch.float32
    assert torch.equal(value, exact)
    assert student.grad.dtype == dtype
    assert float(student.grad.float().norm()) > 0


def test_bank_in_bf16():
    exact = small().float()
    rough = CRDLoss(S, T, N, 8, K, sample_labels=LABELS, seed=3, bank_dtype="bfloat16")
    rough.load_state_dict(exact.state_dict())
    assert rough.student_bank.dtype == torch.bfloat16
    for step in range(4):
        student, teacher, index = batch(step, dtype=torch.float32)
        values = exact(student, teacher, index=index), rough(student, teacher, index=index)
        grads = [torch.autograd.grad(v, student)[0] for v in values]
        torch.testing.assert_close(*values, rtol=2e-2, atol=0)
        assert float(torch.cosine_similarity(*(g.flatten() for g in grads), dim=0)) > 0.999


class LargestTensor(TorchDispatchMode):
    """The most numbers that any operation has put into one tensor, views of the banks apart."""

    def __init__(self, loss):
        super().__init__()
        self.banks = {bank.untyped_storage().data_ptr() for bank in (loss.student_bank, loss.teacher_bank)}
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(t, torch.Tensor) and t.untyped_storage().data_ptr() not in self.banks:
                self.numel = max(self.numel, t.numel())
        return out


@pytest.mark.parametrize("path", ["product", "gather"])
@pytest.mark.parametrize("negatives", ["sampled", "shared", "all"])
def test_memory(negatives, path, monkeypatch):
    """Neither B·K·d numbers nor, beyond the limit, B·n are ever in one tensor."""
    B, n, d, K = 32, 5_000, 64, 500
    limit = 2 * K * d
    monkeypatch.setattr(crd_side, "CHUNK", limit)
    if path == "gather":
        monkeypatch.setattr(crd_negatives, "GATHER_BEYOND", 0)
    loss = CRDLoss(S, T, n, d, K, negatives=negatives, sample_labels=torch.arange(n) % 10)
    student, teacher = torch.randn(B, S, requires_grad=True), torch.randn(B, T)
    with LargestTensor(loss) as seen:
        loss(student, teacher, index=torch.arange(B)).backward()
    assert B * K <= seen.numel <= limit < B * n


def test_torch_generator_is_left_alone():
    loss = small()
    before = torch.get_rng_state()
    student, teacher, index = torch.ones(4, S).double(), torch.ones(4, T).double(), torch.arange(4)
    loss(student, teacher, index=index)
    assert torch.equal(before, torch.get_rng_state())


def test_a_sample_whose_shared_negatives_are_all_of_its_class_is_told_of_its_positive_alone():
    loss, (student, teacher, _) = small(negatives="shared", num_negatives=1), batch(0)
    value = loss(student, teacher, index=torch.arange(6))  # every class is among them
    assert value.isfinite()
    assert torch.autograd.grad(value, student)[0].isfinite().all()


def test_all_negatives_stand_for_any_number():
    assert small(negatives="all", replace=False, num_negatives=49).pairs.num_negatives == 49


def test_both_heads_are_the_one_that_is_named():
    loss = small(head="mlp")
    assert [head.hidden.out_features for head in (loss.embed_student, loss.embed_teacher)] == [8, 8]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"temperature": 0.0}, "crd: temperature must be"),
        ({"temperature": -1.0}, "crd: temperature must be"),
        ({"momentum": 1.0}, "crd: momentum must be below 1"),
        ({"momentum": -0.1}, "crd: momentum must lie in"),
        ({"num_negatives": 0}, "crd: num_negatives must be"),
        ({"negatives": "some"}, "crd: negatives must be 'sampled' or 'shared' or 'all', got 'some'"),
        ({"positives": "any"}, "crd: positives must be"),
        ({"positives": "relax", "sample_labels": None}, "give sample_labels"),
        ({"sample_labels": torch.zeros(N, dtype=torch.int64)}, "two classes or more"),
        ({"sample_labels": LABELS[:-1]}, "one label for each of the 60 samples"),
        ({"sample_labels": LABELS - 1}, "at least 0, got -1"),
        ({"replace": False, "num_negatives": 49}, "at most 48"),
        ({"bank_dtype": "int8"}, "crd: bank_dtype must be"),
        ({"head": "conv"}, "head must be"),
    ],
)
def test_wrong_values(options, text):
    with pytest.raises(ValueError, match=text):
        small(**options)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"index": torch.tensor([0, N])}, r"index must lie in \[0, 60\), got 60"),
        ({"index": torch.tensor([0, -1])}, r"index must lie in \[0, 60\), got -1"),
        ({"index": torch.tensor([0, 1, 2])}, "index must be int64 sample numbers of shape"),
        ({"index": torch.tensor([0.0, 1.0])}, "index must be int64 sample numbers of shape"),
        ({"index": [0, 1]}, "index must be int64 sample numbers of shape .* got list"),
        ({"labels": torch.tensor([0])}, "labels must be int64"),
        ({"labels": [0, 1]}, "labels must be int64 class numbers of shape .* got list"),
        ({"labels": torch.tensor([0, -1])}, r"labels must lie in \[0, 5\), got -1; give the classes"),
        ({"labels": torch.tensor([0, 5])}, r"labels must lie in \[0, 5\), got 5; give the classes"),
        ({"student": torch.randn(0, S), "teacher": torch.randn(0, T)}, "batch must hold at least 1 sample, got 0"),
        ({"teacher": torch.randn(2)}, r"teacher must be \(B, …\), got shape \(2,\)"),
        ({"teacher": torch.randn(3, T)}, "hold teacher's 3 samples"),
        ({"student": torch.randn(2, S + 1)}, "7 numbers"),
    ],
)
def test_wrong_batches(change, text):
    good = {"student": torch.randn(2, S), "teacher": torch.randn(2, T), "index": torch.tensor([0, 1])}
    loss = small()
    bank = loss.student_bank.clone()
    with pytest.raises(ValueError, match=text):
        loss(**(good | change))
    assert torch.equal(bank, loss.student_bank)
