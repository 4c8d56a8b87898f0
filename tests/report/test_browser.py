"""The page in a real browser, where there is one: nothing is complained of, asked for, or wider than a phone."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from kdkit.report.page import write_report
from tests.report.making import EVIL, run

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    found = os.environ.get("KDKIT_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
    modules = Path(os.environ.get("KDKIT_NODE_MODULES", "node_modules"))
    if not found or not shutil.which("node") or not (modules / "puppeteer-core").is_dir():
        pytest.skip("no browser: KDKIT_BROWSER names a Chromium, KDKIT_NODE_MODULES a folder with puppeteer-core")
    return found, modules.resolve()


@pytest.mark.parametrize("word", ["nothing", EVIL], ids=["plain", "hostile"])
def test_the_page_in_a_browser(browser, tmp_path, word):
    page = write_report(run(tmp_path / "run", word=word))
    script = Path(__file__).with_name("shot.mjs")
    told = subprocess.run(
        ["node", script, page, browser[0]],
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
    assert found["zoomed"]
    for seen, width in zip(found["seen"], (1200, 1200, 390), strict=True):
        assert seen["wide"] == width
        assert seen["charts"] == 6
        assert "teacher" in seen["legend"]
        assert "72.34 %" in seen["legend"]  # the value under the pointer
    light, dark, _ = (seen["paper"] for seen in found["seen"])
    assert light != dark
