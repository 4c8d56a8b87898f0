"""One's own Python by what is in it: a file or a module, and what of the same folder it imports."""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from sysconfig import get_path


def digest_of_code(file: Path, folder: Path) -> str:
    """A digest of a file's text and of that of whatever it imports from a folder.

    Raises:
        OSError: it cannot be read.
    """
    first, *others = files_of_code(file, folder).values()
    digest = hashlib.sha256(first)
    for text in others:
        digest.update(hashlib.sha256(text).digest())
    return digest.hexdigest()


def files_of_code(file: Path, folder: Path) -> dict[Path, bytes]:
    """A file of code with its text, then whatever it imports from a folder, in the order of their paths.

    Raises:
        OSError: one cannot be read.
    """
    found, waiting = {file: file.read_bytes()}, [file]
    while waiting:
        path = waiting.pop()
        for module in _imported(path, found[path], folder):
            if module not in found:
                found[module] = module.read_bytes()
                waiting.append(module)
    return {path: found[path] for path in (file, *sorted(found.keys() - {file}))}


def own_module(place: str, folder: Path) -> tuple[Path, Path] | None:
    """The file of `package.module` and the folder that its package lies in; nothing of it is imported.

    Args:
        place: the module's name.
        folder: in which packages are looked for where none is installed; then the working directory.

    Returns:
        `None` for what is installed, which its version stands for, and for what is no module of Python.
    """
    from kdkit.models.custom import searching

    names = place.split(".")
    if names[0] == "kdkit" or not all(name.isidentifier() for name in names):
        return None
    with searching(folder, Path.cwd()):
        try:
            spec = find_spec(names[0])
        except (ImportError, ValueError):  # what runs now, or stands in for a module
            return None
    top = Path(next(iter(spec.submodule_search_locations or ()), spec.origin or "")) if spec else Path()
    if not top.is_absolute() or _installed(top):
        return None
    return next(((file, top.parent) for file in reversed([*_files(top.parent, names)])), None)


def _installed(place: Path) -> bool:
    """In a folder that pip or the system fills, and not somebody's own."""
    return place.is_relative_to(get_path("stdlib")) or not {"site-packages", "dist-packages"}.isdisjoint(place.parts)


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
