"""Contrastive representation distillation: telling a sample's own teacher embedding from those of other samples."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from kdkit import draws
from kdkit.losses import checks
from kdkit.losses.bank import new_bank, of_all_ranks, refresh
from kdkit.losses.crd_negatives import Negatives
from kdkit.losses.crd_pairs import Pairs
from kdkit.losses.crd_side import Side
from kdkit.losses.embed import Embed
from kdkit.losses.precision import full_precision, in_one_type
from kdkit.losses.slope import with_slope
from kdkit.registry import register_loss

BANK_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    sizes = {"student_dim": 6, "teacher_dim": 10, "num_samples": 24, "embed_dim": 8, "num_negatives": 16}
    batch = {"labels": torch.tensor([0, 1, 2, 3]), "index": torch.tensor([4, 21, 2, 11])}
    batch |= {"student": torch.randn(4, 6), "teacher": torch.randn(4, 10)}
    return sizes | {"sample_labels": torch.arange(24) % 4}, batch


@register_loss(
    "crd",
    paper="Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699",
    tap="embedding",
    weight=0.8,
    weight_source="RepDistiller's crd runs (beta = 0.8, without kd)",
    zero_at_match=False,
    example=_example,
    space={"temperature": (0.02, 0.5)},
)
class CRDLoss(nn.Module):
    """A sample's own embedding told from those of K others, across student and teacher (CRD).

    Formula: with s, t the embeddings of length 1 and M^s, M^t the banks of the last ones of every training sample, the
    student's side is 1/B · Σ_b [softplus(−x_b⁺) + Σ_k softplus(x_bk)], where x_bk = s_b·M^t_k/τ − log(K·Z) for the
    negatives and x_b⁺ is the same for the positive; the teacher's side has t and M^s; the loss is their sum. This is
    −log h(+) − Σ log(1 − h(−)) with the paper's h = e^{s·t/τ}/(e^{s·t/τ} + K/n), its exponential divided by n·Z, and n
    cancels. Z, one for each side, is the mean of e^{s·t/τ} over all pairs of the first training batch, and stays. Then
    the batch's rows move: M ← unit(m·M + (1 − m)·embedding). The first value at K = 16384, τ = 0.07 is about 23.

    Args:
        student_dim: width of the student's features.
        teacher_dim: width of the teacher's features.
        num_samples: n, size of the training set, rows of each bank.
        embed_dim: d, width of the embeddings.
        num_negatives: K.
        temperature: τ above 0.
        momentum: m in [0, 1), the share of the old row in a bank.
        negatives: `sampled`: K draws for each sample, as published. `shared`: one draw of K for the batch; each sample
            leaves its own class out and scales the rest to K. `all`: K times the mean over all samples of other
            classes, which is what `sampled` is on average.
        positives: `exact`: the sample's own row. `relax`: that of a random sample of its class.
        head: `linear`, or `mlp` with a hidden layer; one on each side, both trained with the student.
        replace: whether a negative may be drawn twice.
        sample_labels: the n classes of the training set. Negatives come from other classes only; without it from all
            other samples.
        bank_dtype: `float32`, or `bfloat16`: half the memory, scores exact to 2–3e-3.
        seed: of the banks' first rows and of all draws.

    `forward(student, teacher, labels, index=index)` takes features (B, student_dim) and (B, teacher_dim), or anything
    (B, …) to be flattened to those, and `index` (B,) int64 in [0, n): which samples they are. On a CPU an index outside
    is a `ValueError`; on an accelerator the look-up itself fails, for to look would be to wait. `labels` (B,) stand in
    for `sample_labels[index]`; without `sample_labels` they say nothing about the other samples and are not used.
    The teacher's features are detached, the banks and Z are constants, and the gradient with respect to both embeddings
    is exact and written out, so that the banks may change within the call; to differentiate it again raises, and there
    is no forward-mode derivative.
    In eval mode nothing is stored, nor is ever an embedding that is not finite. Inside of `torch.utils.checkpoint` it
    would run, and move the banks, twice.

    Ranks must hold batches of one size; each then keeps the same banks. DDP must not broadcast what `ddp_ignore` names.

    Returns:
        A scalar in nats: the sum over 1 + K pairs and both sides, mean over B.

    Differs:
        RepDistiller adds 1e-7 inside its logarithms, which adds n·1e-7 to the value of each side, draws
        without replacement on the host, and leaves the row of a sample that is twice in a batch to chance. The paper's
        text has τ = 0.1, its code 0.07.

    Reference:
        Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020, arXiv 1910.10699.
    """

    ddp_ignore = (
        "student_bank",
        "teacher_bank",
        "log_z",
        "step",
        "pairs.label",
        "pairs.order",
        "pairs.start",
        "pairs.count",
    )
    """Buffers that ranks keep equal by themselves: broadcasting the banks would cost more than the loss."""

    student_bank: Tensor
    teacher_bank: Tensor
    log_z: Tensor
    step: Tensor

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        num_samples: int,
        embed_dim: int = 128,
        num_negatives: int = 16384,
        temperature: float = 0.07,
        momentum: float = 0.5,
        negatives: str = "sampled",
        positives: str = "exact",
        head: str = "linear",
        replace: bool = True,
        sample_labels: Tensor | Sequence[int] | None = None,
        bank_dtype: str = "float32",
        seed: int = 0,
    ) -> None:
        super().__init__()
        checks.count("crd", num_samples=num_samples, num_negatives=num_negatives)
        checks.positive("crd", temperature=temperature)
        checks.share("crd", momentum=momentum)
        checks.choice("crd", ("sampled", "shared", "all"), negatives=negatives)
        checks.choice("crd", ("exact", "relax"), positives=positives)
        checks.choice("crd", tuple(BANK_DTYPES), bank_dtype=bank_dtype)
        if momentum == 1:
            raise ValueError("crd: momentum must be below 1, got 1; a bank that never moves teaches nothing")
        if positives == "relax" and sample_labels is None:
            raise ValueError("crd: positives must be 'exact' without sample_labels, got 'relax'; give sample_labels")
        self.temperature, self.momentum = temperature, momentum
        self.negatives, self.positives = negatives, positives
        self.num_samples, self.labelled = num_samples, sample_labels is not None
        self.embed_student = Embed(student_dim, embed_dim, head)
        self.embed_teacher = Embed(teacher_dim, embed_dim, head)
        self.pairs = Pairs(num_samples, sample_labels, num_negatives, replace or negatives == "all", seed)
        for side in ("student", "teacher"):
            bank = new_bank(draws.key(seed, "crd bank", side), num_samples, embed_dim, BANK_DTYPES[bank_dtype])
            self.register_buffer(f"{side}_bank", bank)
        self.register_buffer("log_z", torch.full((2,), torch.nan))
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None, *, index: Tensor) -> Tensor:
        """Contrast features of both sides; see the class."""
        checks.same_batch("crd", student, teacher)
        self._check_index(index, student.shape[0])
        if not self.labelled or labels is None:
            labels = self.pairs.label[index]
        else:
            checks.class_labels("crd", labels, student.shape[0])
            _within("labels", labels, len(self.pairs.count), "give the classes that sample_labels has")
        student, teacher = in_one_type(student, teacher.detach())
        s, t = self.embed_student(student), self.embed_teacher(teacher)
        with torch.no_grad():
            of_s, of_t = self._close(s.detach(), t.detach(), labels, index)
        return with_slope(of_s[0], s, of_s[1]) + with_slope(of_t[0], t, of_t[1])

    def _close(self, s: Tensor, t: Tensor, label: Tensor, index: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Each side's value and its gradient (B, d); then, in training, the banks move."""
        positive = self.pairs.same_class(self.step, index, label) if self.positives == "relax" else index
        negatives = self._negatives(index, label)
        K = self.pairs.num_negatives
        student = Side(s, self.teacher_bank, positive, negatives, K, self.temperature)
        teacher = Side(t, self.student_bank, positive, negatives, K, self.temperature)
        log_z = self.log_z
        if self._looks_open():
            sums = torch.stack([student.log_sums(), teacher.log_sums()], 1)
            if self.training:
                (sums,) = of_all_ranks(sums)
            log_z = torch.where(log_z.isnan(), sums.logsumexp(0) - math.log(len(sums) * (1 + K)), log_z)
        shift = log_z + math.log(K)
        closed = [student.close(shift[0]), teacher.close(shift[1])]
        if self.training:
            index, s, t = of_all_ranks(index, s, t)
            self.log_z.copy_(log_z)
            refresh(self.student_bank, index, s, self.momentum)
            refresh(self.teacher_bank, index, t, self.momentum)
            self.step.add_(1)
        return closed

    def _looks_open(self) -> bool:
        """Whether Z may still have to be made: seen on a CPU; to ask an accelerator would be to wait."""
        return self.log_z.device.type != "cpu" or torch.compiler.is_compiling() or bool(self.log_z.isnan().any())

    def _negatives(self, index: Tensor, label: Tensor) -> Negatives:
        if self.negatives == "all":
            return self.pairs.all(label)
        if self.negatives == "shared":
            return self.pairs.shared(self.step, label)
        return self.pairs.sampled(self.step, index, label)

    def _check_index(self, index: Tensor, batch: int) -> None:
        checks.whole_numbers("crd", "sample", batch, "give each sample's number in the training set", index=index)
        remedy = "build the loss with num_samples of the training set that the batch comes from"
        _within("index", index, self.num_samples, remedy)


def _within(name: str, numbers: Tensor, count: int, remedy: str) -> None:
    """Looked at on a CPU alone: to ask an accelerator would be to wait."""
    if numbers.device.type != "cpu" or torch.compiler.is_compiling():
        return
    low, high = (int(end) for end in numbers.aminmax())
    if low < 0 or high >= count:
        raise ValueError(f"crd: {name} must lie in [0, {count}), got {low if low < 0 else high}; {remedy}")
