"""Random runs of a `Distiller` against a loop by hand."""

import pytest
import torch

from tests.train.by_hand import by_hand, by_kdkit, drawn

SEEDS = range(24)


def differing(words):
    """Models of which a parameter or a running statistic is not the same after training.

    Weights of losses are float32, and 0.7 is not 0.7 there.
    """
    models, heads = by_kdkit(words)
    wanted = by_hand(words, heads)
    assert models.keys() == wanted.keys()
    found = set()
    for name, model in models.items():
        states = zip(model.state_dict().values(), wanted[name].state_dict().values(), strict=True)
        if not all(torch.allclose(is_, should, rtol=1e-5, atol=1e-6) for is_, should in states):
            found.add(name)
    return found


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_run_is_the_loop_by_hand(seed):
    assert not differing(drawn(seed))
