"""Optimisers whose steps are recorded move weights as the ordinary ones do."""

import pytest
import torch

from kdkit.train.optim import build_optimizer, can_be_recorded

CPU = torch.device("cpu")


@pytest.mark.parametrize("more", [{}, {"nesterov": True, "weight_decay": 0.1}])
def test_weights_that_begin_to_learn_later_than_others(more):
    """Torch's fused SGD fails where one weight has a momentum and another none."""
    spec, found = {"name": "sgd", "momentum": 0.9, **more}, []
    for recorded in (None, CPU):
        torch.manual_seed(0)
        first, later = (torch.nn.Parameter(torch.randn(5)) for _ in range(2))
        optimizer = build_optimizer(spec, [first, later], 0.1, recorded=recorded)
        for step in range(4):
            first.grad, later.grad = torch.randn(5), torch.randn(5) if step > 1 else None
            optimizer.step()
        assert can_be_recorded(optimizer) is (recorded is not None)
        found.append(torch.stack([first, later]))
    torch.testing.assert_close(*found)


def test_dampened_momentum_is_not_recorded():
    """Its first step is not that from a momentum of 0."""
    optimizer = build_optimizer({"name": "sgd", "momentum": 0.9, "dampening": 0.5}, [torch.zeros(2)], 0.1, recorded=CPU)
    assert not can_be_recorded(optimizer)
    assert isinstance(optimizer.param_groups[0]["lr"], float)


def test_a_recorded_rate_is_a_tensor_of_single_precision():
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = build_optimizer({"name": "sgd"}, [torch.zeros(2)], 0.1, recorded=CPU)
    finally:
        torch.set_default_dtype(default)
    assert optimizer.param_groups[0]["lr"].dtype == torch.float32
