"""Whatever a recipe says, it is right or it ends in one KdkitError."""

import contextlib
import subprocess
import sys

import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdkit.recipe import load, loads
from kdkit.recipe.write import dump
from kdkit.registry import KdkitError

TEXT = """\
data: {name: digits, batch_size: 32}
models:
  teacher: {arch: resnet20, weights: random, tune: {epochs: 3, lr: 0.1}}
  student: {arch: resnet8, optimizer: {name: adamw}, lr: {cosine: [1e-3, 0]}, when: {from: 1}}
  slow: {ema: student, decay: 0.99}
losses:
  - ce
  - kd: {weight: {linear: [1, 0.5]}, temperature: 4, from: [teacher], to: student}
  - kd: {name: self, from: slow, when: {from: 0.5}, clip: 1, head: linear, taps: embedding, ensemble: null}
  - rkd: {distance_weight: {warmup: {to: {cosine: [1, 0]}, over: 2}}}
  - dml: {among: [student, student]}
optimizer: {name: sgd, momentum: 0.9, nesterov: true}
lr: {multistep: {start: 0.1, at: [0.5, 8]}}
trainer: {max_epochs: 10, devices: [0, 1], precision: 32-true, limit_train_batches: 0.5}
seed: 3
"""
WORDS = sorted({word for word in TEXT.replace(",", " ").replace("{", " ").replace("}", " ").split() if word[-1] != ":"})
KEYS = [
    *sorted({w[:-1] for w in TEXT.replace("{", " ").split() if w.endswith(":")}),
    "from",
    "loss",
    "protocol",
    "a.b",
    "",
]
SCALARS = st.one_of(
    st.sampled_from(
        [None, True, -1, 0, 1e-300, 1e300, 2**80, "", "ce", "kd", "teacher", "student.stage1", "pretrained", *WORDS]
    ),
    st.floats(),
    st.integers(-10, 100),
    st.text(max_size=6),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)


def places(tree, path=()):
    """Every path into a tree."""
    yield path
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        yield from places(value, (*path, key))


def put(tree, path, how, value):
    """Replace, remove or add something at a path."""
    for step in path[:-1]:
        tree = tree[step]
    if how == "remove":
        del tree[path[-1]]
    elif how == "rename" and isinstance(tree, dict):
        tree[str(value)] = tree.pop(path[-1])
    else:
        tree[path[-1]] = value


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_mutated_recipe_is_right_or_one_kdkit_error(data):
    tree = yaml.safe_load(TEXT.replace("1e-3", "0.001"))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from([p for p in places(tree) if p]))
        how = data.draw(st.sampled_from(["replace", "remove", "rename", "key"]))
        value = data.draw(st.sampled_from(KEYS) if how in ("rename", "key") else VALUES)
        put(tree, path, how, value)
    with contextlib.suppress(KdkitError):
        loads(dump(tree))


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_text_with_a_hole_in_it_is_right_or_one_kdkit_error(data):
    start = data.draw(st.integers(0, len(TEXT)))
    end = data.draw(st.integers(start, min(len(TEXT), start + 30)))
    middle = data.draw(st.text(st.sampled_from("{}[]:,-?&*!|>'\"%@`#\n\t \x00aé0") | st.characters(), max_size=8))
    with contextlib.suppress(KdkitError):
        loads(TEXT[:start] + middle + TEXT[end:])


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4), st.text(max_size=8) | VALUES.map(str))
def test_an_override_is_right_or_one_kdkit_error(path, value):
    with contextlib.suppress(KdkitError):
        loads(TEXT, overrides=[f"{'.'.join(path)}={value}"])
    with contextlib.suppress(KdkitError):
        load("kd_digits", [".".join(path) + value])


def test_importing_the_room_imports_no_torch():
    code = "import sys, kdkit.recipe; print({'torch', 'pytorch_lightning', 'timm', 'torchvision'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
