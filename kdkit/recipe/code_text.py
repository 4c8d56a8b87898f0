"""One's own Python by what is in it: a file, and the modules beside it that it imports."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from pathlib import Path


def digest_of_code(file: Path) -> str:
    """A digest of a file's text and of that of whatever it imports from its own folder.

    Raises:
        OSError: it cannot be read.
    """
    first, *others = _texts(file)
    digest = hashlib.sha256(first)
    for text in others:
        digest.update(hashlib.sha256(text).digest())
    return digest.hexdigest()


def _texts(file: Path) -> list[bytes]:
    """The file's, and then the others' in the order of their paths."""
    found, waiting = {file: file.read_bytes()}, [file]
    while waiting:
        path = waiting.pop()
        for module in _imported(path, found[path], file.parent):
            if module not in found:
                found[module] = module.read_bytes()
                waiting.append(module)
    return [found.pop(file), *(found[path] for path in sorted(found))]


def _imported(path: Path, text: bytes, folder: Path) -> Iterator[Path]:
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):  # told where it is run
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _files(folder, alias.name.split("."))
        elif isinstance(node, ast.ImportFrom):
            base = path.parents[node.level - 1] if 0 < node.level <= len(path.parents) else folder
            module = node.module.split(".") if node.module else []
            for alias in node.names:
                yield from _files(base, [*module, alias.name])


def _files(base: Path, names: list[str]) -> Iterator[Path]:
    """What lies there of a package, its parts and a module in it; the last name may be something inside one."""
    for i in range(1, len(names) + 1):
        place = base.joinpath(*names[:i])
        yield from (file for file in (place.with_name(f"{place.name}.py"), place / "__init__.py") if file.is_file())
