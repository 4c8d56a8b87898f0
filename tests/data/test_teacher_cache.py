"""Rows on disk: what was written is read, what is missing or spoilt is computed again, and nothing is made up."""

import errno
import json
import os
import resource
import threading
from contextlib import closing, nullcontext
from types import SimpleNamespace

import pytest
import torch

from kdkit.data.row_file import RowFile
from kdkit.data.teacher_cache import Layout, TeacherCache, check_room
from kdkit.registry import KdkitError

SHAPES = {"logits": (10,), "embedding": (4, 2)}


def values(rows):
    generator = torch.Generator().manual_seed(int(rows.sum()))
    return {tap: torch.randn(len(rows), *shape, generator=generator) for tap, shape in SHAPES.items()}


def cache(folder, depends=None, rows=50, **layout):
    made = TeacherCache(folder, "teacher", depends or {"weights": "a"}, Layout(SHAPES, **layout), rows)
    made.trusted = True
    return made


def never():
    raise AssertionError("these rows are there")


def test_rows_come_back_from_another_process(tmp_path):
    path, ids = tmp_path / "rows", torch.tensor([3, 0, 7])
    words = torch.randint(-(2**15), 2**15, (3, 5)).to(torch.int16)
    RowFile(path, 9, 5).write(ids, words)
    found, there = RowFile(path, 9, 5).read(torch.tensor([7, 1, 3]))
    assert there.tolist() == [True, False, True]
    assert torch.equal(found[[0, 2]], words[[2, 0]])


@pytest.mark.parametrize(
    ("shapes", "layout"),
    [
        ({"logits": (5,)}, {}),
        ({"logits": (3,), "embedding": (7,)}, {}),
        ({"logits": (10,)}, {"dtype": "float32", "top_k": 3}),
        ({"logits": (10,), "embedding": (3,)}, {"dtype": "float32", "top_k": 5}),
    ],
)
def test_one_row_of_an_odd_width_is_read_as_several_are(tmp_path, shapes, layout):
    layout = Layout(shapes, **{"dtype": "float16", **layout})
    file, rows = RowFile(tmp_path / "rows", 4, layout.width), torch.arange(4)
    file.write(rows, layout.encode({tap: torch.randn(4, *shape) for tap, shape in shapes.items()}))
    several = layout.decode(file.read(rows)[0])
    for row in range(4):
        words, there = file.read(torch.tensor([row]))
        assert there.tolist() == [True]
        for tap, value in layout.decode(words).items():
            assert torch.equal(value[0], several[tap][row])


@pytest.mark.parametrize("word", range(7))
def test_a_flipped_bit_is_seen_in_every_word(tmp_path, word):
    file = RowFile(tmp_path / "rows", 4, 5)
    file.write(torch.arange(4), torch.randint(-(2**15), 2**15, (4, 5)).to(torch.int16))
    for bit in (1, 64, 2**14):
        file.words[2, word] ^= bit
        assert file.there(torch.arange(4)).tolist() == [True, True, False, True]
        file.words[2, word] ^= bit


def test_neither_zeros_nor_another_row_pass_for_a_row(tmp_path):
    file = RowFile(tmp_path / "rows", 3, 5)
    file.write(torch.tensor([0]), torch.zeros(1, 5, dtype=torch.int16))
    file.words[1] = file.words[0]
    assert file.there(torch.arange(3)).tolist() == [True, False, False]


def test_before_it_is_believed_it_is_compared(tmp_path):
    rows, said = torch.tensor([5, 2, 40]), []

    def live():
        said.append(1)
        return values(rows[:2])

    cache(tmp_path)(rows[:2], live)
    again = TeacherCache(tmp_path, "teacher", {"weights": "a"}, Layout(SHAPES), 50)
    again(rows[:2], live)
    again(rows[:2], never)
    assert len(said) == 2
    other = TeacherCache(tmp_path, "teacher", {"weights": "a"}, Layout(SHAPES), 50)
    with pytest.raises(KdkitError, match=r"logits is \d+\.\d% off"):
        other(rows[:2], lambda: {**live(), "logits": torch.randn(2, 10)})


def test_a_file_grows_and_keeps_its_rows(tmp_path):
    RowFile(tmp_path / "rows", 3, 5).write(torch.tensor([2]), torch.ones(1, 5, dtype=torch.int16))
    assert RowFile(tmp_path / "rows", 8, 5).there(torch.arange(8)).tolist() == [False, False, True] + [False] * 5


