"""Models by name, their weights files, and the heads between them."""

from kdkit.models.build import build, builtin, copied, list_models, normalisation, seeded
from kdkit.models.catalogue import MODELS
from kdkit.models.weights import check_saved, load_weights, read_metadata, read_weights, save_weights

__all__ = [
    "MODELS",
    "build",
    "builtin",
    "check_saved",
    "copied",
    "list_models",
    "load_weights",
    "normalisation",
    "read_metadata",
    "read_weights",
    "save_weights",
    "seeded",
]
