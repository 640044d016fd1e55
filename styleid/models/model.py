"""A loaded model: the engine's networks with what Python keeps around them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypedDict, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from styleid import _core
from styleid.files.tensors import releasing
from styleid.images import ImageLike, padded_size, to_array
from styleid.models.origin import Origin, remember
from styleid.models.placement import CPU
from styleid.models.prompts import Tokenize, describe
from styleid.numbers import whole

if TYPE_CHECKING:
    from typing_extensions import Self

    from styleid._core import Config, VAEAlone, Weight

Float32 = NDArray[np.float32]
HASHING = 8  # threads; more wait for the memory


LARGEST_SEED = (1 << 63) - 1  # the largest number that a column of a sweep's table holds


class Recommended(TypedDict, total=False):
    """Arguments of `transfer`, `invert` and `inject_styles` that suit a model better than the paper's."""

    gamma: float
    temperature: float
    layers: list[int]
    seed: int


class Configuration(dict[str, Any]):
    """A model's configuration, which does not print its thousand noise levels."""

    def __repr__(self) -> str:
        with np.printoptions(threshold=10, edgeitems=2):
            return super().__repr__()


class VAE:
    """Turns images into latents and back. Made by `load_vae`; every `Model` is a VAE as well.

    It never changes; any number of threads may use it at once.

    Attributes:
        source: where it was loaded from
        tiling: whether it works in tiles: "on", "off" or "auto"
    """

    def __init__(
        self,
        config: Config | VAEAlone,
        weights: Mapping[str, Weight],
        dtype: str,
        threads: int,
        *,
        device: int = CPU,
        tiling: str = "auto",
        source: str = "",
        origin: Origin | None = None,
    ) -> None:
        self._engine = _core.Model(config, weights, dtype, threads, tiling, device=device)
        self._scaling_factor = config["vae"]["scaling_factor"]
        self.tiling = tiling
        self.source = source
        self._origin = origin
        with releasing(weight["data"] for weight in weights.values()):
            self._fingerprint = fingerprint(config, weights, threads)

    def __repr__(self) -> str:
        return f"<styleid.VAE {self.source!r}, {self.dtype}, factor {self.vae_factor}>"

    @property
    def engine(self) -> _core.Model:
        """The C object that the functions of `styleid._core` take."""
        return self._engine

    @property
    def fingerprint(self) -> str:
        """A hash of the configuration and of all weights as they were loaded, with every LoRA and the VAE: 32 digits.

        Inversions carry it, and a model with another fingerprint refuses them.
        """
        return self._fingerprint

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Pickles where the model was loaded from, and how; a process that unpickles it has to find the same files there."""
        return remember(self, self._origin, self._fingerprint)

    def __copy__(self) -> Self:
        return self  # it never changes

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @property
    def dtype(self) -> str:
        """The type of weights and activations: "float32", "bfloat16", or on a GPU "float16"."""
        return self._engine.dtype

    @property
    def device(self) -> str:
        """The device that it computes on: "cpu", or a GPU such as "cuda:0"."""
        return self._engine.device

    @property
    def threads(self) -> int:
        """The number of threads that a call computes with."""
        return self._engine.threads

    @property
    def memory(self) -> int:
        """The bytes of the packed weights, in the device's memory."""
        return self._engine.memory

    @property
    def vae_factor(self) -> int:
        """Image pixels per latent pixel, in each direction."""
        return self._engine.vae_factor

    def encode(self, image: ImageLike, seed: int | None = None) -> Float32:
        r"""The image's latent z0: the mean of the VAE's posterior, or a sample of it, times the scaling factor.

        With a seed, the sample is $m + \exp(l / 2) n$, with the mean m, the logarithm l of the variance clipped to -30 .. 20,
        and standard normal noise n of `numpy.random.default_rng(seed)`.

        Args:
            image: as `styleid.to_array` takes it; height and width are multiples of `vae_factor`
            seed: the seed of the noise; None: the mean

        Returns:
            (1, C, h, w) float32

        Raises:
            TypeError, ValueError: as `styleid.to_array`; a size that does not fit; a seed for a VAE without posterior
        """
        array = to_array(image, "image")
        height, width = array.shape[:2]
        if height % self.vae_factor or width % self.vae_factor:
            raise ValueError(
                f"image: the image is {height}x{width} (height x width), but latents are of multiples of "
                f"{self.vae_factor}; resize it, such as with styleid.load_image(path, "
                f"size={padded_size((height, width), self.vae_factor)})"
            )
        mean = self._engine.encode(array[np.newaxis])
        if seed is None:
            return mean
        deviation = np.exp(np.clip(self._engine.log_variance(array[np.newaxis]), -30, 20) / 2)
        noise = _generator(seed).standard_normal(mean.shape, np.float32)
        return mean + np.float32(self._scaling_factor) * deviation * noise

    def decode(self, latent: ArrayLike) -> NDArray[np.uint8]:
        """The image of a (1, C, h, w) latent: (H, W, 3) uint8, rounded half to even. Raises TypeError or ValueError for
        anything else."""
        return cast(NDArray[np.uint8], self._engine.decode(_one_latent(latent))[0])

    def decode_float(self, latent: ArrayLike) -> Float32:
        """The image of a (1, C, h, w) latent, not rounded to 8 bits: (H, W, 3) float32, $(x + 1) / 2$ of the decoder's x, cut
        to [0, 1]. Raises TypeError or ValueError for anything else."""
        planes = self._engine.decode_float(_one_latent(latent))[0]
        image: Float32 = np.ascontiguousarray(((planes + 1) / 2).clip(0, 1).transpose(1, 2, 0))
        return image


