"""Rows are whole or not there, and predictions come back as they were."""

import json
from contextlib import contextmanager

import numpy as np
import pytest

from kdkit.bench import packed, rows
from kdkit.bench.rows import NEEDED, append, read_rows
from kdkit.registry import KdkitError

ROW = dict.fromkeys(NEEDED, 0)


@pytest.mark.parametrize(("classes", "n"), [(10, 360), (100, 10_000), (1000, 5_001), (2, 1)])
def test_predictions_come_back(classes, n):
    rng = np.random.default_rng(0)
    told, right = rng.integers(classes, size=n), rng.random(n) < 0.7
    line = json.loads(json.dumps(packed.pack(told, right)))
    np.testing.assert_array_equal(packed.predicted(line), told)
    np.testing.assert_array_equal(packed.right(line), right)
    assert len(json.dumps(line)) < 12_500 * n / 10_000 * (2 if classes > 256 else 1) + 400


def test_damaged_predictions_are_refused():
    line = packed.pack(np.arange(20), np.ones(20, bool))
    with pytest.raises(KdkitError, match="damaged"):
        packed.right({**line, "images": 30})
    with pytest.raises(KdkitError, match="damaged"):
        packed.predicted({**line, "classes": line["classes"][:-3]})


def test_rows_are_appended_and_a_torn_one_is_cut_off_and_told(tmp_path, caplog):
    path = tmp_path / "new" / "rows.jsonl"
    append(path, {**ROW, "seed": 1})
    append(path, {**ROW, "seed": 2})
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"seed": 3, "las')  # the power went
    assert [[row["seed"] for row in read_rows(path)] for _ in range(2)] == [[1, 2], [1, 2]]
    assert caplog.messages == [f"warning: {path}: its last row was cut off, and counts for nothing"]
    append(path, {**ROW, "seed": 4})
    assert [row["seed"] for row in read_rows(path)] == [1, 2, 4]
    assert path.read_bytes().startswith(whole)


def test_a_row_that_is_being_written_is_waited_for(tmp_path, monkeypatch, caplog):
    path = tmp_path / "rows.jsonl"
    append(path, {**ROW, "seed": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[:-9])

    @contextmanager
    def until_it_is_there(path):
        path.write_bytes(whole)
        yield

    monkeypatch.setattr(rows, "one_at_a_time", until_it_is_there)
    assert [row["seed"] for row in read_rows(path)] == [1]
    assert not caplog.messages


def test_a_row_may_be_torn_in_the_middle_of_a_letter(tmp_path):
    """Or lack its end alone, as editors leave it: then it is whole."""
    path = tmp_path / "rows.jsonl"
    append(path, {**ROW, "seed": 1})
    first = path.read_bytes()
    append(path, {**ROW, "seed": 2, "method": "méthode"})
    whole = path.read_bytes()
    for left in range(len(first), len(whole) + 1):
        path.write_bytes(whole[:left])
        kept = [1, 2][: 1 + (left >= len(whole) - 1)]
        assert [row["seed"] for row in read_rows(path)] == kept
        append(path, {**ROW, "seed": 3})
        assert [row["seed"] for row in read_rows(path)] == [*kept, 3]


def test_a_row_that_is_not_as_it_was_written_is_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    append(path, {**ROW, "seed": 1})
    append(path, {**ROW, "seed": 2, "last": {"student": {"top1": 0.7123}}, "method": "kd é"})
    whole, right = path.read_bytes(), read_rows(path)[1]
    first, told = whole.index(b"\n") + 1, []
    for at in range(first, len(whole) - 1):
        for bit in range(8):
            damaged = bytearray(whole)
            damaged[at] ^= 1 << bit
            path.write_bytes(damaged)
            try:
                read = read_rows(path)
            except KdkitError as error:
                told.append(str(error))
            else:  # the word crc32 itself is hit: nothing else is
                assert {key: read[1].get(key) for key in right} == right
    assert all("rows.jsonl:2: " in error or "cannot be read" in error for error in told)
    path.write_bytes(whole.replace(b"0.7123", b"0.7323"))
    with pytest.raises(KdkitError, match=r"rows.jsonl:2: is damaged, or was edited: its checksum"):
        read_rows(path)


def test_a_folder_is_told_where_its_rows_are(tmp_path):
    with pytest.raises(KdkitError, match="is a folder; name a file of rows"):
        read_rows(tmp_path)
    (tmp_path / "results.jsonl").touch()
    with pytest.raises(KdkitError, match=r"is a folder; its rows are in .*results\.jsonl"):
        read_rows(tmp_path)


def test_what_is_no_row_is_told_with_its_line(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(KdkitError, match="cannot be read"):
        read_rows(path)
    path.write_text(json.dumps(ROW) + "\n{\n")
    with pytest.raises(KdkitError, match=r"rows.jsonl:2: is no JSON"):
        read_rows(path)
    path.write_text('{"run": "kd_cifar100-seed0", "seed": 0}\n')
    why = r"rows.jsonl is no file of rows, for line 1 is no row of `kdkit bench`; it has no best, commit, content"
    with pytest.raises(KdkitError, match=why):
        read_rows(path)
    path.write_text(f'{{"seed": 0}}\n{json.dumps(ROW)}\n')
    with pytest.raises(KdkitError, match=r"rows.jsonl:1: is no row .*; take the line out"):
        read_rows(path)
    with pytest.raises(ValueError, match="JSON"):
        append(path, {**ROW, "minutes": float("nan")})
