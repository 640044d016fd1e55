"""StyleID gives an image the style of another one with a pretrained latent diffusion model, without training.

>>> import styleid
>>> image = styleid.transfer("photo.jpg", "painting.jpg")  # doctest: +SKIP
>>> styleid.save_image("stylized.png", image)  # doctest: +SKIP

`styleid.viz`, `styleid.metrics` and `styleid.study` are loaded when they are first used.
"""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

import styleid._onednn  # noqa: F401  first: it finds the library that _core needs
from styleid._core import ModelError, __version__
from styleid.colours import keep_colours
from styleid.display import Shown, show
from styleid.images import load_image, save_image, to_array
from styleid.inversions.cache import Cache
from styleid.inversions.inversion import Inversion
from styleid.memory import free_memory
from styleid.metadata import Metadata, read_settings
from styleid.method.calls import inject_styles, invert, transfer
from styleid.method.logits import LogitStatistics
from styleid.method.options import Accuracy, Hooks, Mix, Resize, Start, Storage, Text
from styleid.method.plan import predict_memory
from styleid.method.preview import Preview
from styleid.method.rates import decreasing
from styleid.models.loading import load_model, load_vae
from styleid.models.model import VAE, Model

if TYPE_CHECKING:
    from styleid import metrics, study, viz  # noqa: F401

LAZY = ("metrics", "study", "viz")

__all__ = [
    "VAE",
    "Accuracy",
    "Cache",
    "Hooks",
    "Inversion",
    "LogitStatistics",
    "Metadata",
    "Mix",
    "Model",
    "ModelError",
    "Preview",
    "Resize",
    "Shown",
    "Start",
    "Storage",
    "Text",
    "__version__",
    "decreasing",
    "free_memory",
    "inject_styles",
    "invert",
    "keep_colours",
    "load_image",
    "load_model",
    "load_vae",
    "predict_memory",
    "read_settings",
    "save_image",
    "show",
    "to_array",
    "transfer",
]


def __getattr__(name: str) -> ModuleType:
    """The modules that need more than the method does."""
    if name not in LAZY:
        raise AttributeError(f"module 'styleid' has no attribute {name!r}")
    try:
        return import_module(f"styleid.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != "matplotlib":
            raise
        raise ImportError("styleid.viz draws with Matplotlib: pip install 'styleid[viz]'", name=error.name) from None


def __dir__() -> list[str]:
    return sorted([*globals(), *LAZY])
