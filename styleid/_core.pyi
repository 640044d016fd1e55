"""The C engine: the method on NumPy arrays. The package `styleid` adds defaults, loading and conveniences."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray

__version__: str
ISAS: tuple[str, ...]  # the instruction sets that there are kernels for, each including the ones before it
DTYPES: tuple[str, ...]  # what numbers can be kept and computed in
SCHEDULES: tuple[str, ...]
TRAIN_STEPS: int  # the timesteps that a model knows, and the most steps of a schedule

Float32: TypeAlias = NDArray[np.float32]
Feature: TypeAlias = NDArray[np.float32] | NDArray[np.uint16] | NDArray[np.float16]  # uint16: the bits of bfloat16
Progress: TypeAlias = Callable[[int, int], object]
Hook: TypeAlias = Callable[[int, int, Float32], object]
# on_attention(step, layer, query, key, value) -> None, or three arrays, None among them for what was given
OnAttention: TypeAlias = Callable[
    [int, int, Float32, Float32, Float32], tuple[Float32 | None, Float32 | None, Float32 | None] | None
]
Sink: TypeAlias = Callable[[int, list[Features]], object]

@final
class DeviceArray:
    """Features in a GPU's memory. array[step] and numpy.asarray(array) copy them to the host."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def dtype(self) -> np.dtype[Any]:
        """float32, float16, or uint16: the bits of bfloat16."""
    @property
    def nbytes(self) -> int: ...
    @property
    def device(self) -> str: ...
    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, key: Any) -> NDArray[Any]: ...
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]: ...
    def __dlpack__(self, **options: Any) -> Any: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def copy(self) -> NDArray[Any]: ...

class ModelError(ValueError):
    """A model's configuration or weights cannot be used."""

class UNetConfig(TypedDict):
    in_channels: int
    out_channels: int
    channels: Sequence[int]  # per level, full resolution first
    heads: Sequence[int]  # number of attention heads per level
    attention: Sequence[bool]  # levels that have transformers
    layers_per_block: int
    linear_projection: bool
    context_size: int
    groups: int
    eps: float
    prediction: Literal["epsilon", "v_prediction"]
    sample_size: int

class KLConfig(TypedDict):
    image_channels: int
    latent_channels: int
    channels: Sequence[int]
    layers_per_block: int
    groups: int
    scaling_factor: float
    mid_attention: bool
    quant_conv: bool
    post_quant_conv: bool

class TinyConfig(TypedDict):
    kind: Literal["tiny"]
    image_channels: int
    latent_channels: int
    channels: Sequence[int]  # per level, all the same
    encoder_blocks: Sequence[int]  # per level, in the order in which they run
    decoder_blocks: Sequence[int]
    scaling_factor: float

VAEConfig: TypeAlias = KLConfig | TinyConfig

class TextConfig(TypedDict):
    vocabulary: int
    positions: int
    channels: int
    hidden: int  # width of the feed-forward layers
    layers: int
    heads: int
    activation: Literal["quick_gelu", "gelu"]

class Config(TypedDict):
    unet: UNetConfig
    vae: VAEConfig
    text: TextConfig | None
    alphas: NDArray[np.float64]  # (1000,) cumulative product of 1 - beta

class VAEAlone(TypedDict):  # in place of Config: a Model that encodes and decodes only
    unet: None
    vae: VAEConfig
    text: None
    alphas: NDArray[np.float64]

class Weight(TypedDict):
    dtype: Literal["F32", "F16", "BF16"]
    shape: Sequence[int]
    data: Any  # a contiguous buffer of exactly that many bytes

class Features(TypedDict):
    query: dict[int, Feature]  # layer -> (steps, tokens, channels); empty where not kept
    key: dict[int, Feature]
    value: dict[int, Feature]

class Regions(TypedDict):
    bias: dict[int, Float32]  # layer -> (styles, content tokens): added to the logits of a style's keys; may be -inf
    cover: dict[int, Float32]  # layer -> (content tokens,): the share of the injected attention; the rest is plain
    key_bias: Sequence[dict[int, Float32]]  # per style: layer -> (style tokens,): added to the logits of each key

class InversionData(Features):
    latents: Float32  # (steps + 1, C, h, w): the input of every evaluation, then zT
    predicted: Float32  # (steps, C, h, w): x0 by every evaluation; not read

class Recomputed(TypedDict):
    """In place of InversionData: its features are evaluated again, each before the sampling step that injects it."""

    latents: Float32
    context: Float32  # of the inversion
    feature_dtype: str  # one of DTYPES: what they are rounded to

