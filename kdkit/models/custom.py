"""Anybody's own model: `package.module:callable`, or `file.py:callable` beside the recipe."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from kdkit import draws
from kdkit.consent import REFUSED, own_code_runs
from kdkit.fault import what, where
from kdkit.registry import KdkitError, UnknownNameError, nearest

TOOLS = {*sys.stdlib_module_names, "numpy", "pip", "setuptools"}  # what loads or runs whatever it is given
NO_MODEL = "{}: {} makes no model and no loss; name a package that does, or a file beside the recipe"


def load_factory(spec: str, base: Path | None = None) -> Callable[..., Any]:
    """The class or function that `spec` names; importing runs the user's code.

    Args:
        spec: `package.module:callable` or `file.py:callable`.
        base: folder that a relative file, and the packages, are looked up in; then the working directory.

    Raises:
        KdkitError: no such file or package, or an exception inside it, shown with its line.
        UnknownNameError: no such name inside; the nearest ones are offered.
    """
    if not own_code_runs():
        raise KdkitError(REFUSED.format(spec))
    place, _, name = spec.rpartition(":")
    if not place or not name:
        raise KdkitError(f"{spec}: must be package.module:callable or file.py:callable")
    if place.partition(".")[0] in TOOLS:
        raise KdkitError(NO_MODEL.format(spec, place))
    folder = Path(base or ".").resolve()
    module = _from_file(folder / os.path.expanduser(place)) if place.endswith(".py") else _from_package(place, folder)
    if not hasattr(module, name):
        public = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        hint = nearest(name, public) or f"; it has: {', '.join(public) or 'nothing to call'}"
        raise UnknownNameError(f"{place} has no {name!r}{hint}")
    factory = getattr(module, name)
    if isinstance(factory, nn.Module):
        raise KdkitError(f"{spec}: must be a class or a function, got a {type(factory).__name__} already built")
    if not place.endswith(".py") and _tool(factory):
        raise KdkitError(NO_MODEL.format(spec, name))
    try:
        inspect.signature(factory)
    except (TypeError, ValueError):
        raise KdkitError(f"{spec}: must be a class or a function of Python, got {factory!r}") from None
    return factory  # type: ignore[no-any-return]


def _tool(factory: Any) -> bool:
    """Whether a name that a package hands on is a tool's."""
    home = str(factory.__module__).partition(".")[0] if inspect.isroutine(factory) or inspect.isclass(factory) else ""
    return home in TOOLS or (home == "torch" and not (inspect.isclass(factory) and issubclass(factory, nn.Module)))


def accepts(factory: Callable[..., Any], keyword: str) -> bool:
    """Whether `factory` takes the keyword, by name or by `**`."""
    parameters = inspect.signature(factory).parameters.values()
    return any(p.name == keyword or p.kind is p.VAR_KEYWORD for p in parameters)


def call(factory: Callable[..., Any], arch: str, keywords: dict[str, Any]) -> nn.Module:
    """Build the model; a factory's own failure becomes one error that shows the line it happened on."""
    signature = inspect.signature(factory)
    try:
        signature.bind(**keywords)
    except TypeError as error:
        known = ", ".join(str(p) for p in signature.parameters.values())
        raise KdkitError(f"{arch}: {error}; it takes: {known or 'nothing'}") from None
    try:
        net = factory(**keywords)
    except KdkitError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ValueError) and str(error).startswith(f"{arch}: "):  # which says it all
            raise KdkitError(str(error)) from error
        raise KdkitError(f"{arch}: could not be built{given(keywords)}{told(error)}") from error
    if not isinstance(net, nn.Module):
        raise KdkitError(f"{arch}: must give an nn.Module, got {type(net).__name__}")
    return net


def given(keywords: Mapping[str, Any]) -> str:
    """` with depth=3`: what a recipe's options gave to a factory that failed."""
    shown = {w: type(v).__name__ if isinstance(v, nn.Module) else repr(v) for w, v in keywords.items()}
    said = [f"{word}={value}" for word, value in shown.items() if word != "num_classes"]
    return f" with {', '.join(said)}" if said else ""


def told(error: BaseException) -> str:
    """`: ValueError: …`, after the user's own line where there is one."""
    line = where(error)
    return f"\n  {line}\n  {what(error)}" if line else f": {what(error)}"


def _from_package(place: str, folder: Path) -> ModuleType:
    with searching(folder, Path.cwd()):
        try:
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and (place == error.name or place.startswith(f"{error.name}.")):
                raise KdkitError(f"{place}: no such module, looked in {folder} and in the installed packages") from None
            raise KdkitError(f"{place}: could not be imported{told(error)}") from error
        except (Exception, SystemExit) as error:
            raise KdkitError(f"{place}: could not be imported{told(error)}") from error


def _from_file(path: Path) -> ModuleType:
    if not os.path.isfile(path):
        raise KdkitError(
            f"{path}: no such file; a path in a recipe is relative to the recipe's folder, one on the command line to "
            "the working directory"
        )
    # Named for path and time: two nodes share one class, an edited file is read anew, and instances can be pickled.
    name = f"kdkit_file_{path.stem}_{draws.key(str(path), path.stat().st_mtime_ns) & 0xFFFFFFFF:08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with searching(path.parent):
        try:
            spec.loader.exec_module(module)
        except (Exception, SystemExit) as error:
            del sys.modules[name]
            raise KdkitError(f"{path}: could not be imported{told(error)}") from error
    return module


@contextmanager
def searching(*folders: Path) -> Iterator[None]:
    """The folders are importable for a while, after everything installed."""
    before = list(sys.path)
    sys.path += [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before
