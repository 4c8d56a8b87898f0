"""Relational knowledge distillation: the same distances and angles between the samples of a batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.geometry import centred_gram, squared_distances
from kdkit.losses.precision import full_precision
from kdkit.losses.slope import with_slope
from kdkit.registry import register_loss

LEAST = 3
"""Samples with a relation to teach: the one distance between two is always 1 in units of its mean, their angles 0."""

CHUNK, LARGE_CHUNK = 2**18, 2**24
"""Most angles held at once: what stays in a core's cache; on a GPU, and compiled, what keeps it busy."""


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    return {}, {"student": torch.randn(8, 4), "teacher": torch.randn(8, 6)}


_PAPER = "Park, Kim, Lu, Cho, CVPR 2019, arXiv 1904.05068"


@register_loss(
    "rkd",
    paper=_PAPER,
    tap="embedding",
    weight=1.0,
    weight_source="RepDistiller; its 25 and 50 are inside the loss",
    zero_at_match=True,
    example=_example,
    space={"distance_weight": (2.5, 250.0), "angle_weight": (5.0, 500.0)},
)
class RKDLoss(nn.Module):
    """Equal distances and angles between the samples of a batch (relational knowledge distillation).

    Formula: distance_weight · RKD-D + angle_weight · RKD-A; see `RKDDistanceLoss` and `RKDAngleLoss`.

    Args:
        distance_weight: weight of the distances, 25 in RepDistiller; 0 leaves them out and saves their work.
        angle_weight: weight of the angles, 50 in RepDistiller; 0 leaves them out. They cost B³; for large batches the
            first author advises distances alone.

    `forward(student, teacher)` takes features (B, D), or anything (B, …) to be flattened, of any two widths. The
    teacher's are detached. The gradient of the angles is written out: to differentiate it again raises, and there is
    no forward-mode derivative.

    Returns:
        A scalar without unit.

    Differs:
        Everything comes from one Gram matrix of centred features, where known code builds all B × B × D differences.
        The paper weighs 1 to 2 for metric learning; some ports keep that for classification.

    Reference:
        Park, Kim, Lu, Cho. Relational Knowledge Distillation. CVPR 2019, arXiv 1904.05068.
    """

    min_batch = LEAST

    def __init__(self, distance_weight: float = 25.0, angle_weight: float = 50.0) -> None:
        super().__init__()
        checks.not_negative("rkd", distance_weight=distance_weight, angle_weight=angle_weight)
        if distance_weight == 0 and angle_weight == 0:
            raise ValueError("rkd: distance_weight must be above 0 where angle_weight is 0, got 0; leave the loss out")
        self.distance_weight = distance_weight
        self.angle_weight = angle_weight

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the relations among features (B, D) of any two widths."""
        square_s, square_t = _both_squares("rkd", student, teacher)
        loss = square_s.new_zeros(())
        if not _is_off(self.distance_weight):
            loss = loss + self.distance_weight * _distance_loss(square_s, square_t)
        if not _is_off(self.angle_weight):
            loss = loss + self.angle_weight * _angle_loss(square_s, square_t)
        return loss


@register_loss(
    "rkd_distance",
    paper=_PAPER,
    tap="embedding",
    weight=25.0,
    weight_source="RepDistiller",
    zero_at_match=True,
    example=_example,
)
class RKDDistanceLoss(nn.Module):
    """Equal distances between the samples of a batch, in units of their mean (RKD-D).

    Formula: mean over all B² pairs of huber(d^s_ij/μ_s − d^t_ij/μ_t), where d_ij = ‖f_i − f_j‖₂ and μ is the mean of
    the positive distances; huber(x) = x²/2 up to |x| = 1, |x| − ½ beyond.

    `forward(student, teacher)` takes features (B, D), or anything (B, …) to be flattened, of any two widths. The
    teacher's are detached.

    Returns:
        A scalar without unit; scaling the features of either side changes nothing.

    Differs:
        Known code counts a pair of identical samples as 1e-6 apart; here it is 0 apart and has no gradient.

    Reference:
        Park, Kim, Lu, Cho. Relational Knowledge Distillation. CVPR 2019, arXiv 1904.05068.
    """

    min_batch = LEAST

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the distances among features (B, D) of any two widths."""
        return _distance_loss(*_both_squares("rkd_distance", student, teacher))


