"""Raw rows out of run folders: `python -m benchmarks.rows RUN… --out benchmarks/results/NAME.jsonl`.

One JSON line a run: its figures, seed, commit, machine, versions and the whole resolved recipe, paths relative to the
working directory. Rows are appended; a run that has its row already (same content, same start) is left alone.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from kdkit.recipe import load
from kdkit.registry import KdkitError
from kdkit.runs.folder import RunFolder
from kdkit.runs.result import check_metrics, read_figures


def row(path: Path) -> dict[str, Any]:
    """Everything that a table needs to know of one finished run."""
    folder = RunFolder(path)
    if not folder.complete:
        raise KdkitError(f"{path} holds no finished run")
    check_metrics(folder)
    figures = read_figures(folder)
    origin = json.loads(folder.provenance.read_text(encoding="utf-8"))
    text = folder.recipe.read_text(encoding="utf-8")
    return {"run": path.name, **figures, **origin, "recipe": text.replace(f"{Path.cwd()}/", "")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("runs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    lines = given.out.read_text(encoding="utf-8").splitlines() if given.out.exists() else []
    known = {(old["content"], old["started"]) for old in map(json.loads, lines)}
    for path in given.runs:
        new = row(path)
        load(path / "recipe.yaml")  # a row whose recipe cannot be run again is worth nothing
        if (new["content"], new["started"]) not in known:
            with given.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(new, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
