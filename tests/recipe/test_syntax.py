"""YAML as a recipe reads it: 1.2 scalars, marks on everything, nothing that can surprise."""

from pathlib import Path

import pytest

from kdkit.recipe import RecipeError, load
from kdkit.recipe.errors import Mark
from kdkit.recipe.syntax import parse, parse_value, read, scalar
from kdkit.recipe.write import dump


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("5e-4", 0.0005),
        ("1e-3", 0.001),
        ("5.0e-4", 0.0005),
        (".5", 0.5),
        ("-3", -3),
        ("012", 12),  # YAML 1.1: 10
        ("0x1F", 31),
        ("0o17", 15),
        (".inf", float("inf")),
        ("-.inf", float("-inf")),
        ("true", True),
        ("False", False),
        ("~", None),
        ("", None),
        ("1:30", "1:30"),  # YAML 1.1: 90
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("no", "no"),
        ("1_000", "1_000"),
        ("2020-01-01", "2020-01-01"),
        ("truE", "truE"),
        ("1e", "1e"),
        ("٣", "٣"),  # a digit to Python, not to YAML
    ],
)
def test_scalars_are_yaml_1_2(text, value):
    assert scalar(text) == value
    assert type(scalar(text)) is type(value)


def test_quoted_scalars_stay_text():
    assert parse("a: '5'\nb: \"true\"\non: x", "f").plain == {"a": "5", "b": "true", "on": "x"}


def test_a_number_too_long_for_an_integer_is_a_float():
    assert scalar("9" * 5000) == float("inf")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("a: !!python/object/apply:os.system ['true']", r"f:1: tags \(tag:.*os.system\) are refused"),
        ("x: 1\na: !!python/name:os.system", "f:2: tags"),
        ("a: !!str 5", "f:1: tags"),
        ("a: &x 1", r"f:1: anchors \(&x\) are refused"),
        ("a: 1\nb: *x", r"f:2: aliases \(\*x\) are refused; write the value out"),
        ("a: [1, 2\nb: 3\n", "f:2: not YAML: expected ',' or ']'"),
        ("a: 1\n\tb: 2", "f:2: not YAML: a tab, which YAML does not take here; use spaces"),
        ("a: b: c", "f:1: not YAML: mapping values are not allowed here"),
        ("a: 1\n---\nb: 2", "f:2: not YAML: expected a single document"),
        ("a: \x07", "f:1: not text"),
        (
            "a: 1\nb:\n  c: 1\n  c: 2\na: 3\n",
            r"2 problems\n  1\. f:4: 'c' stands twice, first at f:3.*\n  2\. f:5: 'a'",
        ),
        ("? [a]\n: 1", "f:1: a key must be a word"),
        ("", "f: is empty; `kdkit init`"),
        ("# a comment\n", "f: is empty"),
        ("- a", "f:1: must be a mapping such as `models: …`, got a list"),
        ("\n\n42", "f:3: must be a mapping such as `models: …`, got the single value 42"),
        ("[" * 5000, "f:1: nested more than 20 deep"),
        ('a: "\\U99999999"', "f: not YAML"),
        ("%YAML " + "1" * 5000 + ".1\n---\na: 1", "f: not YAML"),
    ],
)
def test_what_is_refused(text, right):
    with pytest.raises(RecipeError, match=right):
        parse(text, "f")


def test_every_item_knows_its_line():
    found = parse("a: 1\nb:\n  - x\n  - c: 2\n    d: {e: 3}\n", "f")
    assert [found.at(loc).line for loc in [("a",), ("b",), ("b", 1), ("b", 1, "d"), ("b", 1, "d", "e")]] == [
        1,
        2,
        4,
        5,
        5,
    ]
    assert found.at(("b", 1, "union tag", "d", "missing")).line == 5


def test_an_overrides_value_stands_at_the_override():
    mark = Mark("override 'x'")
    found = parse_value("{a: [1, two], b: 5e-4}", mark)
    assert found.plain == {"a": [1, "two"], "b": 0.0005}
    assert {found.at(loc) for loc in [(), ("a",), ("a", 1)]} == {mark}
    assert parse_value("", mark).plain is None


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(RecipeError, match=r"none\.yaml: no such file"):
        load(tmp_path / "none.yaml")
    with pytest.raises(RecipeError, match="is a folder; give the recipe's"):
        load(tmp_path)
    (tmp_path / "latin.yaml").write_bytes("a: 1\nb: caf\xe9\n".encode("latin-1"))
    with pytest.raises(RecipeError, match=r"latin\.yaml:2: must be UTF-8 text, got byte 0xe9"):
        load(tmp_path / "latin.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * (1 << 16) + b"##")
    with pytest.raises(RecipeError, match="at most 64 kB"):
        load(tmp_path / "large.yaml")
    with pytest.raises(RecipeError, match="cannot be read"):
        load("a\0.yaml")


def test_a_byte_order_mark_is_no_key(tmp_path: Path):
    (tmp_path / "bom.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read(tmp_path / "bom.yaml").plain == {"a": 1}


def test_what_is_dumped_is_read_back():
    content = {
        "texts": [
            "5e-4",
            "012",
            "0o7",
            "yes",
            "1:30",
            "",
            "a: b",
            "# x",
            "- y",
            "é",
            "a\nb",
            "null",
            "true",
            "1e3",
            " z ",
        ],
        "numbers": [1, 0.1, 1e-7, 1e22, -0.0, float("inf"), True, None],
        "deep": {"a": {"b": [{"c": []}, {}]}},
        "same": [[1], [1]],
    }
    assert parse(dump(content), "f").plain == content
