"""load_model and load_vae: they turn what the user names into a `Model` or a `VAE`."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from styleid._core import ModelError
from styleid.files.disk import read_json
from styleid.files.tensors import read_tensors
from styleid.models import lora
from styleid.models.config import STANDARD_ALPHAS, read_config
from styleid.models.hub import NAME, fetch
from styleid.models.ldm import convert
from styleid.models.model import LARGEST_SEED, VAE, Model, Recommended
from styleid.models.origin import Origin
from styleid.models.placement import place
from styleid.models.prompts import EmptyPromptTokenizer, Tokenize, read_tokenizer
from styleid.models.vae import read as read_vae
from styleid.models.weights import STEMS, engine_weights, read_component, read_weights
from styleid.numbers import whole
from styleid.processors import MOST, default_threads

if TYPE_CHECKING:
    from styleid._core import Config, TextConfig, VAEAlone, Weight
    from styleid.models.ldm import Prediction
    from styleid.models.vae import Contents as VAEContents

LARGEST = 1 << 31  # numbers of one weight; the largest of Stable Diffusion 2 has 2^26
DEFAULT_FOLDER = Path(__file__).parents[1] / "data" / "default-model"


class Parts(NamedTuple):
    """The parts of a model, whatever it was read from."""

    config: Config
    weights: dict[str, Weight]
    tokenizer: Tokenize | None
    context: NDArray[np.float32] | None
    recommended: Recommended


def load_model(
    source: str | os.PathLike[str] = "default",
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    prediction: str | None = None,
    loras: Sequence[tuple[str | os.PathLike[str], float]] = (),
    vae: str | os.PathLike[str] | None = None,
    tiling: str | bool = "auto",
    ema: bool = False,
) -> Model:
    """Loads a Stable Diffusion 1.x or 2.x model, or another model of that build.

    Args:
        source: one of
            - "default", the small model that is shipped with the package
            - a folder as diffusers writes it: unet/ and vae/ (config.json and weights, whole or in shards),
              scheduler/scheduler_config.json, and either text_encoder/ and tokenizer/ or context.safetensors with
              the tensor `empty_prompt` (1, tokens, channels)
            - a single file in the original naming: safetensors, GGUF, or a PyTorch checkpoint (of which nothing is run); with
              a folder tokenizer/ beside it any prompt can be used, else the empty one
            - the name of a model on the Hugging Face hub, "owner/name" or "owner/name@revision", unless there is such
              a file or folder
        dtype: the type to compute in: "float32", "bfloat16", on a GPU also "float16"; "auto": float16 on a GPU, on the CPU
            bfloat16 where it computes that natively, else float32
        device: "cpu"; "cuda" or "cuda:1", an NVIDIA GPU; "auto": the first GPU where driver, libraries and memory allow it,
            else the CPU
        threads: None: what OMP_NUM_THREADS says, else one for each physical core that the process may run on, or as
            many as its control groups' CPU quotas allow where that is less
        prediction: what the model predicts, "epsilon" or "v_prediction"; None: what its files say
        loras: LoRA files or folders as kohya-ss, diffusers, PEFT and others write them, which are merged into the weights,
            each with its weight: [("a.safetensors", 0.8)]
        vae: a VAE to take in place of the model's own: a folder with diffusers' AutoencoderKL or AutoencoderTiny (or with
            such a folder vae/), a file in the original naming, one of TAESD's own two files, or a name on the hub
        tiling: True: encode and decode in overlapping tiles, in bounded memory and close to exact; False: whole images;
            "auto": tiles above 768 x 768 pixels
        ema: take the running means of the UNet's weights that a training left in a single file (`model_ema.*`)

    Raises:
        ModelError: the files are missing, damaged or not a model that can be computed; names the file and the fault
        TypeError, ValueError: an argument is not one of the above
        MemoryError: the weights take more memory than is free
    """
    options: dict[str, Any] = {
        "source": source, "dtype": dtype, "device": device, "threads": threads, "prediction": prediction, "vae": vae,
        "tiling": tiling, "ema": ema,
    }  # fmt: skip
    place(device, dtype)  # what keeps a device from being used is known before anything is read
    threads = _threads(threads)
    if prediction not in (None, "epsilon", "v_prediction"):
        raise ValueError(f"prediction: expected None, 'epsilon' or 'v_prediction', got {prediction!r}")
    changes = lora.check(loras)
    tiles = _tiling(tiling)
    if vae is not None and not isinstance(vae, (str, os.PathLike)):
        raise TypeError(f"vae: expected None or a path, got {type(vae).__name__}")
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected 'default' or a path, got {type(source).__name__}")
    name = os.fsdecode(source)
    path = DEFAULT_FOLDER if name == "default" else Path(name)
    try:
        if not path.exists() and NAME.fullmatch(name):
            path = fetch(name)
        other = None if vae is None else read_vae(os.fsdecode(vae))
        parts = _read(path, cast("Prediction | None", prediction), bool(ema), other)
        ours, theirs = parts.config["vae"]["latent_channels"], parts.config["unet"]["in_channels"]
        if other is not None and ours != theirs:
            raise ValueError(f"{vae}: the VAE's latents have {ours} channels, but the UNet takes {theirs}")
        sizes = [math.prod(weight["shape"]) for weight in parts.weights.values()]
        known = sum(size for size in sizes if size < LARGEST)  # a larger one is no layer's, as the engine says
        placement = place(device, dtype, known)
        return Model(
            parts.config,
            lora.merge(parts.weights, changes),
            placement.dtype,
            threads,
            device=placement.device,
            tiling=tiles,
            tokenizer=parts.tokenizer,
            context=parts.context,
            recommended=parts.recommended,
            source=name,
            origin=Origin(load_model, options | {"loras": changes}),
        )
    except ModelError as error:  # the engine does not know where its numbers came from
        raise ModelError(f"{path}{f' with the VAE {vae}' if vae else ''}: {error}") from None
    except (ValueError, OSError) as error:
        raise ModelError(str(error)) from error


def load_vae(
    source: str | os.PathLike[str],
    dtype: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    tiling: str | bool = "auto",
) -> VAE:
    """Loads a VAE alone, such as a TAESD to decode previews with.

    Args:
        source: as `vae` of `load_model`: a folder, which may be a whole model's, a file, or a name on the hub
        dtype, device, threads, tiling: as there

    Raises:
        ModelError: the files are missing, damaged or not a VAE that can be computed; names the file and the fault
        TypeError, ValueError: an argument is not one of the above
    """
    options = {"source": source, "dtype": dtype, "device": device, "threads": threads, "tiling": tiling}
    place(device, dtype)  # what keeps a device from being used is known before anything is read
    threads, tiles = _threads(threads), _tiling(tiling)
    if not isinstance(source, (str, os.PathLike)):
        raise TypeError(f"source: expected a path, got {type(source).__name__}")
    try:
        found = read_vae(os.fsdecode(source))
        alone: VAEAlone = {"unet": None, "vae": found.config, "text": None, "alphas": STANDARD_ALPHAS}
        weights = engine_weights({}, found.tensors, None)
        placement = place(device, dtype, sum(math.prod(weight["shape"]) for weight in weights.values()))
        return VAE(
            alone,
            weights,
            placement.dtype,
            threads,
            device=placement.device,
            tiling=tiles,
            source=os.fsdecode(source),
            origin=Origin(load_vae, options),
        )
    except ModelError as error:
        raise ModelError(f"{source}: {error}") from None
    except (ValueError, OSError) as error:
        raise ModelError(str(error)) from error


_default_lock = threading.Lock()


def _renew_lock() -> None:
    """In the child of a fork, where the thread that may have held it is gone."""
    global _default_lock
    _default_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


def default_model() -> Model:
    """The default model, loaded once in the life of the process."""
    with _default_lock:
        return _load_default()


@lru_cache(maxsize=1)
def _load_default() -> Model:
    return load_model()


def _tiling(tiling: str | bool) -> str:
    """The argument `tiling` as the engine takes it."""
    if tiling is not True and tiling is not False and tiling != "auto":
        raise ValueError(f"tiling: expected 'auto', True or False, got {tiling!r}")
    return "auto" if tiling == "auto" else "on" if tiling else "off"


def _threads(threads: int | None) -> int:
    if threads is None:
        return default_threads()[0]
    return whole("threads", threads, 1, MOST)


def _read(path: Path, prediction: Prediction | None, ema: bool, vae: VAEContents | None) -> Parts:
    """Reads whatever is there, with the given VAE in place of its own. ValueError naming the file and the fault."""
    if path.is_file():
        return _read_file(path, prediction, ema, vae)
    if not path.is_dir():
        raise ValueError(f"{path}: no such file or folder, and not of the form owner/name of a model on the hub")
    if ema:
        raise ValueError(f"{path}: ema: only single files in the original naming hold running means beside the weights")
    return _read_folder(path, prediction, vae)


def _read_file(path: Path, prediction: Prediction | None, ema: bool, vae: VAEContents | None) -> Parts:
    """Reads a single file in the original naming, and the tokenizer beside it."""
    tensors, metadata = read_weights(path)
    found = convert(path, tensors, metadata, prediction, ema, vae)
    text = found.config["text"]
    assert text is not None
    tokenizer = _tokenizer(path.parent / "tokenizer", text)
    return Parts(found.config, engine_weights(found.unet, found.vae, found.text), tokenizer, None, {})


def _tokenizer(folder: Path, text: TextConfig) -> Tokenize:
    """The tokenizer in a folder; where there is no such folder, one that knows the empty prompt."""
    if folder.is_dir():
        return read_tokenizer(folder, text["positions"], text["vocabulary"])
    pads_with_zero = text["activation"] == "gelu"  # SD 2.x; 1.x pads with the end token
    return EmptyPromptTokenizer(text["vocabulary"], text["positions"], pads_with_zero)


def _read_folder(folder: Path, prediction: Prediction | None, vae: VAEContents | None) -> Parts:
    """Reads a diffusers folder."""
    text_folder = folder / "text_encoder"
    text_config = text_folder / "config.json" if text_folder.is_dir() else None
    config = read_config(
        folder / "unet" / "config.json",
        folder / "vae" / "config.json" if vae is None else vae.config,
        folder / "scheduler" / "scheduler_config.json",
        text_config,
    )
    if prediction is not None:
        config["unet"]["prediction"] = prediction
    tokenizer = context = text = None
    if config["text"]:
        text = read_component(text_folder, STEMS["text_encoder"])
        tokenizer = _tokenizer(folder / "tokenizer", config["text"])
    else:
        context = _read_context(folder / "context.safetensors", config["unet"]["context_size"])
    weights = engine_weights(
        read_component(folder / "unet", STEMS["unet"]),
        read_component(folder / "vae", STEMS["vae"]) if vae is None else vae.tensors,
        text,
    )
    return Parts(config, weights, tokenizer, context, _read_recommended(folder / "styleid.json"))


def _read_recommended(path: Path) -> Recommended:
    """The settings that a model's folder recommends for itself; none where it has no such file."""
    if not path.exists():
        return {}
    values = read_json(path)
    if unknown := values.keys() - {"gamma", "temperature", "layers", "seed"}:
        raise ValueError(f"{path}: unknown key {min(unknown)!r}, expected gamma, temperature, layers or seed")
    for key, least, most in (("gamma", 0, 1), ("temperature", 1e-3, 1e3)):
        value = values.get(key, least)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not least <= value <= most:
            raise ValueError(f"{path}: {key} is {value!r}, expected {least:g} to {most:g}")
    layers = values.get("layers", [])
    if not isinstance(layers, list) or not all(type(layer) is int and 0 <= layer < 64 for layer in layers):
        raise ValueError(f"{path}: layers is {layers!r}, expected a list of layer numbers")
    seed = values.get("seed", 0)
    if type(seed) is not int or not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"{path}: seed is {seed!r}, expected a whole number from 0 to {LARGEST_SEED}")
    return cast("Recommended", values)


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