@register_loss(
    "rkd_angle",
    paper=_PAPER,
    tap="embedding",
    weight=50.0,
    weight_source="RepDistiller",
    zero_at_match=True,
    example=_example,
)
class RKDAngleLoss(nn.Module):
    """Equal angles in all triangles of samples of a batch (RKD-A).

    Formula: mean over all B³ triplets of huber(cos∠^s_jik − cos∠^t_jik), the angle at sample i between samples j and k;
    0 where j or k coincides with i. huber as in `RKDDistanceLoss`.

    `forward(student, teacher)` takes features (B, D), or anything (B, …) to be flattened, of any two widths. The
    teacher's are detached. Time is B³, memory is bounded: more than `CHUNK` triplets go piece by piece. The gradient is
    exact and written out: to differentiate it again raises, and there is no forward-mode derivative.

    Returns:
        A scalar without unit; rotating, shifting or scaling the features of either side changes nothing.

    Differs:
        The cosine comes from the three squared distances (law of cosines), with no B × B × D tensor and no arccos.

    Reference:
        Park, Kim, Lu, Cho. Relational Knowledge Distillation. CVPR 2019, arXiv 1904.05068.
    """

    min_batch = LEAST

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare the angles among features (B, D) of any two widths."""
        return _angle_loss(*_both_squares("rkd_angle", student, teacher))


def _is_off(weight: float | Tensor) -> bool:
    return not isinstance(weight, Tensor) and weight == 0


def _both_squares(loss: str, student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Squared distances (B, B) among the student's samples and among the teacher's."""
    checks.same_batch(loss, student, teacher)
    checks.several(loss, student, LEAST)
    student, teacher = student.flatten(1), teacher.detach().flatten(1)
    return squared_distances(centred_gram(student)), squared_distances(centred_gram(teacher))


def _distance_loss(square_s: Tensor, square_t: Tensor) -> Tensor:
    return F.smooth_l1_loss(_relative(square_s), _relative(square_t))


def _relative(square: Tensor) -> Tensor:
    """Squared distances → distances in units of their mean, (B, B) → (B, B)."""
    apart = square != 0  # NaN is
    distances = torch.where(apart, torch.where(apart, square, 1.0).sqrt(), 0.0)
    mean = distances.sum() / apart.sum().clamp_min(1)
    return distances / torch.where(mean > 0, mean, 1.0)


def _angle_loss(square_s: Tensor, square_t: Tensor) -> Tensor:
    """The gradient is written out, for autograd would keep half a dozen tensors of B³ numbers."""
    wider = torch.promote_types(square_s.dtype, square_t.dtype)
    square_s, square_t = square_s.to(wider), square_t.to(wider)
    with torch.no_grad():
        value, slope = _angles(square_s, square_t)
    return with_slope(value, square_s, slope)


def _angles(square_s: Tensor, square_t: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over all angles, and its derivative by each of the student's squared distances: (B, B)."""
    batch, inverse_s, inverse_t = len(square_s), _inverse(square_s), _inverse(square_t)
    eager = square_s.device.type == "cpu" and not torch.compiler.is_compiling()
    rows = max(1, (CHUNK if eager else LARGE_CHUNK) // batch**2)
    total, slope = square_s.new_zeros(()), torch.zeros_like(square_s)
    for start in range(0, batch, rows):
        part = slice(start, start + rows)
        scale_s, scale_t = _scales(inverse_s[part]), _scales(inverse_t[part])
        cosines = _law_of_cosines(square_s, part).mul_(scale_s)
        difference = cosines - _law_of_cosines(square_t, part).mul_(scale_t)
        pull = difference.clamp(-1, 1)  # of huber; huber itself is pull·(difference − pull/2)
        each = pull.flatten()
        total += each.dot(difference.flatten()) - each.dot(each) / 2
        by_square = scale_s.mul_(pull)  # symmetric in j and k, as all of this is: a sum over one of them counts twice
        slope -= by_square.sum(0)
        # 1/d_ij and 1/d_ik are in the cosine as factors: ∂(1/d)/∂d² = −1/(2·d³)
        slope[part] += 2 * by_square.sum(2) - pull.mul_(cosines).sum(2) * inverse_s[part].square()
    return total / batch**3, slope / batch**3


def _inverse(square: Tensor) -> Tensor:
    """1/d_ij, and 0 where two samples coincide, or its square would overflow."""
    near = square <= torch.finfo(square.dtype).tiny
    return torch.where(near, 0.0, torch.where(near, 1.0, square).rsqrt())


def _law_of_cosines(square: Tensor, part: slice) -> Tensor:
    """d_ij² + d_ik² − d_jk² = 2·d_ij·d_ik·cos∠_jik for i in `part`: (rows, B, B)."""
    near = square[part]
    return (near[:, :, None] + near[:, None, :]).sub_(square)


def _scales(inverse: Tensor) -> Tensor:
    """1 / (2·d_ij·d_ik): (rows, B) → (rows, B, B)."""
    return (inverse / 2)[:, :, None] * inverse[:, None, :]
