"""Which samples form which batch: whole epochs, ranks, resume, parts."""

import pytest
import torch

from kdkit.data import order as order_module
from kdkit.data.order import Order
from kdkit.data.splits import noisy, part_size, stratified
from kdkit.registry import KdkitError


def epoch_of(order):
    batches = []
    for position, index in order.batches():
        order.position = position
        batches.append(index)
    return batches


def keys(n, seed=0):
    return torch.randint(-(2**31), 2**31 - 1, (n,), dtype=torch.int32, generator=torch.Generator().manual_seed(seed))


def test_each_sample_exactly_once_an_epoch_and_another_order_in_the_next():
    order = Order(103, 10, seed=0)
    first, second = epoch_of(order), epoch_of(order)
    assert [len(b) for b in first] == [10] * 10 + [3]
    assert sorted(torch.cat(first).tolist()) == sorted(torch.cat(second).tolist()) == list(range(103))
    assert not torch.equal(torch.cat(first), torch.cat(second))
    assert order.epoch == 1


def test_order_follows_from_seed_and_epoch_alone():
    order, again = Order(50, 8, seed=0), Order(50, 8, seed=0)
    order.set_epoch(3)
    for _ in range(4):
        expected = epoch_of(again)
    assert torch.equal(torch.cat(epoch_of(order)), torch.cat(expected))
    assert not torch.equal(torch.cat(epoch_of(Order(50, 8, seed=1))), torch.cat(epoch_of(Order(50, 8, seed=0))))


def test_drop_last_and_natural_order():
    assert [len(b) for b in epoch_of(Order(23, 5, seed=0, drop_last=True))] == [5] * 4
    assert torch.equal(torch.cat(epoch_of(Order(23, 5))), torch.arange(23))
    with pytest.raises(KdkitError, match="batch_size must be at most the 3 samples"):
        Order(3, 5, seed=0, drop_last=True)


@pytest.mark.parametrize("world", [2, 4])
def test_ranks_cut_the_same_batches(monkeypatch, world):
    whole = epoch_of(Order(101, 8, seed=0))
    shares = []
    for rank in range(world):
        monkeypatch.setattr(order_module, "rank_and_world", lambda rank=rank: (rank, world))
        shares.append(epoch_of(Order(101, 8, seed=0)))
    first = torch.cat(whole)
    for k, batch in enumerate(whole):
        filled = torch.cat([batch, first[: -len(batch) % world]])  # the last, by the epoch's first samples
        assert torch.equal(torch.stack([share[k] for share in shares], 1).flatten(), filled)
    assert torch.equal(torch.cat(epoch_of(Order(20, 8))), torch.arange(20))  # evaluation: all of it on every rank


def test_a_batch_that_ranks_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(order_module, "rank_and_world", lambda: (0, 3))
    with pytest.raises(KdkitError, match="multiple of the 3 ranks, got 8"):
        epoch_of(Order(20, 8, seed=0))


@pytest.mark.parametrize("stop", [0, 4, 13])
def test_resume_goes_on_after_the_last_batch(stop):
    order = Order(101, 8, seed=0)
    order.set_epoch(2)
    expected = epoch_of(order) + epoch_of(order)
    order.set_epoch(2)
    batches = order.batches()
    for _ in range(stop):
        order.position, _ = next(batches)
    resumed = Order(101, 8, seed=0)
    resumed.load_state_dict(order.state_dict())
    if stop < len(order):
        resumed.set_epoch(2)  # as Lightning does on its way into the epoch
        rest = epoch_of(resumed) + epoch_of(resumed)
    else:
        rest = epoch_of(resumed)
    assert [b.tolist() for b in rest] == [b.tolist() for b in expected[stop:]]


def test_resume_after_an_epoch_that_was_cut_short_begins_the_next_one():
    """As with `limit_train_batches`: the checkpoint stands in the middle of an epoch that is over."""
    order = Order(40, 8, seed=0)
    order.set_epoch(1)
    expected = epoch_of(order)
    resumed = Order(40, 8, seed=0)
    resumed.load_state_dict({**order.state_dict(), "epoch": 0, "position": 2})
    resumed.set_epoch(1)
    assert torch.equal(torch.cat(epoch_of(resumed)), torch.cat(expected))


