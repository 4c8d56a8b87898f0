"""The same numbers, sample by sample: squared error, direction, and FitNets' hint."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.geometry import unit
from kdkit.losses.precision import full_precision, in_one_type
from kdkit.registry import register_loss


def _vectors() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 6), "teacher": torch.randn(8, 6)}


def _maps() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(4, 3, 5, 5), "teacher": torch.randn(4, 3, 5, 5)}


@register_loss(
    "mse",
    paper="Ba, Caruana, NIPS 2014, arXiv 1312.6184",
    tap="logits",
    weight=1.0,
    weight_source="none is published for the mean over all entries; 1 is a start",
    zero_at_match=True,
    example=_vectors,
)
class MSELoss(nn.Module):
    """Mean squared error between two tensors of one shape; on logits, Ba and Caruana's logit matching.

    Formula: mean over all entries of (s − t)².

    `forward(student, teacher)` takes two tensors (B, …) of one shape; the teacher's is detached.

    Returns:
        A scalar in squared units of the tap.

    Differs:
        Ba and Caruana take ½ of the squared norm, summed over the classes: C/2 times this.

    Reference:
        Ba, Caruana. Do Deep Nets Really Need to be Deep? NIPS 2014, arXiv 1312.6184.
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare two tensors (B, …) of one shape."""
        checks.same_shape("mse", student, teacher)
        return F.mse_loss(*in_one_type(student, teacher.detach()))  # torch 2.11 mixes no types backward


@register_loss(
    "cosine",
    paper="Chen, Wang, Liu, Xu, de Hoog, Huang, NeurIPS 2022, arXiv 2210.15274",
    tap="embedding",
    weight=1.0,
    weight_source="none is published for this form alone; 1 is a start",
    zero_at_match=True,
    example=_vectors,
)
class CosineLoss(nn.Module):
    """Equal directions of the features, whatever their lengths.

    Formula: mean of 1 − cos(s, t) over samples, and over positions or tokens where there are any.

    `forward(student, teacher)` takes (B, D), tokens (B, N, D) or maps (B, C, H, W) of one shape: the angle is taken
    over D or over C. The teacher's side is detached. A zero vector counts as orthogonal to all.

    Returns:
        A scalar in [0, 2].

    Differs:
        The paper averages the projections of several heads first; that is the head `ensemble` on the edge.

    Reference:
        Chen, Wang, Liu, Xu, de Hoog, Huang. Improved Feature Distillation via Projector Ensemble. NeurIPS 2022,
        arXiv 2210.15274.
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the directions of two tensors of one shape."""
        checks.same_shape("cosine", student, teacher)
        if student.ndim not in (2, 3, 4):
            raise ValueError(
                f"cosine: student and teacher must be (B, D), (B, N, D) or (B, C, H, W), got shape "
                f"{tuple(student.shape)}; flatten what lies between, so that it is known which axis holds the features"
            )
        dim = 1 if student.ndim == 4 else -1
        return 1 - (unit(student, dim) * unit(teacher.detach(), dim)).sum(dim).mean()


@register_loss(
    "hint",
    paper="Romero, Ballas, Kahou, Chassang, Gatta, Bengio, ICLR 2015, arXiv 1412.6550",
    tap="stage2",
    weight=100.0,
    weight_source="RepDistiller, with its head of conv + BN + ReLU",
    zero_at_match=True,
    example=_maps,
    head="conv_bn_relu",
)
class HintLoss(nn.Module):
    """The teacher's map from inside the network as a target (FitNets' hint).

    Formula: mean over all entries of (r(s) − t)², where r is the head on the student's side of the edge.

    `forward(student, teacher)` takes two tensors (B, …) of one shape, the student's behind its head. The teacher's is
    detached.

    Returns:
        A scalar in squared units of the tap.

    Differs:
        The paper halves the squared norm, has a bare convolution as head and trains with it first, in a stage of its
        own. The weight of 100 and the head conv + BN + ReLU belong to RepDistiller's single stage.

    Reference:
        Romero, Ballas, Kahou, Chassang, Gatta, Bengio. FitNets: Hints for Thin Deep Nets. ICLR 2015, arXiv 1412.6550.
    """

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the student's tensor behind its head with the teacher's."""
        checks.same_shape("hint", student, teacher, head="conv_bn_relu")
        return F.mse_loss(*in_one_type(student, teacher.detach()))  # torch 2.11 mixes no types backward
