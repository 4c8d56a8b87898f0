"""`kdkit cache`: filled once, verified against the live teacher, read by a fit."""

import json

import pytest
import torch

from kdkit.recipe import fingerprint, load
from kdkit.registry import KdkitError
from kdkit.runs.cache import cache
from kdkit.runs.fit import fit

WORDS = ["models.teacher.weights=random", "data.subset=60", "data.padding=1", "trainer.max_epochs=1"]
CACHED = [*WORDS, "models.teacher.cache=true"]


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_fill_verify_and_fit(tmp_path, home):
    (filled,) = cache(load("kd_digits", CACHED))
    assert (filled.rows, filled.there, filled.difference) == (60 * 9, 60 * 9, None)
    (verified,) = cache(load("kd_digits", CACHED), verify=True)
    assert (verified.rows, verified.there) == (60 * 9, 60 * 9)
    assert verified.difference < 1e-2
    assert list((home / "caches").iterdir()) == [filled.folder]
    before = (filled.folder / "rows.bin").stat().st_mtime_ns
    live, cached = (
        fit(load("kd_digits", words), out=tmp_path / name).folder
        for name, words in (("live", WORDS), ("cached", CACHED))
    )
    assert (filled.folder / "rows.bin").stat().st_mtime_ns == before
    told = [json.loads(folder.result.read_text())["last"]["student"]["nll"] for folder in (live, cached)]
    assert told[0] == pytest.approx(told[1], rel=0.05)


def test_a_spoilt_row_is_told_and_mended(home):
    (filled,) = cache(load("kd_digits", CACHED))
    words = torch.from_file(str(filled.folder / "rows.bin"), shared=True, dtype=torch.int16, size=540 * (10 + 2))
    words[25] ^= 4
    assert cache(load("kd_digits", CACHED), verify=True)[0].there == 539
    assert cache(load("kd_digits", CACHED))[0].there == 540
    assert cache(load("kd_digits", CACHED), verify=True)[0].there == 540


def test_where_answers_are_read_from_is_no_other_comparison():
    assert fingerprint(load("kd_digits", WORDS)) == fingerprint(load("kd_digits", CACHED))
    part = [*WORDS, "models.teacher.cache.top_k=3"]
    assert fingerprint(load("kd_digits", WORDS)) != fingerprint(load("kd_digits", part))


def test_a_recipe_without_the_word():
    with pytest.raises(KdkitError, match=r"add models\.teacher\.cache=true"):
        cache(load("kd_digits", WORDS))


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("models.student.cache=true", "student learns"),
        ("models.teacher.cache.bye=views", "did you mean 'by'"),
        ("models.teacher.cache.by=steps", "must be 'views' or 'epochs'"),
        ("models.teacher.cache=3", "cache"),
    ],
)
def test_wrong_words(word, problem):
    with pytest.raises(KdkitError, match=problem):
        load("kd_digits", [*WORDS, word])
