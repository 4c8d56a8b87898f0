"""Whatever a recipe says, it is right or it ends in one KdkitError: soon, and with nothing written or run."""

import copy
import resource
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdkit.recipe import load, loads
from kdkit.recipe.write import dump
from kdkit.registry import KdkitError
from kdkit.runs.check import check
from tests.recipe.fuzz import SMALL, STAGED, TEXT, examples, in_time, mutate, overrides, tree_of, trees
from tests.watched import deeds

TRIED = {"recipes": 0, "right": 0, "refused": 0, "tracebacks": 0}


@pytest.fixture(scope="module", autouse=True)
def _figures():
    yield
    print(f"\nfigure: {', '.join(f'{count} {word}' for word, count in TRIED.items())}")


@pytest.fixture(scope="module", autouse=True)
def _elsewhere(tmp_path_factory):
    """An empty working directory, and no more memory than a recipe may take."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        patch.setenv("KDKIT_HOME", str(tmp_path_factory.mktemp("home")))
        patch.delenv("KDKIT_DATA", raising=False)
        before = resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (16 << 30, before[1]))
        yield
        resource.setrlimit(resource.RLIMIT_AS, before)


def tried(read, *, examine=False):
    """Read a recipe; whatever is not its own refusal fails the test."""
    TRIED["recipes"] += 1
    try:
        with in_time(), deeds() as done:
            recipe = read()
            if examine:
                check(recipe)
    except KdkitError:
        TRIED["refused"] += 1
    except BaseException:
        TRIED["tracebacks"] += 1
        raise
    else:
        TRIED["right"] += 1
    assert done == []


@examples(150, 14_000)
@given(st.data())
def test_a_mutated_recipe_is_right_or_one_kdkit_error(data):
    tree = copy.deepcopy(data.draw(st.sampled_from(trees())))
    for _ in range(data.draw(st.integers(1, 4))):
        mutate(data, tree)
    words, text = data.draw(overrides()), dump(tree)
    tried(lambda: loads(text, overrides=words))


@examples(100, 3_000)
@given(st.data())
def test_a_text_with_a_hole_in_it_is_right_or_one_kdkit_error(data):
    text = data.draw(st.sampled_from([TEXT, SMALL, STAGED]))
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(len(text), start + 30)))
    middle = data.draw(st.text(st.sampled_from("{}[]:,-?&*!|>'\"%@`#\n\t \x00aé0") | st.characters(), max_size=8))
    tried(lambda: loads(text[:start] + middle + text[end:]))


@examples(100, 3_000)
@given(st.sampled_from(["kd_digits", "crd_cifar100", "dml_cifar100", "sid_cifar100"]), overrides())
def test_an_override_is_right_or_one_kdkit_error(name, words):
    tried(lambda: loads(TEXT, overrides=words))
    tried(lambda: load(name, words))


@examples(25, 2_000)
@given(st.data())
def test_a_mutated_recipe_that_is_read_is_checked_or_one_kdkit_error(data):
    tree = tree_of(data.draw(st.sampled_from([SMALL, STAGED])))
    for _ in range(data.draw(st.integers(0, 2))):
        mutate(data, tree)
    text = dump(tree)
    tried(lambda: loads(text), examine=True)


def test_importing_the_room_imports_no_torch():
    code = "import sys, kdkit.recipe; print({'torch', 'pytorch_lightning', 'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
