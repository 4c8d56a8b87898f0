"""Factor transfer: the teacher's maps in other words, fewer of them, and the student's put into the same words."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.geometry import equal_size, unit, unit_of_powers
from kdkit.losses.precision import convolved, full_precision, in_its_own_type
from kdkit.registry import register_loss

SLOPE = 0.1  # of the leaky ReLUs


def _example() -> tuple[dict[str, Any], dict[str, Any]]:
    batch = {"student": torch.randn(4, 3, 4, 4), "teacher": torch.randn(4, 6, 4, 4)}
    return {"student_dim": 3, "teacher_dim": 6}, batch


@register_loss(
    "ft",
    paper="Kim, Park, Kwak, NeurIPS 2018, arXiv 1802.04977",
    tap="stage-1",
    weight=1.0,
    weight_source="the authors' code, whose 500 is `beta`",
    zero_at_match=False,
    example=_example,
)
class FTLoss(nn.Module):
    """The teacher's maps paraphrased in fewer channels, the student's translated (factor transfer).

    Formula: β · mean |F_s/‖F_s‖₂ − F_t/‖F_t‖₂| over samples and numbers, where the translator makes the factor F_s
    (k, H, W) of the student's maps and the paraphraser's encoder F_t of the teacher's. While the paraphraser learns,
    the mean of |D(F_t) − t| is added, by which alone it learns to give the maps t back through its decoder D; once its
    weights are frozen, nothing is. Each of the three is three 3 × 3 convolutions with a leaky ReLU of slope 0.1 behind.

    Args:
        student_dim: channels of the student's maps.
        teacher_dim: channels C of the teacher's.
        rate: the paraphrase rate: factors have k = rate · C channels.
        beta: β, so that the edge's weight need not scale what the paraphraser learns from.
        compare: `factors`, or `attention`: their maps of mean squares over the channels, (H, W), in their place.
        norm: `none`; `translator`: BatchNorm before its leaky ReLUs; `batch`: before those of all three.

    `forward(student, teacher)` takes maps (B, student_dim, H, W) and (B, teacher_dim, H, W). Of unequal sizes the
    larger factor is brought to the smaller by adaptive average pooling. The teacher's are detached. `paraphraser` and
    `translator` are the modules: in a loop of one's own the first learns before the student, from
    `F.l1_loss(loss.paraphraser(t), t)`, and is then frozen by `.eval().requires_grad_(False)`.

    Returns:
        A scalar; the distance has no unit and is at most 2·β/√(k·H·W), for attention maps 2·β/√(H·W).

    Differs:
        The authors let the paraphraser learn alone at first, for a few epochs, and then freeze it: in a recipe a stage
        with `train: [ft.paraphraser]` and one with `train: [student, ft.translator]`. Without these all learn at once.
        The distance is the authors' code's: the paper's is the sum over a factor's numbers, k·H·W times as much.
        RepDistiller compares attention maps, to which a factor and its negative are one, gives the translator
        BatchNorm, and lets the paraphraser learn by mean squares: `compare: attention, norm: translator, beta: 200`.

    Reference:
        Kim, Park, Kwak. Paraphrasing Complex Network: Network Compression via Factor Transfer. NeurIPS 2018,
        arXiv 1802.04977.
    """

    fixed = ("rate",)

    def __init__(
        self,
        student_dim: int,
        teacher_dim: int,
        rate: float = 0.5,
        beta: float = 500.0,
        compare: str = "factors",
        norm: str = "none",
    ) -> None:
        super().__init__()
        checks.count("ft", student_dim=student_dim, teacher_dim=teacher_dim)
        checks.positive("ft", rate=rate, beta=beta)
        checks.choice("ft", ("factors", "attention"), compare=compare)
        checks.choice("ft", ("none", "translator", "batch"), norm=norm)
        self.beta: float | Tensor = beta
        self.rate, self.compare, self.norm = rate, compare, norm
        k = max(1, round(rate * teacher_dim))
        self.paraphraser = Paraphraser(teacher_dim, k, norm=norm == "batch")
        self.translator = Layers((student_dim, student_dim, k, k), norm=norm != "none")

    @full_precision
    def forward(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Compare maps (B, C, H, W); see the class."""
        checks.dims("ft", "(B, C, H, W)", student=student, teacher=teacher)
        checks.same_batch("ft", student, teacher)
        dims = self.translator.inputs, self.paraphraser.encoder.inputs
        checks.channels("ft", student=(student, dims[0]), teacher=(teacher, dims[1]))
        teacher = teacher.detach()
        factor = self.paraphraser.encoder(teacher)
        ours, theirs = map(self._direction, equal_size(self.translator(student), factor.detach()))
        distance: Tensor = self.beta * (ours - theirs).abs().mean()
        if not self.paraphraser.learns:
            return distance
        restored: Tensor = self.paraphraser.decoder(factor)
        return distance + (restored - teacher).abs().mean()

    def _direction(self, factor: Tensor) -> Tensor:
        """(B, k, H, W) → (B, N), each row of length 1."""
        if self.compare == "factors":
            return unit(factor.flatten(1))
        return unit_of_powers(factor.square().mean(1).flatten(1))


class Layers(nn.Module):
    """3 × 3 convolutions of step 1 with a leaky ReLU behind each.

    Args:
        widths: channels before, between and behind them.
        transposed: whether they are transposed ones.
        norm: whether BatchNorm stands before each leaky ReLU.
    """

    def __init__(self, widths: tuple[int, ...], *, transposed: bool = False, norm: bool = False) -> None:
        super().__init__()
        kind = nn.ConvTranspose2d if transposed else nn.Conv2d
        self.inputs = widths[0]
        self.convs = nn.ModuleList(kind(a, b, 3, padding=1) for a, b in pairwise(widths))
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) if norm else nn.Identity() for b in widths[1:])

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) → (B, k, H, W)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = F.leaky_relu(in_its_own_type(norm, convolved(conv, x)), SLOPE)  # type: ignore[arg-type]
        return x


class Paraphraser(nn.Module):
    """Maps of `channels` as factors of k channels, and back.

    Attributes:
        encoder: (B, channels, H, W) → (B, k, H, W).
        decoder: the way back.
    """

    def __init__(self, channels: int, k: int, *, norm: bool) -> None:
        super().__init__()
        self.encoder = Layers((channels, channels, k, k), norm=norm)
        self.decoder = Layers((k, k, channels, channels), transposed=True, norm=norm)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, H, W) in other words and back."""
        restored: Tensor = self.decoder(self.encoder(x))
        return restored

    @property
    def learns(self) -> bool:
        """Whether any of its weights may move."""
        return any(p.requires_grad for p in self.parameters())
