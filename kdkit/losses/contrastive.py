"""Contrast within the batch: a sample's two embeddings belong together, those of other samples do not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.embed import Embed
from kdkit.losses.geometry import unit
from kdkit.losses.precision import full_precision, in_one_type
from kdkit.registry import register_loss


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    dims = {"student_dim": 4, "teacher_dim": 6, "embed_dim": 5}
    return dims, {"student": torch.randn(8, 4), "teacher": torch.randn(8, 6)}


def _labelled_example() -> tuple[dict[str, Any], dict[str, Any]]:
    options, tensors = _example()
    return options | {"mask_same_class": True}, tensors | {"labels": torch.randint(3, (8,))}


@register_loss(
    "crd_inbatch",
    paper="Tian, Krishnan, Isola, ICLR 2020, arXiv 1910.10699; van den Oord, Li, Vinyals, arXiv 1807.03748",
    tap="embedding",
    weight=0.8,
    weight_source="that of crd; none is published for this form",
    zero_at_match=False,
    example=_labelled_example,
    space={"temperature": (0.02, 0.5)},
)
class InBatchCRDLoss(nn.Module):
    """Symmetric InfoNCE between student and teacher embeddings of one batch, CRD without memory banks.

    Formula: ½·[CE(S·Tᵀ/τ, i ↦ i) + CE(T·Sᵀ/τ, i ↦ i)], mean over B, with S = g_s(s) and T = g_t(t) on the unit sphere.

    Args:
        student_dim: width of the student's features; the graph fills it in.
        teacher_dim: width of the teacher's features; the graph fills it in.
        embed_dim: width of both embeddings.
        temperature: τ above 0.
        head: `linear` (Linear → L2, as in CRD) or `mlp` (Linear → ReLU → Linear → L2).
        mask_same_class: leave other samples of one's own class out of the negatives, as CRD's sampling does; needs
            `labels`.

    `forward(student, teacher, labels)` takes features (B, …) of `student_dim` and `teacher_dim` numbers a sample and,
    where wanted, class numbers (B,). The teacher's features are detached; both heads are trained.

    Returns:
        A scalar in nats; ln B where all embeddings coincide, on both sides.

    Differs:
        This is a softmax over the batch. CRD itself (`crd`) is a sum of logistic losses against thousands of stored
        negatives; their values and weights do not compare.

    Reference:
        Tian, Krishnan, Isola. Contrastive Representation Distillation. ICLR 2020, arXiv 1910.10699.
        van den Oord, Li, Vinyals. Representation Learning with Contrastive Predictive Coding. 2018, arXiv 1807.03748.
    """

    min_batch = 2

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        embed_dim: int = 128,
        temperature: float = 0.07,
        head: str = "linear",
        mask_same_class: bool = False,
    ) -> None:
        super().__init__()
        checks.positive("crd_inbatch", temperature=temperature)
        self.embed_student = Embed(student_dim, embed_dim, head)
        self.embed_teacher = Embed(teacher_dim, embed_dim, head)
        self.temperature = temperature
        self.mask_same_class = mask_same_class

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor | None = None) -> Tensor:
        """Contrast features (B, …) of the two sides."""
        checks.same_batch("crd_inbatch", student, teacher)
        checks.several("crd_inbatch", student, self.min_batch)
        student, teacher = in_one_type(student, teacher.detach())
        similarity = self.embed_student(student) @ self.embed_teacher(teacher).T  # (B, B)
        logits = similarity / self.temperature
        own = torch.arange(len(logits), device=logits.device)
        if self.mask_same_class:
            if labels is None:
                raise ValueError("crd_inbatch: labels must be given with mask_same_class, got None; pass them")
            checks.class_labels("crd_inbatch", labels, len(logits))
            same = (labels == labels[:, None]) & (labels >= 0) & (own != own[:, None])
            logits = logits.masked_fill(same, -torch.inf)
        return (F.cross_entropy(logits, own) + F.cross_entropy(logits.T, own)) / 2


@register_loss(
    "nt_xent",
    paper="Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv 2002.05709",
    tap="embedding",
    weight=1.0,
    weight_source="none is published for distillation; 1 is a start",
    zero_at_match=False,
    example=_example,
    space={"temperature": (0.02, 0.5)},
)
class NTXentLoss(nn.Module):
    """SimCLR's loss over 2B views, where a sample's two views are its student and its teacher embedding.

    Formula: Z = [S; T] on the unit sphere (2B rows), the mean over all rows i of
    −log(e^{z_i·z_p(i)/τ} / Σ_{k≠i} e^{z_i·z_k/τ}), where p(i) is the other view of the sample of i.

    Args:
        student_dim: width of the student's features; the graph fills it in. Without both widths there are no heads and
            the features themselves, of equal width, are compared.
        teacher_dim: width of the teacher's features; the graph fills it in.
        embed_dim: width of both embeddings.
        temperature: τ above 0; SimCLR uses 0.1 to 0.5.
        head: `linear` (Linear → L2) or `mlp` (Linear → ReLU → Linear → L2), SimCLR's own.

    `forward(student, teacher)` takes features (B, …). The teacher's are detached; both heads are trained.

    Returns:
        A scalar in nats; ln(2B − 1) where all embeddings coincide.

    Differs:
        Beside the other side's samples, those of one's own side are negatives too; `crd_inbatch` has only the former.

    Reference:
        Chen, Kornblith, Norouzi, Hinton. A Simple Framework for Contrastive Learning of Visual Representations.
        ICML 2020, arXiv 2002.05709.
    """

    min_batch = 2

    def __init__(
        self,
        student_dim: int | None = None,
        teacher_dim: int | None = None,
        embed_dim: int = 128,
        temperature: float = 0.1,
        head: str = "linear",
    ) -> None:
        super().__init__()
        checks.positive("nt_xent", temperature=temperature)
        if (student_dim is None) != (teacher_dim is None):
            raise ValueError(
                "nt_xent: student_dim and teacher_dim must come together, "
                f"got {student_dim} and {teacher_dim}; give both, or neither for features of equal width"
            )
        self.embed_student = None if student_dim is None else Embed(student_dim, embed_dim, head)
        self.embed_teacher = None if teacher_dim is None else Embed(teacher_dim, embed_dim, head)
        self.temperature = temperature

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Contrast features (B, …) of the two sides."""
        checks.same_batch("nt_xent", student, teacher)
        checks.several("nt_xent", student, self.min_batch)
        teacher = teacher.detach()
        if self.embed_student is None or self.embed_teacher is None:
            checks.same_shape("nt_xent", student, teacher, remedy="give student_dim and teacher_dim for heads")
            views = unit(torch.cat([student.flatten(1), teacher.flatten(1)]))
        else:
            views = torch.cat([self.embed_student(student), self.embed_teacher(teacher)])
        own = torch.arange(len(views), device=views.device)
        logits = (views @ views.T / self.temperature).masked_fill(own == own[:, None], -torch.inf)  # (2B, 2B)
        return F.cross_entropy(logits, own.roll(len(student)))