def test_a_shorter_table_never_cuts_a_longer_one(tmp_path):
    """Another process opens and fills a longer one between this one's look at the size and its truncation."""
    path, words = tmp_path / "rows", torch.ones(5000, 5, dtype=torch.int16)
    other = threading.Thread(target=lambda: RowFile(path, 5000, 5).write(torch.arange(5000), words))

    class Slow(type(path)):
        def open(self, *args, **options):
            file = super().open(*args, **options)

            def truncate(size):
                other.start()
                other.join(0.3)
                file.truncate(size)

            return closing(SimpleNamespace(tell=file.tell, truncate=truncate, close=file.close))

    RowFile(Slow(path), 10, 5)
    other.join()
    assert path.stat().st_size == 2 * 5000 * 7
    assert RowFile(path, 5000, 5).there(torch.arange(5000)).all()


def test_a_disk_that_ends_in_the_middle_of_a_write_is_an_error(tmp_path):
    file = RowFile(tmp_path / "rows", 100, 1000)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50 * 2004 + 77, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.write(torch.arange(100), torch.ones(100, 1000, dtype=torch.int16))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert file.there(torch.arange(100)).sum() == 50


def test_computed_once_and_equal_to_its_first_answer(tmp_path):
    rows = torch.tensor([5, 2, 40])
    first = cache(tmp_path)(rows, lambda: values(rows))
    again = cache(tmp_path)(rows, never)
    for tap, value in values(rows).items():
        assert torch.equal(again[tap], first[tap])
        torch.testing.assert_close(again[tap], value, rtol=2**-11, atol=1e-7)


def test_bfloat16_is_kept_exactly_in_half_the_words_of_float32(tmp_path):
    rows = torch.arange(6)
    live = {tap: value.bfloat16() for tap, value in values(rows).items()}
    found = cache(tmp_path)(rows, lambda: live)
    assert all(torch.equal(found[tap], live[tap].float()) for tap in SHAPES)
    assert torch.equal(cache(tmp_path, dtype="float32")(rows, lambda: values(rows))["logits"], values(rows)["logits"])
    assert Layout(SHAPES, "float32").width == 2 * Layout(SHAPES).width == 36


def test_one_spoilt_row_is_made_again(tmp_path):
    rows, kept = torch.arange(3), cache(tmp_path)
    kept(rows, lambda: values(rows))
    kept.file.words[1, 0] ^= 1
    assert kept.file.there(torch.arange(4)).tolist() == [True, False, True, False]
    found = kept(rows, lambda: values(rows))
    torch.testing.assert_close(found["logits"], values(rows)["logits"], rtol=2**-11, atol=1e-7)
    assert kept.file.there(rows).all()


def test_other_weights_are_another_cache(tmp_path):
    a, b = cache(tmp_path), cache(tmp_path, {"weights": "b"})
    assert a.folder != b.folder
    assert json.loads((b.folder / "cache.json").read_text())["weights"] == "b"


def test_another_layout_is_another_cache(tmp_path):
    made = [cache(tmp_path), cache(tmp_path, dtype="float32"), cache(tmp_path, top_k=3), cache(tmp_path, top_k=4)]
    assert len({its.folder for its in made}) == 4


def test_top_k_keeps_the_best_and_spreads_the_rest(tmp_path):
    rows = torch.arange(4)
    live = values(rows)
    found = cache(tmp_path, top_k=3, dtype="float32")(rows, lambda: live)["logits"].softmax(1)
    p = live["logits"].softmax(1)
    best = p.topk(3, 1)
    torch.testing.assert_close(found.gather(1, best.indices), best.values, rtol=1e-5, atol=1e-6)
    rest = found.scatter(1, best.indices, torch.nan)
    expected = ((1 - best.values.sum(1)) / 7)[:, None].expand(4, 10)
    torch.testing.assert_close(rest[~rest.isnan()].view(4, 7), expected[:, :7], rtol=1e-5, atol=1e-6)


def test_top_k_of_many_classes():
    layout = Layout({"logits": (50000,)}, top_k=2)
    live = torch.zeros(1, 50000)
    live[0, [7, 49999]] = torch.tensor([20.0, 21.0])
    found = layout.decode(layout.encode({"logits": live}))["logits"]
    assert found[0].topk(2).indices.tolist() == [49999, 7]


def test_more_classes_than_a_row_can_name():
    with pytest.raises(KdkitError, match="top_k takes at most 65536 classes, got 70000"):
        Layout({"logits": (70000,)}, top_k=2)


@pytest.mark.parametrize("top_k", [0, 10])
def test_top_k_within_the_classes(top_k):
    with pytest.raises(KdkitError, match=r"top_k must lie in \[1, 10\)"):
        Layout(SHAPES, top_k=top_k)