def test_a_plain_loop_that_was_resumed_and_left_starts_its_epoch_over():
    order, resumed = Order(40, 8, seed=0), Order(40, 8, seed=0)
    resumed.load_state_dict({**order.state_dict(), "position": 2})
    resumed.position, _ = next(resumed.batches())
    assert torch.equal(torch.cat(epoch_of(resumed)), torch.cat(epoch_of(order)))


def test_set_epoch_alone_starts_an_epoch_over():
    order = Order(40, 8, seed=0)
    expected = epoch_of(order)
    order.set_epoch(0)
    assert torch.equal(torch.cat(epoch_of(order)), torch.cat(expected))


def test_resume_with_another_batch_size_is_refused():
    with pytest.raises(KdkitError, match="batch_size must be 8 as in the checkpoint, got 16"):
        Order(101, 16, seed=0).load_state_dict(Order(101, 8, seed=0).state_dict())


@pytest.mark.parametrize("other", [{"num_samples": 100}, {"seed": 1}, {"drop_last": True}])
def test_resume_with_other_batches_is_refused(other):
    words = {"num_samples": 101, "batch_size": 8, "seed": 0}
    (name,) = other
    with pytest.raises(KdkitError, match=f"{name} must be .* as in the checkpoint"):
        Order(**{**words, **other}).load_state_dict(Order(**words).state_dict())


def test_stratified_part_is_exact_nested_and_in_proportion():
    labels = torch.cat([torch.full((count,), c) for c, count in enumerate((100, 50, 10))])
    chosen, rest = stratified(labels, 32, keys(160))
    assert torch.bincount(labels[chosen]).tolist() == [20, 10, 2]
    assert sorted(chosen.tolist() + rest.tolist()) == list(range(160))
    assert set(stratified(labels, 11, keys(160))[0].tolist()) < set(chosen.tolist())
    assert not torch.equal(stratified(labels, 32, keys(160).flip(0))[0], chosen)


def test_a_rare_class_is_in_a_small_part_as_seldom_as_in_the_whole():
    labels = torch.tensor([0] * 99 + [1])
    assert labels[stratified(labels, 10, keys(100))[0]].sum() == 0


def test_a_rare_class_is_in_a_large_part_as_often_as_in_the_whole():
    labels = torch.tensor([0] * 99 + [1])
    assert labels[stratified(labels, 60, keys(100))[0]].sum() == 1


def test_what_is_left_over_after_equal_shares_is_of_any_class():
    labels = torch.arange(10).repeat_interleave(5)
    parts = [labels[stratified(labels, 3, keys(50, seed))[0]] for seed in range(20)]
    assert torch.cat(parts).unique().tolist() == list(range(10))


@pytest.mark.parametrize(
    ("size", "count"), [(0, 0), (0.1, 10), (25, 25), (1.0, 1), (100, None), (-1, None), (2.5, None)]
)
def test_part_size(size, count):
    if count is not None:
        assert part_size("val_split", size, 100) == count
    else:
        with pytest.raises(KdkitError, match=r"val_split must be a share below 1 or a count below 100, got"):
            part_size("val_split", size, 100)


def test_label_noise_is_symmetric_over_the_other_classes():
    labels = torch.arange(20_000) % 10
    changed = noisy(labels, 0.2, 10, seed=0, ids=torch.arange(20_000))
    wrong = changed != labels
    assert abs(wrong.float().mean() - 0.2) < 0.01
    shifts = torch.bincount((changed - labels)[wrong] % 10, minlength=10)
    assert shifts[0] == 0
    assert changed.unique().tolist() == list(range(10))
    assert shifts[1:].min() > 380  # 444 expected
    assert torch.equal(changed, noisy(labels, 0.2, 10, seed=0, ids=torch.arange(20_000)))


def test_a_plain_loop_that_was_left_starts_its_epoch_over():
    order = Order(40, 8, seed=0)
    expected = epoch_of(Order(40, 8, seed=0))
    batches = order.batches()
    for _ in range(2):
        order.position, _ = next(batches)
    assert torch.equal(torch.cat(epoch_of(order)), torch.cat(expected))
