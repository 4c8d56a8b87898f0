"""kdkit: models are nodes, losses are edges; a recipe is that graph, written down.

Everything here is imported when it is first used, so that `import kdkit.losses` needs torch alone.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kdkit.graph import Edge as Edge
    from kdkit.graph import Node as Node
    from kdkit.graph import Stage as Stage
    from kdkit.graph import ema as ema
    from kdkit.graph import frozen as frozen
    from kdkit.registry import KdkitError as KdkitError
    from kdkit.train.cohort import Cohort as Cohort
    from kdkit.train.distiller import Distiller as Distiller
    from kdkit.train.health import Health as Health

__version__ = "0.1.0"

_WHERE = {
    "Cohort": "kdkit.train.cohort",
    "Distiller": "kdkit.train.distiller",
    "Edge": "kdkit.graph",
    "Health": "kdkit.train.health",
    "KdkitError": "kdkit.registry",
    "Node": "kdkit.graph",
    "Stage": "kdkit.graph",
    "ema": "kdkit.graph",
    "frozen": "kdkit.graph",
}
__all__ = ["Cohort", "Distiller", "Edge", "Health", "KdkitError", "Node", "Stage", "ema", "frozen"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(import_module(_WHERE[name]), name)
    raise AttributeError(f"module 'kdkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
