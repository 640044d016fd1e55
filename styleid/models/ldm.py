"""Single files in the naming of the original latent diffusion program, as Stable Diffusion 1.x and 2.x were published.

They hold UNet, VAE and text encoder of one model, and no configuration: its numbers are found from names and shapes.
Names: CompVis/stable-diffusion and Stability-AI/stablediffusion (ldm/modules), open_clip for the text encoder of 2.x.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from styleid import _core
from styleid.files.tensors import Tensor
from styleid.models.config import STANDARD_ALPHAS
from styleid.models.weights import add_tensor

if TYPE_CHECKING:
    from styleid._core import Config, KLConfig, TextConfig, UNetConfig
    from styleid.models.vae import Contents as VAEContents

Prediction = Literal["epsilon", "v_prediction"]
Tensors = dict[str, Tensor]

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model."
EMA = "model_ema."  # running means of the UNet's weights, by names without dots
CLIP, OPEN_CLIP = "transformer.", "model."  # of the text encoder: SD 1.x, SD 2.x
PREDICTIONS: Mapping[str, Prediction] = {"epsilon": "epsilon", "v": "v_prediction"}  # in a file's metadata
NATIVE_SIZE: Mapping[Prediction, int] = {"epsilon": 64, "v_prediction": 96}  # of latents, as SD was trained
GROUPS, HEAD_SIZE, HEADS_OF_1X, LAYERS_OF_2X = 32, 64, 8, 23
# Numbers between this and the standard noise levels are those levels rounded, not others.
ROUNDING = {"F32": 1e-4, "F16": 2e-3, "BF16": 1e-2}

# What files hold besides: copies for training, tables that follow from the noise levels, parts that only rank images.
UNUSED = re.compile(
    r"model_ema\..*|(\w+_)?alphas_cumprod(_prev)?|betas|(posterior|sqrt|log|lvlb)_\w+|logvar"
    r"|cond_stage_model\.(transformer\.|model\.)?(logit_scale|text_projection(\.weight)?|attn_mask)"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"
)
VAE_UNUSED = re.compile(r"(loss|model_ema)\..*")  # of a VAE's own file: what it was trained with
UNET_INNER = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
VAE_INNER = {
    "nin_shortcut": "conv_shortcut",
    "norm": "group_norm",
    "q": "to_q",
    "k": "to_k",
    "v": "to_v",
    "proj_out": "to_out.0",
}
TEXT_INNER = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "attn.out_proj": "self_attn.out_proj",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


class Contents(NamedTuple):
    """A single file as a diffusers folder would have it: the configuration, and each part's tensors by its names."""

    config: Config
    unet: Tensors
    vae: Tensors
    text: Tensors


def convert(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str],
    prediction: Prediction | None,
    ema: bool = False,
    vae: VAEContents | None = None,
) -> Contents:
    """The model in a file's tensors. ValueError naming the file and the tensor that is missing or unknown.

    prediction: what the UNet predicts, for files that do not say; None: what the metadata say, else noise.
    ema: take the running means of the UNet's weights, where the training kept them, for the weights themselves.
    vae: in place of the file's own, which then need not be there.
    """
    parts: dict[str, Tensors] = {UNET: {}, VAE: {}, TEXT: {}}
    for name, tensor in tensors.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if UNUSED.fullmatch(name):
            continue
        if prefix is None:
            raise ValueError(f"{path}: unknown tensor {name[:120]!r}; expected a model in the original naming")
        parts[prefix][name.removeprefix(prefix)] = tensor
    if ema:
        parts[UNET] = {name: _mean(path, tensors, name) for name in parts[UNET]}
    if empty := [prefix for prefix, part in parts.items() if not part and (prefix != VAE or vae is None)]:
        raise ValueError(f"{path}: no tensors {empty[0]}*; expected UNet, VAE and text encoder of one model")
    stated = prediction or PREDICTIONS.get(metadata.get("modelspec.prediction_type", ""))
    try:
        unet_config, unet = _unet(parts[UNET], stated or "epsilon")
        vae_config, vae_tensors = vae or _vae(parts[VAE])
        text_config, text = _text(parts[TEXT], unet_config["linear_projection"], _is_published(tensors))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if stated is None and unet_config["linear_projection"]:
        warnings.warn(
            f"{path}: a model of the 2.x family that does not say what it predicts; taken for 'epsilon' (as 2.0-base "
            "and 2.1-base). If images come out as noise (as of 2.1 for 768 pixels), say prediction='v_prediction'",
            stacklevel=4,
        )
    if text_config["channels"] != unet_config["context_size"]:
        raise ValueError(
            f"{path}: the UNet takes contexts of {unet_config['context_size']} numbers, "
            f"but the text encoder gives {text_config['channels']}"
        )
    alphas = _alphas(tensors.get("alphas_cumprod"), path)
    config: Config = {"unet": unet_config, "vae": vae_config, "text": text_config, "alphas": alphas}
    return Contents(config, unet, vae_tensors, text)


