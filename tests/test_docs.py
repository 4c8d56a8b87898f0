"""What the documents say is what the code says."""

import importlib.util
import re
from pathlib import Path

import pytest

from kdkit.recipe import packaged
from kdkit.registry import LOSSES

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def catalogue():
    spec = importlib.util.spec_from_file_location("catalogue", ROOT / "docs" / "catalogue.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_losses_are_made_from_the_code(catalogue):
    assert (ROOT / "docs" / "losses.md").read_text() == catalogue.catalogue(), "run python docs/catalogue.py"
    assert (ROOT / "README.md").read_text() == catalogue.readme(), "run python docs/catalogue.py"
    assert (ROOT / "docs" / "reproduce.md").read_text() == catalogue.reproduce(), "run python docs/catalogue.py"
    assert all(f"| `{name}` |" in (ROOT / "README.md").read_text() for name in LOSSES)


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert links
    missing = [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()]
    assert not missing


def test_every_recipe_that_a_document_names_is_there():
    names = {info.name for info in packaged()}
    text = (ROOT / "README.md").read_text() + "".join(p.read_text() for p in (ROOT / "docs").glob("*.md"))
    words = re.findall(r"kdkit (?:fit|check) (\S+)", text)
    told = {word.removeprefix("recipes/").removesuffix(".yaml") for word in words} - {"RECIPE"}
    assert told
    assert not {name for name in told if name not in names and not name.startswith(("recipe", "my_"))}
