"""The small head of the contrastive losses, which is trained with them on the student's and on the teacher's side."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from kdkit.losses import checks
from kdkit.losses.geometry import unit


class Embed(nn.Module):
    """A feature vector on the unit sphere: Linear → L2, or Linear → ReLU → Linear → L2.

    Args:
        dim: width D of the features.
        embed_dim: width of the embedding.
        head: `linear` as in CRD, or `mlp` with a hidden layer of `embed_dim`.

    The weights follow the dtype of the features, so that a module cast to bf16 still computes in fp32.
    """

    def __init__(self, dim: int, embed_dim: int = 128, head: str = "linear") -> None:
        super().__init__()
        checks.count("embed", dim=dim, embed_dim=embed_dim)
        checks.choice("embed", ("linear", "mlp"), head=head)
        self.dim = dim
        self.hidden = nn.Linear(dim, embed_dim) if head == "mlp" else None
        self.linear = nn.Linear(embed_dim if head == "mlp" else dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Embed (B, D), or any (B, …) of D numbers a sample, as (B, embed_dim) with rows of length 1."""
        x = x.flatten(1)
        if x.shape[1] != self.dim:
            raise ValueError(
                f"embed: features must have {self.dim} numbers a sample, got {x.shape[1]}; "
                "read a pooled tap such as `embedding`, or build the loss with this width"
            )
        if self.hidden is not None:
            x = _linear(self.hidden, x).relu()
        return unit(_linear(self.linear, x))


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight.to(x.dtype), layer.bias.to(x.dtype))
