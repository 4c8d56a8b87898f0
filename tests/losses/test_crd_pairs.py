"""CRD's draws of positives and negatives."""

import pytest
import torch

from kdkit.losses.crd_pairs import Pairs

N, CLASSES = 500, 7
LABELS = (torch.arange(N) ** 2 + 3) % CLASSES  # classes of unequal sizes
STEP = torch.tensor(4)


def pairs(labels=LABELS, K=300, replace=True, seed=1):
    return Pairs(N, labels, K, replace, seed)


def drawn(p, step=STEP, index=None):
    index = torch.arange(N) if index is None else index
    return p.sampled(step, index, p.label[index]).index


def chi_square(counts):
    expected = counts.sum() / counts.numel()
    return float(((counts - expected) ** 2 / expected).sum() / (counts.numel() - 1))


@pytest.mark.parametrize("replace", [True, False])
def test_negatives_are_of_other_classes(replace):
    index = drawn(pairs(replace=replace))
    assert index.shape == (N, 300)
    assert not bool((LABELS[index] == LABELS[:, None]).any())


@pytest.mark.parametrize("replace", [True, False])
def test_without_labels_only_the_sample_itself_is_left_out(replace):
    index = drawn(pairs(labels=None, replace=replace))
    assert not bool((index == torch.arange(N)[:, None]).any())
    assert bool((LABELS[index] == LABELS[:, None]).any())
    assert index.unique().numel() == N


@pytest.mark.parametrize("replace", [True, False])
def test_negatives_are_uniform_over_the_other_classes(replace):
    p, index = pairs(K=100, replace=replace), torch.full((1,), 11)
    rows = torch.cat([drawn(p, torch.tensor(step), index).flatten() for step in range(400)])
    others = (LABELS[11] != LABELS).nonzero().flatten()
    counts = torch.bincount(rows, minlength=N)[others].double()
    assert int(counts.sum()) == rows.numel()
    spread = 1.0 if replace else 1 - 100 / len(others)  # drawn without replacement, counts scatter less
    assert chi_square(counts) == pytest.approx(spread, abs=5 * (2 / len(others)) ** 0.5)


def test_no_negative_twice_without_replacement():
    index = drawn(pairs(replace=False))
    assert all(row.unique().numel() == 300 for row in index)
    pool = N - int(LABELS.bincount().max())
    everything = drawn(pairs(K=pool, replace=False))
    largest = (LABELS.bincount().argmax() == LABELS).nonzero()[0, 0]
    assert torch.equal(everything[largest].sort().values, (LABELS[largest] != LABELS).nonzero().flatten())
    assert drawn(pairs())[0].unique().numel() < 300


def test_draws_follow_from_seed_step_and_sample():
    index = torch.tensor([5, 9, 2])
    assert torch.equal(drawn(pairs(), index=index), drawn(pairs(), index=index.flip(0)).flip(0))
    assert torch.equal(drawn(pairs(), index=index)[1:2], drawn(pairs(), index=index[1:2]))
    first = drawn(pairs())
    for other in (drawn(pairs(seed=2)), drawn(pairs(), torch.tensor(5)), drawn(pairs()).roll(1, 0)):
        assert float((first == other).double().mean()) < 0.01


def test_known_draws():
    """The same on every platform and in every release: a run can be repeated."""
    found = drawn(pairs(K=5), index=torch.tensor([0, 499]))
    assert found.tolist() == [[426, 66, 450, 157, 298], [78, 116, 400, 307, 423]]


@pytest.mark.parametrize("replace", [True, False])
def test_shared_rows_leave_out_the_own_class(replace):
    p = pairs(replace=replace)
    label = LABELS[torch.tensor([0, 1, 2, 3])]
    found = p.shared(STEP, label)
    assert found.rows.shape == (300,)
    assert (found.rows.unique().numel() == 300) == (not replace)
    scores = found.scores(torch.ones(4, 3), found.block(torch.ones(N, 3)), slice(0, 4))
    assert torch.equal(scores.isinf(), label[:, None] == LABELS[found.rows])
    assert torch.equal(found.kept, scores.isfinite().sum(1))


def test_all_rows():
    p = pairs()
    found = p.all(LABELS[:4])
    scores = found.scores(torch.ones(4, 3), found.block(torch.ones(N, 3)), slice(0, 4))
    assert torch.equal(scores.isfinite(), LABELS[:4, None] != LABELS)
    assert torch.equal(found.kept, scores.isfinite().sum(1))


def test_relaxed_positives_are_of_the_own_class():
    p, index = pairs(), torch.arange(N)
    rows = torch.stack([p.same_class(torch.tensor(step), index, LABELS) for step in range(200)])
    assert bool((LABELS[rows] == LABELS).all())
    members = (LABELS[11] == LABELS).nonzero().flatten()
    counts = torch.bincount(rows[:, members].flatten(), minlength=N)[members].double()
    assert chi_square(counts) == pytest.approx(1, abs=5 * (2 / len(members)) ** 0.5)
