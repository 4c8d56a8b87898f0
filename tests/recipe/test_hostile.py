"""Recipes made to do harm: refused soon, in a few words, with nothing built, opened or run."""

import contextlib
import os
import re

import pytest
import yaml

import kdkit.runs.check  # noqa: F401  what is imported writes its caches now
from kdkit.recipe import load, loads
from kdkit.recipe.syntax import SIZE
from kdkit.registry import KdkitError
from tests.recipe.fuzz import in_time
from tests.watched import deeds

RECIPE = "data: {name: digits}\nmodels: {student: {arch: resnet8}}\nlosses: [ce]\nlr: 0.1\ntrainer: {max_epochs: 1}\n"
N = SIZE - 100
ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=False)
)
HARMFUL = {
    "aliases": (ALIASES, r"anchors \(&a\) are refused"),
    "objects": ("a: !!python/object/apply:os.system [touch harm]\n", r"tags \(.*os.system\) are refused"),
    "merge": ("a: &a {b: 1}\nc: {<<: *a}\n", "anchors"),
    "lists": ("a: " + "[" * N, "nested more than 20 deep"),
    "maps": ("a: " + "{a: " * (N // 4), "nested more than 20 deep"),
    "dashes": ("- " * (N // 2), "nested more than 20 deep"),
    "keys": ("? " * (N // 2), "nested more than 20 deep"),
    "unknown words": ("".join(f"k{i}: 1\n" for i in range(6000)), "more than 2000 words"),
    "wrong words": (RECIPE + "".join(f"k{i}: 1\n" for i in range(500)), "and 480 more"),
    "the same word": ("a: 1\n" * 9000, "more than 2000 words"),
    "losses": (RECIPE.replace("[ce]", f"[{'kx, ' * 6000}ce]"), "more than 2000 words"),
    "a long word": (RECIPE.replace("ce", "c" * 60_000), "unknown loss"),
    "a long number": (RECIPE.replace("0.1", "9" * 60_000), "lr"),
    "too much": (RECIPE + "#" * SIZE, "at most 64 kB"),
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(read):
    with in_time(15), deeds() as done, pytest.raises(KdkitError) as caught:
        read()
    assert done == []
    assert len(str(caught.value)) < 30_000
    return str(caught.value)


@pytest.mark.parametrize("kind", HARMFUL)
def test_as_a_text_and_as_an_override(kind):
    text, right = HARMFUL[kind]
    assert re.search(right, refused(lambda: loads(text)))
    refused(lambda: loads(RECIPE, overrides=[f"losses={text}", f"models.student.options={text}"]))
    assert not os.path.exists("harm")


def test_a_path_of_very_many_words():
    assert "must be key=value" in refused(lambda: loads(RECIPE, overrides=["a." * 50_000 + "b=1"]))


def test_a_file_of_a_hundred_megabytes(tmp_path):
    with (tmp_path / "r.yaml").open("wb") as file:
        file.truncate(100 << 20)
    assert "at most 64 kB" in refused(lambda: load(tmp_path / "r.yaml"))
    (tmp_path / "s.yaml").write_text(RECIPE + "protocol: r.yaml\n")
    assert "at most 64 kB" in refused(lambda: load(tmp_path / "s.yaml"))


def test_what_never_ends_and_what_never_begins(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in ("/dev/zero", tmp_path / "pipe.yaml"):
        assert "is no ordinary file" in refused(lambda: load(path))  # noqa: B023
        assert "is no ordinary file" in refused(lambda: loads(RECIPE + f"protocol: {path}\n"))  # noqa: B023


@pytest.mark.parametrize(
    "name", ["a" * 300, "/" * 5000, "x/" * 3000, "\x00", "../../../etc/passwd", "~root", "é\u202e"]
)
@pytest.mark.parametrize("word", ["protocol", "weights", "root", "arch", "loss", "recipe"])
def test_names_that_no_file_has(word, name):
    """Refused, or, where no file is looked at yet, read as a word."""
    quoted = yaml.dump(name, default_style='"', width=10**6).strip()
    texts = {
        "protocol": f"{RECIPE}protocol: {quoted}\n",
        "weights": RECIPE.replace("resnet8", f"resnet8, weights: {quoted}"),
        "root": RECIPE.replace("digits", f"folder, holdout: 0.1, root: {quoted}"),
        "arch": RECIPE.replace("resnet8", quoted),
        "loss": RECIPE.replace("ce", quoted),
    }
    for ending in ("", ".yaml", ".pth", ".py:Net"):
        text = texts.get(word, RECIPE).replace(quoted, f'{quoted[:-1]}{ending}"')
        with in_time(), deeds() as done, contextlib.suppress(KdkitError):
            load(name + ending) if word == "recipe" else loads(text)
        assert done == []