def _mean(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """The running mean of one of the UNet's weights."""
    mean = EMA + (UNET.removeprefix("model.") + name).replace(".", "")
    if mean not in tensors:
        raise ValueError(f"{path}: ema: it has no running mean of {(UNET + name)[:120]!r}; load it without")
    return tensors[mean]


def convert_vae(path: Path, tensors: Mapping[str, Tensor]) -> tuple[KLConfig, Tensors]:
    """The VAE alone, of a whole model's file or of one that holds nothing else. ValueError naming the file and the fault."""
    whole = any(name.startswith(VAE) for name in tensors)
    own = {
        name.removeprefix(VAE): tensor
        for name, tensor in tensors.items()
        if (name.startswith(VAE) if whole else not VAE_UNUSED.fullmatch(name))
    }
    try:
        return _vae(own)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _alphas(stored: Tensor | None, path: Path) -> NDArray[np.float64]:
    """The noise levels of the file, if they differ from Stable Diffusion's."""
    if stored is None:
        return STANDARD_ALPHAS
    if stored.dtype not in ROUNDING or stored.shape != (_core.TRAIN_STEPS,):
        raise ValueError(f"{path}: alphas_cumprod: expected {_core.TRAIN_STEPS} floating-point numbers")
    alphas = stored.float32().astype(np.float64)
    if np.allclose(alphas, STANDARD_ALPHAS, rtol=ROUNDING[stored.dtype], atol=0):
        return STANDARD_ALPHAS
    if not np.all((alphas > 0) & (alphas < 1)) or np.any(np.diff(alphas) > 0):
        raise ValueError(f"{path}: alphas_cumprod must fall, from below 1 to above 0")
    return alphas


# ---- UNet ----


def _unet(tensors: Tensors, prediction: Prediction) -> tuple[UNetConfig, Tensors]:
    """The UNet's configuration as its tensors' shapes tell it, and the tensors by the modern names."""
    per_block = _count(tensors, "input_blocks.{}.0.in_layers.2.weight", 1)
    stride = per_block + 1  # a down-sampling follows each level but the last
    levels = 1
    while f"input_blocks.{levels * stride}.0.op.weight" in tensors:
        levels += 1
    first_blocks = [f"input_blocks.{1 + level * stride}" for level in range(levels)]
    channels = [_shape(tensors, f"{block}.0.out_layers.3.weight", 4)[0] for block in first_blocks]
    linear = len(_tensor(tensors, "middle_block.1.proj_in.weight").shape) == 2
    config: UNetConfig = {
        "in_channels": _shape(tensors, "input_blocks.0.0.weight", 4)[1],
        "out_channels": _shape(tensors, "out.2.weight", 4)[0],
        "channels": channels,
        "heads": [max(1, width // HEAD_SIZE) if linear else HEADS_OF_1X for width in channels],
        "attention": [f"{block}.1.norm.weight" in tensors for block in first_blocks],
        "layers_per_block": per_block,
        "linear_projection": linear,
        "context_size": _shape(tensors, "middle_block.1.transformer_blocks.0.attn2.to_k.weight", 2)[1],
        "groups": GROUPS,
        "eps": 1e-5,
        "prediction": prediction,
        "sample_size": NATIVE_SIZE[prediction],
    }
    return config, _rename(tensors, dict(unet_modules(levels, per_block)), UNET_INNER)


def unet_modules(levels: int, per_block: int) -> Iterator[tuple[str, str]]:
    """The modules' original and modern names."""
    yield "time_embed.0", "time_embedding.linear_1"
    yield "time_embed.2", "time_embedding.linear_2"
    yield "input_blocks.0.0", "conv_in"
    yield "middle_block.0", "mid_block.resnets.0"
    yield "middle_block.1", "mid_block.attentions.0"
    yield "middle_block.2", "mid_block.resnets.1"
    yield "out.0", "conv_norm_out"
    yield "out.2", "conv_out"
    for level in range(levels):
        for i in range(per_block):
            block = f"input_blocks.{1 + level * (per_block + 1) + i}"
            yield f"{block}.0", f"down_blocks.{level}.resnets.{i}"
            yield f"{block}.1", f"down_blocks.{level}.attentions.{i}"
        yield f"input_blocks.{(level + 1) * (per_block + 1)}.0.op", f"down_blocks.{level}.downsamplers.0.conv"
        for i in range(per_block + 1):
            block = f"output_blocks.{level * (per_block + 1) + i}"
            yield f"{block}.0", f"up_blocks.{level}.resnets.{i}"
            yield f"{block}.1", f"up_blocks.{level}.attentions.{i}"
            for place in (1, 2):  # after the attention, where there is one
                yield f"{block}.{place}.conv", f"up_blocks.{level}.upsamplers.0.conv"


# ---- VAE ----


def _vae(tensors: Tensors) -> tuple[KLConfig, Tensors]:
    """The VAE's configuration as its tensors' shapes tell it, and the tensors by the modern names."""
    levels = _count(tensors, "encoder.down.{}.block.0.conv1.weight")
    per_block = _count(tensors, "encoder.down.0.block.{}.conv1.weight")
    config: KLConfig = {
        "image_channels": 3,
        "latent_channels": _shape(tensors, "decoder.conv_in.weight", 4)[1],
        "channels": [_shape(tensors, f"encoder.down.{level}.block.0.conv1.weight", 4)[0] for level in range(levels)],
        "layers_per_block": per_block,
        "groups": GROUPS,
        "scaling_factor": 0.18215,
        "mid_attention": "encoder.mid.attn_1.q.weight" in tensors,
        "quant_conv": "quant_conv.weight" in tensors,
        "post_quant_conv": "post_quant_conv.weight" in tensors,
    }
    return config, _rename(tensors, dict(_vae_modules(levels, per_block)), VAE_INNER)


def _vae_modules(levels: int, per_block: int) -> Iterator[tuple[str, str]]:
    """The modules' original and modern names. The original names number the decoder's levels as the encoder's."""
    yield "quant_conv", "quant_conv"
    yield "post_quant_conv", "post_quant_conv"
    for half in "encoder", "decoder":
        yield f"{half}.conv_in", f"{half}.conv_in"
        yield f"{half}.mid.block_1", f"{half}.mid_block.resnets.0"
        yield f"{half}.mid.attn_1", f"{half}.mid_block.attentions.0"
        yield f"{half}.mid.block_2", f"{half}.mid_block.resnets.1"
        yield f"{half}.norm_out", f"{half}.conv_norm_out"
        yield f"{half}.conv_out", f"{half}.conv_out"
    for level in range(levels):
        up = levels - 1 - level
        for i in range(per_block):
            yield f"encoder.down.{level}.block.{i}", f"encoder.down_blocks.{level}.resnets.{i}"
        for i in range(per_block + 1):
            yield f"decoder.up.{up}.block.{i}", f"decoder.up_blocks.{level}.resnets.{i}"
        yield f"encoder.down.{level}.downsample.conv", f"encoder.down_blocks.{level}.downsamplers.0.conv"
        yield f"decoder.up.{up}.upsample.conv", f"decoder.up_blocks.{level}.upsamplers.0.conv"


# ---- text encoder ----


def _is_published(tensors: Mapping[str, Tensor]) -> bool:
    """Whether open_clip's text encoder is there as published: with tensors that only its other half, for images, needs."""
    return any(f"{TEXT}{OPEN_CLIP}{name}" in tensors for name in ("text_projection", "logit_scale"))


def _text(tensors: Tensors, is_2x: bool, published: bool) -> tuple[TextConfig, Tensors]:
    """The text encoder's configuration as its tensors' shapes tell it, and the tensors by the names of transformers'
    CLIPTextModel.

    is_2x: the UNet is one of the 2.x family, whose text encoder is OpenCLIP's, by its own names or by CLIP's
    """
    open_clip = any(name.startswith(OPEN_CLIP) for name in tensors)
    text = _open_clip(tensors, published) if open_clip else _clip(tensors, is_2x)
    vocabulary, channels = _shape(text, "embeddings.token_embedding.weight", 2)
    positions, _ = _shape(text, "embeddings.position_embedding.weight", 2)
    if vocabulary < 2 or positions < 2:
        raise ValueError("the text encoder has no room for the empty prompt's two tokens")
    config: TextConfig = {
        "vocabulary": vocabulary,
        "positions": positions,
        "channels": channels,
        "hidden": _shape(text, "encoder.layers.0.mlp.fc1.weight", 2)[0],
        "layers": _count(text, "encoder.layers.{}.mlp.fc1.weight"),
        "heads": max(1, channels // HEAD_SIZE),
        "activation": "gelu" if open_clip or is_2x else "quick_gelu",
    }
    return config, text


def _clip(tensors: Tensors, is_2x: bool) -> Tensors:
    """transformers' own names, below one or two levels; of 2.x's 24 layers, as stable-diffusion.cpp names them, the first 23."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        if not name.startswith(CLIP):
            raise ValueError(f"unknown tensor {name[:120]!r}")
        inner = name.removeprefix(CLIP).removeprefix("text_model.")
        if not (is_2x and inner.startswith(f"encoder.layers.{LAYERS_OF_2X}.")):
            add_tensor(found, inner, tensor)
    return found


def _open_clip(tensors: Tensors, published: bool) -> Tensors:
    """The names of open_clip's text transformer, of the layers that are used.

    SD 2.x takes what the last layer but one gives, of the 24 that were published. Files that were converted from diffusers'
    layout hold those 23 alone. Of transformers of other depths, what else was published with them tells.
    """
    layers = _count(tensors, OPEN_CLIP + "transformer.resblocks.{}.ln_1.weight")
    used = layers - (layers == LAYERS_OF_2X + 1 or (published and layers not in (1, LAYERS_OF_2X)))
    modules = {
        f"{OPEN_CLIP}token_embedding": "embeddings.token_embedding",
        f"{OPEN_CLIP}ln_final": "final_layer_norm",
    }
    modules |= {f"{OPEN_CLIP}transformer.resblocks.{i}": f"encoder.layers.{i}" for i in range(used)}
    plain: Tensors = {}
    found: Tensors = {}
    for name, tensor in tensors.items():
        fused = re.fullmatch(r"model\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)", name)
        if used < layers and name.startswith(f"{OPEN_CLIP}transformer.resblocks.{used}."):
            continue
        if name == f"{OPEN_CLIP}positional_embedding":
            found["embeddings.position_embedding.weight"] = tensor
        elif fused:
            for part, third in zip("qkv", _thirds(name, tensor), strict=True):
                found[f"encoder.layers.{fused[1]}.self_attn.{part}_proj.{fused[2]}"] = third
        else:
            plain[name] = tensor
    return found | _rename(plain, modules, TEXT_INNER)


def _thirds(name: str, tensor: Tensor) -> Iterator[Tensor]:
    """The projections to queries, keys and values, which are stored as one."""
    rows, *columns = tensor.shape or (0,)
    if not rows or rows % 3:
        raise ValueError(f"tensor {name!r} has the shape {tensor.shape}, expected three of one height")
    size = tensor.data.nbytes // 3
    for i in range(3):
        yield Tensor(tensor.dtype, (rows // 3, *columns), tensor.data[i * size : (i + 1) * size])


# ---- names ----


def _rename(tensors: Tensors, modules: Mapping[str, str], inner: Mapping[str, str]) -> Tensors:
    """All tensors by their modern names: the longest known module, then what is inside of it."""
    renamed: Tensors = {}
    for name, tensor in tensors.items():
        module, _, rest = name.rpartition(".")
        while module and module not in modules:
            module, _, last = module.rpartition(".")
            rest = f"{last}.{rest}"
        if not module:
            raise ValueError(f"unknown tensor {name[:120]!r}")
        part, _, kind = rest.rpartition(".")
        add_tensor(renamed, ".".join(filter(None, (modules[module], inner.get(part, part), kind))), tensor)
    return renamed


def _tensor(tensors: Tensors, name: str) -> Tensor:
    if name not in tensors:
        raise ValueError(f"tensor {name!r} is missing; expected a model in the original naming")
    return tensors[name]


def _shape(tensors: Tensors, name: str, rank: int) -> tuple[int, ...]:
    shape = _tensor(tensors, name).shape
    if len(shape) != rank or 0 in shape:
        raise ValueError(f"tensor {name!r} has the shape {shape}, expected {rank} dimensions")
    return shape


def _count(tensors: Tensors, pattern: str, first: int = 0) -> int:
    """How many of the names that the pattern gives for first, first + 1, ... are there; at least one must be."""
    _tensor(tensors, pattern.format(first))
    number = first
    while pattern.format(number) in tensors:
        number += 1
    return number - first
