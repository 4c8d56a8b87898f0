"""The page in a real browser, where there is one: nothing is complained of, asked for, or wider than a phone."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kdkit.bench.page import page as suite_page
from kdkit.bench.table import blocks
from kdkit.report.page import write_report
from tests.bench.test_table import grid
from tests.report.making import EVIL, RICH, run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("KDKIT_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    modules = Path(os.environ.get("KDKIT_NODE_MODULES", "node_modules"))
    if not found or not shutil.which("node") or not (modules / "puppeteer-core").is_dir():
        pytest.skip("no browser: KDKIT_BROWSER names a Chromium, KDKIT_NODE_MODULES a folder with puppeteer-core")
    return found, modules.resolve()


def shown(browser, page):
    """What the script tells of a page, which neither complains nor asks for anything nor is wider than its window."""
    told = subprocess.run(
        ["node", Path(__file__).with_name("shot.mjs"), page, browser[0]],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "KDKIT_NODE_MODULES": str(browser[1])},
    )
    assert told.returncode == 0, told.stderr
    found = json.loads(told.stdout)
    assert found["complaints"] == []
    assert found["requests"] == []
    assert [seen["wide"] for seen in found["seen"]] == [1200, 1200, 390]
    light, dark, _ = (seen["paper"] for seen in found["seen"])
    assert light != dark
    return found


@pytest.mark.parametrize("word", ["nothing", EVIL], ids=["plain", "hostile"])
def test_the_page_in_a_browser(browser, tmp_path, word):
    stages = f"stages: [{{name: first, when: {{to: 0.5}}}}, {{name: {json.dumps(word)}, when: {{from: 0.5}}}}]\n"
    found = shown(browser, write_report(run(tmp_path / "run", recipe=RICH + stages, word=word)))
    assert found["zoomed"]
    for seen in found["seen"]:
        assert seen["charts"] == 6
        assert "teacher" in seen["legend"]
        assert "72.34 %" in seen["legend"]  # the value under the pointer


@pytest.mark.parametrize("name", ["kd", "a_method_without_an_end_" * 9])
def test_a_suites_page_in_a_browser(browser, tmp_path, name):
    """Its tables are wider than a phone, and scroll in their own boxes."""
    rows = [{**row, "pair": name, "method": name if row["method"] == "kd" else row["method"]} for row in grid()]
    path = tmp_path / "report.html"
    path.write_text(suite_page(blocks(rows)))
    assert [seen["dim"] for seen in shown(browser, path)["seen"]] == [0, 0, 0]  # what is ticked is lit
