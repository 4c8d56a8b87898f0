"""Every loss of kdkit: plain `nn.Module`s over plain tensors that need nothing but torch.

`loss(student, teacher)` returns one unweighted scalar, the mean over the batch, computed in at least fp32. The
teacher's side is a constant. The weight that goes with each loss is in `kdkit.registry.LOSSES` and in its recipe.

Letters in shapes: B samples of the batch, C classes or channels, D features, H × W positions of a map, N tokens,
L modules of a cascade, n samples of the training set, K negatives, T temperature of a softmax, τ temperature of a
contrast, s and t the student's and the teacher's side.
"""

from kdkit.losses.ab import ABLoss
from kdkit.losses.at import ATLoss
from kdkit.losses.cc import CCLoss
from kdkit.losses.ce import CrossEntropyLoss
from kdkit.losses.contrastive import InBatchCRDLoss, NTXentLoss
from kdkit.losses.crd import CRDLoss
from kdkit.losses.dist import DISTLoss
from kdkit.losses.dkd import DKDLoss
from kdkit.losses.dml import DMLLoss
from kdkit.losses.fsp import FSPLoss
from kdkit.losses.ft import FTLoss
from kdkit.losses.hard import HardLoss
from kdkit.losses.kd import KDLoss
from kdkit.losses.nst import NSTLoss
from kdkit.losses.pkt import PKTLoss
from kdkit.losses.pointwise import CosineLoss, HintLoss, MSELoss
from kdkit.losses.reviewkd import ReviewKDLoss
from kdkit.losses.rkd import RKDAngleLoss, RKDDistanceLoss, RKDLoss
from kdkit.losses.sid import SIDLoss
from kdkit.losses.sp import SPLoss
from kdkit.losses.vid import VIDLoss

__all__ = [
    "ABLoss",
    "ATLoss",
    "CCLoss",
    "CRDLoss",
    "CosineLoss",
    "CrossEntropyLoss",
    "DISTLoss",
    "DKDLoss",
    "DMLLoss",
    "FSPLoss",
    "FTLoss",
    "HardLoss",
    "HintLoss",
    "InBatchCRDLoss",
    "KDLoss",
    "MSELoss",
    "NSTLoss",
    "NTXentLoss",
    "PKTLoss",
    "RKDAngleLoss",
    "RKDDistanceLoss",
    "RKDLoss",
    "ReviewKDLoss",
    "SIDLoss",
    "SPLoss",
    "VIDLoss",
]
