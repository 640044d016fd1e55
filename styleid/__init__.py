"""StyleID: the style of one picture on the content of another, with a pretrained latent diffusion model.

>>> import styleid
>>> picture = styleid.transfer("photo.jpg", "painting.jpg")  # doctest: +SKIP
>>> styleid.save_image("stylized.png", picture)  # doctest: +SKIP
"""

import styleid._onednn  # noqa: F401  first: it finds the library that _core needs
from styleid._core import ModelError, __version__
from styleid.colours import keep_colours
from styleid.images import load_image, save_image, to_array
from styleid.inversions.cache import Cache
from styleid.inversions.inversion import Inversion
from styleid.memory import free_memory, predict_memory
from styleid.method.calls import inject_styles, invert, transfer
from styleid.method.logits import LogitStatistics
from styleid.method.preview import Preview
from styleid.method.rates import decreasing
from styleid.models.loading import load_model, load_vae
from styleid.models.model import VAE, Model

__all__ = [
    "VAE",
    "Cache",
    "Inversion",
    "LogitStatistics",
    "Model",
    "ModelError",
    "Preview",
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
    "save_image",
    "to_array",
    "transfer",
]
