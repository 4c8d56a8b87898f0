"""What kdkit is built from and built into: bounds, a wheel of the same bytes everywhere, and an honest audit."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("kdkit", "recipes", "README.md", "LICENSE", "pyproject.toml", "benchmarks/results/digits.jsonl")


def build(folder, mask, **environment):
    """The wheel of a copy of the checkout."""
    for name in PARTS:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(
                ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile
            )
        else:
            shutil.copyfile(ROOT / name, folder / name)
    for i, path in enumerate(sorted(folder.rglob("*.py"))):
        os.utime(path, (mask * 1e6 + i, mask * 1e6 + i))
    words = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder / "dist"]
    told = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000", **environment}
    subprocess.run(words, cwd=folder, env=told, umask=mask, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build(tmp_path_factory.mktemp("here"), 0o022)


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(name).decode())


def test_the_wheel_is_the_same_bytes_wherever_it_is_built(wheel, tmp_path):
    again = build(tmp_path / "elsewhere", 0o077, TZ="Asia/Tokyo", LC_ALL="C", PYTHONHASHSEED="7")
    first, second = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (wheel, again))
    assert first == second
    assert wheel.name == again.name
    print(f"\nfigure: two builds in other folders, time zones and umasks, sha256 {first[:16]}… both times")


def test_the_wheel_holds_what_kdkit_needs_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert all(archive.getinfo(name).external_attr >> 16 & 0o777 in (0o644, 0o664) for name in names)
    code = {str(path.relative_to(ROOT)) for path in (ROOT / "kdkit").rglob("*") if path.is_file()}
    code = {name for name in code if "__pycache__" not in name}
    recipes = {f"kdkit/_{path.relative_to(ROOT)}" for path in (ROOT / "recipes").rglob("*") if path.is_file()}
    rest = {name for name in names - code - recipes if ".dist-info/" not in name}
    assert code | recipes <= names
    assert rest == {"kdkit/_results/digits.jsonl"}
    assert "kdkit/py.typed" in names
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_every_dependency_has_a_lower_bound(metadata):
    needed = [Requirement(line) for line in metadata.get_all("Requires-Dist")]
    assert len(needed) > 12
    assert [str(one) for one in needed if not {spec.operator for spec in one.specifier} & {">=", "=="}] == []


def test_both_environments_are_tested_somewhere(metadata):
    suite = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]["suite"]
    pythons = {one["dependencies"]: one["python"] for one in suite["strategy"]["matrix"]["include"]}
    assert set(pythons) == {"oldest", "newest"}
    assert SpecifierSet(metadata["Requires-Python"]) == SpecifierSet(f">={pythons['oldest']}")


@pytest.fixture(scope="module")
def audit():
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SOUND = {"name": "rich", "version": "15.0", "vulns": []}
SICK = {"name": "jinja2", "version": "2.10", "vulns": [{"id": "PYSEC-2019-217", "fix_versions": ["2.10.1"]}]}
GONE = {"name": "torch", "skip_reason": "Dependency not found on PyPI and could not be audited: torch (2.15+cpu)"}
OWN = {"name": "kdkit", "skip_reason": "distribution marked as editable"}


@pytest.mark.parametrize(
    ("packages", "code", "said"),
    [
        ([SOUND, OWN], 0, "1 packages checked, 0 known vulnerabilities"),
        ([SOUND, GONE], 0, "not checked, for the service does not know them: torch"),
        ([SOUND, SICK, GONE], 1, "jinja2 2.10: PYSEC-2019-217, mended in 2.10.1"),
        ([GONE, OWN], 3, "NOT CHECKED: the advisory service knows none of the 1 packages"),
        ([], 3, "NOT CHECKED"),
    ],
)
def test_an_audit_that_checked_nothing_is_no_pass(audit, packages, code, said):
    found = audit.verdict(packages)
    assert found[0] == code
    assert said in found[1]


def test_a_tool_without_an_answer_is_no_pass(audit, tmp_path, capsys):
    tool = tmp_path / "pip-audit"
    tool.write_text("#!/bin/sh\necho 'ConnectionError: api.osv.dev' >&2\nexit 1\n")
    tool.chmod(0o755)
    assert audit.main(str(tool)) == 3
    assert capsys.readouterr().out == "audit: NOT CHECKED: pip-audit has no answer: ConnectionError: api.osv.dev\n"
