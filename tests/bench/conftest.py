import pytest


@pytest.fixture(autouse=True)
def _home(tmp_path, monkeypatch):
    monkeypatch.setenv("KDKIT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