class Model(VAE):
    """A latent diffusion model: UNet, VAE and text encoder (or one stored context). Made by `load_model`.

    It never changes; any number of threads may use it at once.

    Attributes:
        config: the configuration, as nested dictionaries of numbers
        source: where it was loaded from
        tiling: whether the VAE works in tiles: "on", "off" or "auto"
        recommended: the settings that its folder recommends (styleid.json), or {}: `transfer` and the other functions take
            these for gamma, temperature and layers that are not given
    """

    def __init__(
        self,
        config: Config,
        weights: Mapping[str, Weight],
        dtype: str,
        threads: int,
        *,
        device: int = CPU,
        tiling: str = "auto",
        tokenizer: Tokenize | None = None,
        context: Float32 | None = None,
        recommended: Recommended | None = None,
        source: str = "",
        origin: Origin | None = None,
    ) -> None:
        with releasing(weight["data"] for weight in weights.values()):
            super().__init__(
                config, weights, dtype, threads, device=device, tiling=tiling, source=source, origin=origin
            )
        self._tokenizer = tokenizer
        self._stored_context = context
        self.config = cast("Config", Configuration(config))
        self.recommended: Recommended = recommended or {}

    def __repr__(self) -> str:
        return f"<styleid.Model {self.source!r}, {self.dtype} on {self.device}, {self.image_size}x{self.image_size}>"

    @property
    def attention_layers(self) -> tuple[int, ...]:
        """The decoder layers that have self-attention, by the paper's numbers (0-11 in SD 1.x and 2.x)."""
        return self._engine.attention_layers

    @property
    def layer_count(self) -> int:
        """The number of decoder layers, with and without attention."""
        return self._engine.layer_count

    @property
    def image_multiple(self) -> int:
        """Images are computed in heights and widths that are multiples of this; others are padded for it."""
        return self.vae_factor * self._engine.latent_multiple

    @property
    def image_size(self) -> int:
        """The native height and width of images."""
        return self.config["unet"]["sample_size"] * self.vae_factor

    def layer_size(self, layer: int, latent_size: tuple[int, int]) -> tuple[int, int]:
        """The size (h, w) of a decoder layer's map, which has h * w tokens, for latents of `latent_size` (h, w)."""
        return self._engine.layer_shape(layer, *latent_size)[:2]

    def layer_channels(self, layer: int) -> int:
        """The channels of a decoder layer."""
        return self._engine.layer_shape(layer, 1, 1)[2]

    def heads(self, layer: int) -> int:
        """The attention heads of a decoder layer."""
        return self._engine.layer_shape(layer, 1, 1)[3]

    def scratch(self, batch: int, height: int, width: int) -> int:
        """The bytes of scratch that one evaluation takes for a batch of height x width images."""
        return self._engine.scratch(batch, height // self.vae_factor, width // self.vae_factor)

    def predict_noise(self, latents: ArrayLike, timestep: int, context: ArrayLike | None = None) -> Float32:
        """The raw output of the UNet: the noise, or v for a v-prediction model.

        Args:
            latents: (N, C, h, w) numbers, converted to float32
            timestep: 0 to 999
            context: (1 or N, tokens, channels); None: the empty prompt

        Returns:
            (N, C, h, w) float32

        Raises:
            TypeError, ValueError: naming the argument, what came and what was expected
        """
        known = self.empty_context if context is None else float32_array("context", context, 3)
        step = whole("timestep", timestep, 0, _core.TRAIN_STEPS - 1)
        return self._engine.predict_noise(float32_array("latents", latents, 4), step, known)

    def encode_prompt(self, text: str) -> Float32:
        """The (1, tokens, channels) float32 context of a text. Raises ValueError where the model knows the empty text only."""
        if not isinstance(text, str):
            raise TypeError(f"prompt: expected str, got {type(text).__name__}")
        if self._tokenizer is not None:
            return self._engine.encode_tokens(self._tokenizer(text))
        if text or self._stored_context is None:
            raise ValueError(f"prompt {text[:80]!r}: this model has no text encoder, so it takes the empty prompt only")
        return self._stored_context

    @cached_property
    def identity(self) -> str:
        """A hash of all that results depend on besides images and settings: `fingerprint`, the tokenizer or the stored context,
        the type of the numbers, tiling, and the device, instruction set and library that they are computed with.

        Whatever is kept under its name, such as an entry of `styleid.Cache`, is never another model's.
        """
        info = _core.info()
        parts = [
            self.fingerprint,
            describe(self._tokenizer),
            self.dtype,
            self.tiling,
            self.device,
            info["isa"],
            info["onednn"],
        ]
        if self._stored_context is not None:
            parts += [str(self._stored_context.shape), hashlib.sha256(self._stored_context.tobytes()).hexdigest()]
        return hashlib.sha256("\n".join([_core.__version__, *parts]).encode()).hexdigest()

    @cached_property
    def empty_context(self) -> Float32:
        """The (1, tokens, channels) float32 context of the empty prompt, which the method uses unless told otherwise."""
        return self.encode_prompt("")


def _one_latent(latent: ArrayLike) -> Float32:
    array = float32_array("latent", latent, 4)
    if len(array) != 1:
        raise ValueError(f"latent: expected the shape (1, C, h, w), got {array.shape}")
    return array


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(whole("seed", seed, 0, LARGEST_SEED))


def float32_array(name: str, value: ArrayLike, rank: int) -> Float32:
    """A C-contiguous float32 array of the given rank with finite numbers; raises TypeError or ValueError for others."""
    array = np.asarray(value)
    if array.dtype.kind not in "fiu":
        raise TypeError(f"{name}: expected an array of numbers, got {type(value).__name__} of dtype {array.dtype}")
    if array.ndim != rank or array.size == 0:
        raise ValueError(f"{name}: expected a non-empty array with {rank} dimensions, got the shape {array.shape}")
    with np.errstate(all="ignore"):  # what is too large becomes infinity, which is refused below
        array = np.ascontiguousarray(array, dtype=np.float32)
    if not np.isfinite(array).all():
        raise ValueError(f"{name}: holds NaN or infinity")
    return array


def fingerprint(config: Config | VAEAlone, weights: Mapping[str, Weight], threads: int) -> str:
    """A hash of the configuration and of all weights: names, types, shapes and every byte. Weights are hashed side by side."""
    parts: dict[str, Any] = {**config, "alphas": config["alphas"].tobytes().hex()}
    digest = hashlib.sha256(repr(parts).encode())
    names = sorted(weights)
    with ThreadPoolExecutor(min(threads, HASHING)) as pool:
        for each in pool.map(_hash_weight, names, map(weights.__getitem__, names)):
            digest.update(each)
    return digest.hexdigest()[:32]


def _hash_weight(name: str, weight: Weight) -> bytes:
    digest = hashlib.sha256(f"{name} {weight['dtype']} {tuple(weight['shape'])}".encode())
    digest.update(memoryview(weight["data"]).cast("B"))
    return digest.digest()