def test_what_the_disk_cannot_hold_is_refused(tmp_path):
    with pytest.raises(KdkitError, match=r"GB \(logits .* GB, embedding .* GB\) do not fit"):
        cache(tmp_path, rows=10**14)
    assert not list(tmp_path.iterdir())


def test_a_disk_that_holds_it_just_so(tmp_path, monkeypatch):
    layout = Layout(SHAPES)
    size = 2 * 50 * (layout.width + 2)
    for free in (size, size - 1):
        monkeypatch.setattr("shutil.disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        with nullcontext() if free == size else pytest.raises(KdkitError, match="do not fit"):
            check_room(tmp_path, layout, 50, [])


def test_what_float16_cannot_hold_is_refused(tmp_path):
    rows = torch.arange(2)
    with pytest.raises(KdkitError, match=r"beyond the range of float16; say cache: \{dtype: float32\}"):
        cache(tmp_path)(rows, lambda: {tap: 1e6 * value for tap, value in values(rows).items()})
    with pytest.raises(KdkitError, match="logits has values beyond the range of float16"):
        cache(tmp_path)(rows, lambda: {**values(rows), "logits": torch.full((2, 10), -1e6)})
    with pytest.raises(KdkitError, match="beyond the range of float32; leave `cache` out"):
        cache(tmp_path, dtype="float32")(rows, lambda: {t: 1e60 * v.double() for t, v in values(rows).items()})


@pytest.mark.parametrize("dtype", ["float16", "float32"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_no_number_is_refused(tmp_path, dtype, value):
    rows, kept = torch.arange(2), cache(tmp_path, dtype=dtype)
    with pytest.raises(KdkitError, match="infinite or no number"):
        kept(rows, lambda: {**values(rows), "logits": torch.full((2, 10), value)})
    assert not kept.file.there(rows).any()


def test_what_is_written_already_needs_no_room(tmp_path, monkeypatch):
    rows = torch.arange(5000)
    cache(tmp_path, rows=5000)(rows, lambda: values(rows))
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=50_000))
    cache(tmp_path, rows=5000)
    with pytest.raises(KdkitError, match="do not fit"):
        cache(tmp_path, {"weights": "b"}, rows=5000)


def test_held_whole_it_gives_the_same(tmp_path):
    rows, kept = torch.arange(50), cache(tmp_path)
    expected = kept(rows, lambda: values(rows))
    kept.live_on(torch.device("cpu"))
    found = kept(torch.tensor([7, 3]), never)
    assert all(torch.equal(found[tap], expected[tap][[7, 3]]) for tap in SHAPES)


@pytest.mark.parametrize("spoil", [lambda words: words[3].zero_(), lambda words: words[49, 0].bitwise_xor_(2)])
def test_nothing_is_held_that_is_not_there(tmp_path, monkeypatch, spoil):
    monkeypatch.setattr("kdkit.data.teacher_cache.READ", 20)
    rows, kept = torch.arange(50), cache(tmp_path)
    kept(rows, lambda: values(rows))
    kept.live_on(torch.device("cpu"))
    spoil(kept.file.words)
    again = cache(tmp_path)
    with pytest.raises(KdkitError, match=r"1 of 50 rows .* are not there, or are spoilt"):
        again.live_on(torch.device("cpu"))
    assert torch.equal(again(rows, lambda: values(rows))["logits"], kept(rows, never)["logits"])


def test_a_full_disk_is_an_error_and_no_crash(tmp_path, monkeypatch):
    rows, kept = torch.arange(2), cache(tmp_path)
    monkeypatch.setattr(kept.file, "path", type(tmp_path)("/dev/full"))
    with pytest.raises(KdkitError, match="No space left on device"):
        kept(rows, lambda: values(rows))


def test_a_whole_cache_may_lie_where_nothing_can_be_written(tmp_path, monkeypatch):
    rows, real = torch.arange(3), type(tmp_path).open
    first = cache(tmp_path)(rows, lambda: values(rows))

    def read_only(path, mode="r", *args, **options):
        if set(mode) & set("wax+"):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, mode, *args, **options)

    monkeypatch.setattr(type(tmp_path), "open", read_only)
    monkeypatch.setattr(os, "access", lambda path, mode: not mode & os.W_OK)
    again = cache(tmp_path)
    assert torch.equal(again(rows, never)["logits"], first["logits"])
    with pytest.raises(KdkitError, match=r"cannot be written \(Read-only file system\); set KDKIT_HOME"):
        again(rows + 1, lambda: values(rows))
    with pytest.raises(KdkitError, match=r"cannot be written \(Read-only file system\); set KDKIT_HOME"):
        cache(tmp_path, {"weights": "b"})