class Schedule(TypedDict):
    timesteps: NDArray[np.int32]  # of the inversion, ascending; feature slot i belongs to timesteps[i]
    sampling: NDArray[np.int32]  # feature slots in the order of the sampling's evaluations
    starts: NDArray[np.int32]  # the inversion's latents whose level each of those takes, as an index into InversionData
    levels: NDArray[np.float64]  # alpha of what goes into each of those, then of what comes out of the last
    layers: tuple[int, ...]  # injected by default
    adain_epsilon: float  # added to the content's standard deviation
    truncate: bool  # 8-bit output: truncated, else rounded half to even

@final
class Model:
    """An immutable model with packed weights; any number of threads may use it at once.

    Weights are named `unet.*`, `vae.*` and `text.*` followed by the diffusers / transformers name
    (`text.text_model.…` without the leading `text_model.`). Nothing of `weights` is kept.
    dtype: "float32", "bfloat16" or, on a GPU, "float16": the type of every activation and packed weight.
    device: an NVIDIA GPU's number, after cuda_libraries(); -1: the CPU.
    tiling: whether encode and decode work in overlapping tiles: "on", "off", or "auto": above 768 x 768 pixels.
    Raises ModelError naming the first missing, misshaped or unknown weight.
    """

    def __new__(
        cls,
        config: Config | VAEAlone,
        weights: Mapping[str, Weight],
        dtype: str = "float32",
        threads: int = 1,
        tiling: str = "auto",
        device: int = -1,
    ) -> Model: ...
    @property
    def dtype(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def threads(self) -> int: ...
    @property
    def memory(self) -> int: ...  # bytes of packed weights
    @property
    def idle(self) -> int: ...  # bytes of scratch that wait for the next run
    @property
    def attention_layers(self) -> tuple[int, ...]: ...
    @property
    def layer_count(self) -> int: ...  # decoder layers, with and without attention
    @property
    def latent_multiple(self) -> int: ...  # heights and widths of the UNet's latents are multiples of this
    @property
    def vae_factor(self) -> int: ...  # image pixels per latent pixel, in each direction
    def layer_shape(self, layer: int, height: int, width: int) -> tuple[int, int, int, int]:
        """(h, w, channels, heads) of a decoder layer's map, which has h * w tokens, where the latent is height x width."""
    def scratch(self, batch: int, height: int, width: int) -> int:
        """Bytes of scratch that one UNet evaluation on latents (batch, C, height, width) takes."""
    def vae_scratch(self, height: int, width: int) -> int:
        """Bytes of scratch that encoding or decoding a height x width image takes, whichever is more."""
    def predict_noise(self, latents: Float32, timestep: int, context: Float32) -> Float32:
        """The raw UNet output. latents (N, C, h, w), context (1 or N, tokens, context_size)."""
    def encode(self, images: NDArray[np.uint8] | Float32) -> Float32:
        """(N, H, W, 3) uint8 or float32 in [0, 1] -> (N, C, h, w): the posterior's mean * scaling_factor."""
    def log_variance(self, images: NDArray[np.uint8] | Float32) -> Float32:
        """As encode -> (N, C, h, w): the logarithm of the posterior's variance. ValueError where there is no posterior."""
    def decode(self, latents: Float32, truncate: bool = False) -> NDArray[np.uint8]:
        """(N, C, h, w) -> (N, H, W, 3)."""
    def decode_float(self, latents: Float32) -> Float32:
        """(N, C, h, w) -> (N, 3, H, W): the decoder's raw output, about [-1, 1], not clamped."""
    def encode_tokens(self, tokens: NDArray[np.int32]) -> Float32:
        """(N, L) token numbers -> (N, L, channels): the last layer's output after the final layer norm."""

def info() -> dict[str, Any]:
    """{"onednn": "3.2.0", "onednn_threading": "OpenMP", "isa": the one in use, "isas": those that the CPU has,
    "native_bfloat16": bool, "threads": default thread count}"""

class Device(TypedDict):
    name: str
    architecture: int  # 10 * major + minor of the compute capability
    total: int  # bytes of memory

def cuda_driver(path: str) -> int:
    """Opens NVIDIA's driver, once; 1000 * major + 10 * minor of the latest CUDA that it supports. ValueError: there is none."""

def cuda_libraries(nvrtc: str, cublaslt: str, cudnn: str) -> dict[str, str]:
    """Opens the libraries at these paths, once; their versions. ValueError says what to install or update."""

def cuda_devices() -> list[Device]: ...
def cuda_free_memory(device: int) -> int:
    """Bytes; makes the device's context."""

def timesteps(steps: int) -> NDArray[np.int32]:
    """The timesteps that an inversion of `steps` steps evaluates, ascending: 1 + i (1000 // steps), at most 999."""

def schedule(model: Model, name: str, steps: int) -> Schedule: ...
def invert(
    model: Model,
    latents: Float32,  # (N, C, h, w) scaled latents z0, all inverted as one batch
    context: Float32,  # (1, tokens, context_size)
    steps: int,
    schedule: str,  # one of SCHEDULES
    layers: Sequence[int],
    keep: Sequence[str],  # per image: "query", "keys" (keys and values), "both" or "none"
    feature_dtype: str,  # one of DTYPES
    progress: Progress | None = None,
    hook: Hook | None = None,  # hook(step, steps, latents): may change the latents in place
    negative: Float32 | None = None,  # (1, tokens, context_size): e = e_negative + guidance (e_context - e_negative)
    guidance: float = 1.0,  # unused where negative is None: then nothing more is evaluated
    *,
    on_attention: OnAttention | None = None,  # after features were kept; for each image in turn
    watched: Sequence[int] | None = None,  # the layers that it sees; None: `layers`
    sink: Sink | None = None,  # sink(step, features of that step): then nothing else keeps them
    refine: int = 0,  # further evaluations a step
    on_host: bool = False,  # keep features in the host's memory though the model is on a GPU
) -> list[InversionData]:
    """With a sink, arrays of features have room for one step, which the next one overwrites."""

def features(
    model: Model,
    latents: Float32,  # (N, C, h, w): what inversion step `step` evaluated, as one batch
    context: Float32,
    steps: int,
    schedule: str,
    layers: Sequence[int],
    keep: Sequence[str],
    feature_dtype: str,
    step: int,
) -> list[Features]:
    """The features of one evaluation, (1, tokens, channels) each."""

def sample(
    model: Model,
    latent: Float32,  # (1, C, h, w): zT
    context: Float32,
    steps: int,
    schedule: str,
    layers: Sequence[int],  # empty: nothing is injected
    content: InversionData | Recomputed | None,
    styles: Sequence[InversionData | Recomputed],
    weights: Sequence[float],  # one per style
    gamma: Float32,  # (steps, decoder layers), by feature slot
    temperature: Float32,  # (steps, decoder layers)
    progress: Progress | None = None,
    hook: Hook | None = None,
    negative: Float32 | None = None,
    guidance: float = 1.0,
    *,
    inject: str = "qkv",  # of the content's queries and the styles' keys and values, those that are injected
    regions: Regions | None = None,  # layers that are not in it: everywhere
    on_attention: OnAttention | None = None,  # of what is injected, or of the layer's own
    watched: Sequence[int] | None = None,  # the layers that it sees; None: `layers`
    skip: int = 0,  # of the first evaluations
    where: NDArray[np.uint8] | None = None,  # (steps, decoder layers): 0 where nothing is injected; None: 1
) -> Float32:
    """DDIM sampling from zT with injection -> z0 (1, C, h, w)."""

def predicted(before: Float32, after: Float32, level: float, next_level: float) -> Float32:
    """x0 (N, C, h, w) as the evaluation had it whose move from a level to the next, higher one led from `before` to `after`.

    e = (after - sqrt(next_level / level) before) / (sqrt(1 - next_level) - sqrt(next_level / level) sqrt(1 - level)),
    x0 = (before - sqrt(1 - level) e) / sqrt(level).
    """

def adain(content: Float32, style: Float32, epsilon: float = 0.0) -> Float32:
    """std(style) * (content - mean(content)) / (std(content) + epsilon) + mean(style), per channel; std unbiased."""

def inject_styles(
    model: Model,
    latent: Float32,
    context: Float32,
    steps: int,
    schedule: str,
    layers: Sequence[int],
    content: InversionData | Recomputed | None,
    styles: Sequence[InversionData | Recomputed],
    weights: Sequence[float],
    gamma: Float32,
    temperature: Float32,
    progress: Progress | None = None,
    hook: Hook | None = None,
    negative: Float32 | None = None,
    guidance: float = 1.0,
    *,
    inject: str = "qkv",
    regions: Regions | None = None,
    on_attention: OnAttention | None = None,
    watched: Sequence[int] | None = None,
    skip: int = 0,
    where: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """sample, and what its result decodes to: (H, W, 3)."""

def transfer(
    model: Model,
    content: NDArray[np.uint8] | Float32,  # (H, W, 3)
    style: NDArray[np.uint8] | Float32,
    context: Float32,
    steps: int,
    schedule: str,
    layers: Sequence[int],
    gamma: Float32,
    temperature: Float32,
    adain: bool = True,
    progress: Progress | None = None,
) -> NDArray[np.uint8]:
    """encode + invert (one batch where the sizes agree) + adain + inject_styles -> (H, W, 3)."""
