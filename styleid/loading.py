"""load_model: from what the user names to a `Model`."""

from __future__ import annotations

import operator
import os
import threading
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid._core import ModelError
from styleid.config import read_config
from styleid.model import Model
from styleid.prompts import PromptTokenizer, read_tokenizer
from styleid.tensors import read_tensors
from styleid.weights import engine_weights, read_component

if TYPE_CHECKING:
    from styleid._core import Config, Weight

DEFAULT_FOLDER = Path(__file__).parent / "data" / "default-model"


class Parts(NamedTuple):
    """What a model is made of, wherever it came from."""

    config: Config
    weights: dict[str, Weight]
    tokenizer: PromptTokenizer | None
    context: NDArray[np.float32] | None


def load_model(
    source: str | os.PathLike[str] = "default",
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
) -> Model:
    """Loads a Stable Diffusion 1.x or 2.x model, or another of that build.

    Args:
        source: "default", the small model that comes with the package, or a folder as diffusers writes it: unet/ and
            vae/ (config.json and safetensors, whole or in shards), scheduler/scheduler_config.json, and either
            text_encoder/ and tokenizer/ or context.safetensors with the tensor `empty_prompt` (1, tokens, channels)
        dtype: what is computed in: "float32", "bfloat16", or "auto": bfloat16 where the CPU computes it natively
        device: "auto" or "cpu"
        threads: None: what OMP_NUM_THREADS says, else one per physical core

    Raises:
        ModelError: the files are missing, damaged or not a model that can be computed; names the file and the fault
        TypeError, ValueError: an argument is not one of the above
    """
    dtype = _dtype(dtype)
    if device not in ("auto", "cpu"):
        raise ValueError(f"device: expected 'auto' or 'cpu', got {device!r}")
    threads = _threads(threads)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected 'default' or the path of a folder, got {type(source).__name__}")
    folder = DEFAULT_FOLDER if source == "default" else Path(source)
    try:
        parts = _read_folder(folder)
        return Model(
            parts.config,
            parts.weights,
            dtype,
            threads,
            tokenizer=parts.tokenizer,
            context=parts.context,
            source=os.fspath(source),
        )
    except ModelError as error:  # the engine does not know where its numbers came from
        raise ModelError(f"{folder}: {error}") from None
    except (ValueError, OSError) as error:
        raise ModelError(str(error)) from error


_default_lock = threading.Lock()


def default_model() -> Model:
    """The default model, loaded once in the life of the process."""
    with _default_lock:
        return _load_default()


@lru_cache(maxsize=1)
def _load_default() -> Model:
    return load_model()


def _dtype(dtype: str) -> str:
    if dtype == "auto":
        return "bfloat16" if _core.info()["native_bfloat16"] else "float32"
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype: expected 'auto', 'float32' or 'bfloat16', got {dtype!r}")
    return dtype


def _threads(threads: int | None) -> int:
    if threads is None:
        wish = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()  # a list is per nesting level
        return int(wish) if wish.isdecimal() and 1 <= int(wish) <= 1024 else int(_core.info()["threads"])
    try:
        threads = operator.index(threads)
    except TypeError:
        raise TypeError(f"threads: expected a whole number or None, got {type(threads).__name__}") from None
    if not 1 <= threads <= 1024:
        raise ValueError(f"threads: expected 1 to 1024, got {threads}")
    return threads


def _read_folder(folder: Path) -> Parts:
    """Reads a diffusers folder. ValueError naming the file and the fault."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected 'default' or a diffusers model folder")
    text_folder = folder / "text_encoder"
    text_config = text_folder / "config.json" if text_folder.is_dir() else None
    config = read_config(
        folder / "unet" / "config.json",
        folder / "vae" / "config.json",
        folder / "scheduler" / "scheduler_config.json",
        text_config,
    )
    tokenizer = context = text = None
    if config["text"]:
        text = read_component(text_folder, "model")
        tokenizer = read_tokenizer(folder / "tokenizer", config["text"]["positions"], config["text"]["vocabulary"])
    else:
        context = _read_context(folder / "context.safetensors", config["unet"]["context_size"])
    weights = engine_weights(
        read_component(folder / "unet", "diffusion_pytorch_model"),
        read_component(folder / "vae", "diffusion_pytorch_model"),
        text,
    )
    return Parts(config, weights, tokenizer, context)


def _read_context(path: Path, channels: int) -> NDArray[np.float32]:
    """The stored context of the empty prompt: (1, tokens, channels)."""
    if not path.is_file():
        raise ValueError(f"{path.parent}: neither text_encoder/ nor context.safetensors")
    tensor = read_tensors(path)[0].get("empty_prompt")
    if tensor is None or tensor.dtype not in ("F32", "F16", "BF16"):
        raise ValueError(f"{path}: expected a float tensor `empty_prompt`")
    if len(tensor.shape) != 3 or tensor.shape[0] != 1 or tensor.shape[1] < 1 or tensor.shape[2] != channels:
        raise ValueError(f"{path}: empty_prompt has the shape {tensor.shape}, expected (1, tokens, {channels})")
    context = tensor.float32()
    if not np.isfinite(context).all():
        raise ValueError(f"{path}: empty_prompt holds NaN or infinity")
    return context
