"""The head that a refusal names is one with which the loss runs."""

import itertools
import re

import pytest
import torch

from kdkit.losses import ATLoss, CosineLoss, HintLoss, MSELoss, NSTLoss
from kdkit.models.heads import build_head

VECTOR, TOKENS, MORE_TOKENS, MAP, LARGER_MAP = (6,), (5, 7), (17, 8), (9, 4, 4), (10, 16, 16)
FORMS = [VECTOR, TOKENS, MORE_TOKENS, MAP, LARGER_MAP]
COMPARED = [(cls, *pair) for cls in (MSELoss, CosineLoss, HintLoss) for pair in itertools.permutations(FORMS, 2)]
MAPS = [(cls, *pair) for cls in (ATLoss, NSTLoss) for pair in itertools.permutations([MORE_TOKENS, MAP, LARGER_MAP], 2)]


@pytest.mark.parametrize(("cls", "student", "teacher"), COMPARED + [row for row in MAPS if MORE_TOKENS in row])
def test_the_advised_head_fits(cls, student, teacher):
    s, t = torch.randn(3, *student, requires_grad=True), torch.randn(3, *teacher)
    with pytest.raises(ValueError, match=r"head: \w+") as told:
        cls()(s, t)
    advised = re.search(r"head: (\w+)", str(told.value))[1]
    loss = cls()(*build_head(advised, student, teacher)(s, t))
    loss.backward()
    assert loss.isfinite()
    assert s.grad.abs().sum() > 0


def test_the_hint_of_a_larger_map_keeps_its_own_head():
    with pytest.raises(ValueError, match=r"mse: .*the head `identity` pools the larger maps"):
        MSELoss()(torch.randn(2, *MAP), torch.randn(2, 9, 8, 8))
    with pytest.raises(ValueError, match=r"hint: .*\(head: conv_bn_relu\)"):
        HintLoss()(torch.randn(2, *MAP), torch.randn(2, 9, 8, 8))


def test_tokens_of_one_number_need_no_map():
    with pytest.raises(ValueError, match=r"\(head: linear\)"):
        CosineLoss()(torch.randn(2, 5, 6), torch.randn(2, 5, 7))
