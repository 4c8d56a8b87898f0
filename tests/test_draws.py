"""Draws are a hash: the same everywhere, uniform, and unrelated between keys, ids and rows."""

import itertools

import pytest
import torch

from kdkit import draws


def reference(key: int, i: int) -> int:
    """The hash in plain Python integers."""
    mask = 0xFFFFFFFF

    def mix(x: int) -> int:
        x = ((x ^ (x >> 16)) * 0x85EBCA6B) & mask
        x = ((x ^ (x >> 13)) * 0xC2B2AE35) & mask
        return x ^ (x >> 16)

    return mix((mix((i ^ key) & mask) + key) & mask)


def chi_square(values: torch.Tensor, cells: int) -> float:
    """χ² over its degrees of freedom: about 1 for uniform values."""
    expected = values.numel() / cells
    return float((torch.bincount(values.flatten(), minlength=cells) - expected).square().sum() / expected / (cells - 1))


def test_known_values_on_every_platform():
    assert draws.key(0, "crop", 3) == -706405487
    assert draws.bits(7, torch.arange(5)).tolist() == [-444387364, -1323333004, -93695883, -115125935, 534031430]
    assert draws.below(7, torch.arange(6), 1000).tolist() == [896, 691, 978, 973, 124, 365]
    assert draws.permutation(1, 8).tolist() == [6, 0, 4, 5, 7, 3, 1, 2]
    assert list(itertools.islice(draws.uniforms(0, "view", 3, 5), 18))[::17] == [
        0.08358277659863234,
        0.3403861701954156,
    ]


@pytest.mark.parametrize("key", [0, 1, -1, 12345, -(2**31), 2**31 - 1])
def test_bits_are_the_reference_hash(key):
    ids = torch.tensor([0, 1, 2, 99, 2**20, 2**31 - 1, 2**31, 2**32 - 1])
    got = draws.bits(key, ids)
    assert got.dtype == torch.int32
    assert [int(v) & 0xFFFFFFFF for v in got] == [reference(key, int(i)) for i in ids]


def test_parts_of_a_key_do_not_run_together():
    parts = [(1, 23), (12, 3), ("1", 23), (1, "23"), ("a", "b"), ("ab",), (0,), (0, 0), (-1,), ()]
    assert len({draws.key(*p) for p in parts}) == len(parts)


def test_arguments_are_left_alone():
    ids, key = torch.arange(10, dtype=torch.int32), torch.arange(10, dtype=torch.int32)
    draws.below(key, ids, 5)
    assert ids.tolist() == key.tolist() == list(range(10))


def test_rows_and_columns_broadcast():
    keys = draws.bits(3, torch.arange(4))
    matrix = draws.bits(keys[:, None], torch.arange(6))
    assert torch.equal(matrix, torch.stack([draws.bits(int(k), torch.arange(6)) for k in keys]))
    high = torch.tensor([1, 10, 100, 1000])[:, None]
    drawn = draws.below(3, torch.arange(6), high)
    assert torch.equal(drawn, torch.stack([draws.below(3, torch.arange(6), int(h)) for h in high]))


@pytest.mark.parametrize("high", [2, 10, 100, 49_500])
def test_below_is_uniform(high):
    drawn = draws.below(draws.key("uniform"), torch.arange(1_000_000), high)
    assert 0 <= int(drawn.min()) <= int(drawn.max()) < high
    assert chi_square(drawn, high) == pytest.approx(1, abs=5 * (2 / max(high - 1, 1)) ** 0.5)


def test_below_reaches_far():
    drawn = draws.below(1, torch.arange(500_000), 2**31).double() / 2**31
    assert float(drawn.max()) > 0.9999
    assert float(drawn.mean()) == pytest.approx(0.5, abs=5 * (1 / 12 / 500_000) ** 0.5)


def test_every_bit_is_fair_and_follows_every_other():
    """One flipped bit of the key or of the id flips half of the output's bits."""
    ids = torch.arange(20_000)
    word = draws.bits(99, ids)
    bit = 1 << torch.arange(32)
    tolerance = 5 * (0.25 / 20_000) ** 0.5

    def ones(x: torch.Tensor) -> torch.Tensor:
        return ((x.long()[:, None] & bit) != 0).double().mean(0)

    others = draws.bits(99, ids ^ 1), draws.bits(99, ids ^ 4096), draws.bits(98, ids), draws.bits(99 + 4096, ids)
    for flipped in (word, *(word ^ other for other in others)):
        assert float((ones(flipped) - 0.5).abs().max()) < tolerance


def test_neighbours_are_independent():
    """Pairs of draws from neighbouring ids, keys and rows fill a 100 × 100 table evenly."""
    n = 400_000
    ids = torch.arange(n)
    x = draws.below(5, ids, 100)
    rows = draws.bits(draws.bits(5, torch.arange(2))[:, None], ids)
    others = {
        "next id": draws.below(5, ids + 1, 100),
        "next key": draws.below(6, ids, 100),
        "id as key": draws.below(ids.to(torch.int32), torch.full((n,), 5), 100),
        "far id": draws.below(5, ids + 2**16, 100),
        "same id xor key": draws.below(5 ^ 2**20, ids ^ 2**20, 100),
    }
    for name, y in others.items():
        assert chi_square(x * 100 + y, 10_000) == pytest.approx(1, abs=5 * (2 / 9_999) ** 0.5), name
    first, second = ((r.long() & 0xFFFFFFFF) * 100 >> 32 for r in rows)
    assert chi_square(first * 100 + second, 10_000) == pytest.approx(1, abs=5 * (2 / 9_999) ** 0.5)


def test_permutation_holds_every_number_once():
    order = draws.permutation(draws.key("order", 3), 50_000)
    assert torch.equal(order.sort().values, torch.arange(50_000))
    assert not torch.equal(order, draws.permutation(draws.key("order", 4), 50_000))


def test_all_permutations_are_equally_likely():
    seen = [tuple(draws.permutation(draws.key("p", i), 4).tolist()) for i in range(4_800)]
    cells = {p: i for i, p in enumerate(itertools.permutations(range(4)))}
    assert chi_square(torch.tensor([cells[p] for p in seen]), 24) == pytest.approx(1, abs=5 * (2 / 23) ** 0.5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of inductor on older torch
def test_compiled_draws_are_the_same():
    """24 columns leave a remainder behind Inductor's vector loop, which once came out as uninitialised memory."""
    keys = draws.bits(3, torch.arange(6))[:, None]

    def matrix(keys: torch.Tensor) -> torch.Tensor:
        return draws.below(keys, torch.arange(24), 48)

    assert torch.equal(torch.compile(matrix, fullgraph=True)(keys), matrix(keys))
