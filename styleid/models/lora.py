"""LoRA files: low-rank changes of a model's linear and convolution layers, merged into its weights.

W' = W + weight * scale * up down (Hu et al., LoRA, 2022), with scale = alpha / rank unless `adapter` says otherwise. With
3x3 convolutions `down` is the 3x3 one and `up` a 1x1 one; where there is a `mid`, that is the 3x3 one between two 1x1 ones.
What tools call the tensors differs in three places, each of which is read on its own: what the tensor is (KINDS), whose
layer it is (PARTS), and which layer (`_layers`), where dots and underscores are the same.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from styleid.files.tensors import ITEM_SIZE, Tensor
from styleid.models.adapter import PEFT_STEM, Adapter, read_adapters
from styleid.models.ldm import UNET_INNER, unet_modules
from styleid.models.weights import read_weights
from styleid.numbers import number

if TYPE_CHECKING:
    from styleid._core import Weight

Lora = tuple[Path, float]  # a file, and the weight of its change

# In a folder, the first of these that is there.
FILES = ("pytorch_lora_weights.safetensors", f"{PEFT_STEM}.safetensors", "pytorch_lora_weights.bin", f"{PEFT_STEM}.bin")
KINDS = {  # what a tensor is -> how its name ends; PEFT puts an adapter's name in between
    "down": r"\.lora_down\.weight|\.lora_A(?:\.\w+)?\.weight|[._]lora\.down\.weight|\.lora_linear_layer\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(?:\.\w+)?\.weight|[._]lora\.up\.weight|\.lora_linear_layer\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "bias": r"\.lora_B(?:\.\w+)?\.bias",
}
ENDING = re.compile("|".join(f"(?P<{kind}>{pattern})" for kind, pattern in KINDS.items()))
FOREIGN = {  # what is no LoRA -> what its tensors' names hold
    "DoRA": r"dora_scale|lora_magnitude_vector",
    "LoHa": r"\.?hada_\w+",
    "LoKr": r"\.?lokr_\w+",
    "(IA)3": r"ia3_l|\.on_input",
    "OFT": r"oft_\w+|boft_\w+",
    "VeRA": r"vera_lambda",
    "GLoRA": r"\.[ab][12]\.weight",
    "full difference": r"\.diff(_b)?|\.set_weight",
    "set of new words": r"bundle_emb|emb_params|lora_embedding_[AB]|string_to_param",
}
WRAPPER = "base_model.model."  # PEFT's own name of the model
PARTS = {  # how a layer's name begins -> whose it is; the first that fits
    "lora_unet_": "unet",
    "lora_unet.": "unet",
    "lycoris_unet_": "unet",
    "lycoris_": "unet",
    "unet.": "unet",
    "model.diffusion_model.": "unet",
    "diffusion_model.": "unet",
    "transformer.": "unet",
    "lora_te_": "text",
    "lora_te.": "text",
    "lora_te1_": "text",
    "lora_te1.": "text",
    "text_encoder.": "text",
    "cond_stage_model.transformer.": "text",
    "text_model.": "text",
}
NAME_LENGTH = 1000


class Change(NamedTuple):
    """What a file says about one layer."""

    down: NDArray[np.float32]  # (rank, inputs, ...)
    up: NDArray[np.float32]  # (outputs, rank, ...)
    scale: float
    bias: NDArray[np.float32] | None  # (outputs,)


def merge(weights: Mapping[str, Weight], loras: Sequence[Lora]) -> dict[str, Weight]:
    """The weights with all changes; those that change become float32. ValueError naming the file and the layer."""
    merged = dict(weights)
    for path, strength in loras:
        for layer, change in read_lora(path, weights).items():
            try:
                merged[f"{layer}.weight"] = _add(merged[f"{layer}.weight"], change, strength)
                if change.bias is not None:
                    merged[f"{layer}.bias"] = _add_bias(merged.get(f"{layer}.bias"), change, strength)
            except ValueError as error:
                raise ValueError(f"{path}: {layer}: {error}") from None
    return merged


def check(loras: Sequence[tuple[str | os.PathLike[str], float]]) -> list[Lora]:
    """The argument `loras` of `load_model`. TypeError or ValueError unless it is pairs of a path and a number."""
    checked = []
    for item in loras:
        if not isinstance(item, (tuple, list)) or len(item) != 2 or not isinstance(item[0], (str, os.PathLike)):
            raise TypeError(f"loras: expected pairs of a path and a weight, got {item!r}")
        checked.append((Path(os.fsdecode(item[0])), number(f"loras: the weight of {item[0]}", item[1])))
    return checked


def read_lora(path: Path, weights: Mapping[str, Weight]) -> dict[str, Change]:
    """The changes in a file, or in a folder that holds one of FILES, by the engine's names of layers.

    weights: the model's, whose layers they are. ValueError naming the file and the tensor.
    """
    if path.is_dir():
        file = next((path / name for name in FILES if (path / name).is_file()), None)
        if file is None:
            raise ValueError(f"{path}: a folder with none of {', '.join(FILES)}")
        path = file
    tensors, metadata = read_weights(path, ITEM_SIZE)
    if not tensors:
        raise ValueError(f"{path}: holds no tensors")
    adapters = read_adapters(path, metadata)
    layers = _layers(weights)
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        try:
            layer, kind = _place(name, layers)
        except ValueError as error:
            raise ValueError(f"{path}: {name[:120]!r} {error}") from None
        if kind in found.setdefault(layer, {}):
            raise ValueError(f"{path}: {name[:120]!r} is there under two names")
        found[layer][kind] = tensor
    _warn_about_settings(path, tensors, adapters, found)
    changes = {}
    for layer, parts in found.items():
        try:
            changes[layer] = _change(layer, parts, adapters.get(layer.partition(".")[0]))
        except ValueError as error:
            raise ValueError(f"{path}: {layer}: {error}") from None
    return changes


def _layers(weights: Mapping[str, Weight]) -> dict[str, dict[str, str]]:
    """Maps all names that tools call the layers of UNet and text encoder by, with underscores for dots, to the engine's."""
    layers: dict[str, dict[str, str]] = {"unet": {}, "text": {}}
    names = [name.removesuffix(".weight") for name in weights if name.endswith(".weight")]
    for name in names:
        part, _, layer = name.partition(".")
        if part in layers:
            layers[part][layer.replace(".", "_")] = name
    for flat, name in list(layers["unet"].items()):
        layers["unet"].setdefault(flat.removesuffix("_0") if flat.endswith("_to_out_0") else flat, name)
    for flat, name in list(layers["text"].items()):
        old = re.sub(r"_(q|k|v|out)_proj$", r"_to_\1", flat)  # diffusers' first names
        layers["text"].setdefault(old, name)
    inner = {modern: original for original, modern in UNET_INNER.items()}
    levels = 1 + max((int(match[1]) for match in _matches(r"unet\.down_blocks\.(\d+)\..*", names)), default=-1)
    per_block = len({match[1] for match in _matches(r"unet\.down_blocks\.0\.resnets\.(\d+)\.conv1", names)})
    for original, modern in unet_modules(levels, per_block):
        for name in names:
            if name == f"unet.{modern}" or name.startswith(f"unet.{modern}."):
                rest = name.removeprefix(f"unet.{modern}").removeprefix(".")
                full = f"{original}.{inner.get(rest, rest)}".removesuffix(".")
                layers["unet"].setdefault(full.replace(".", "_"), name)
    return layers


def _matches(pattern: str, names: Sequence[str]) -> list[re.Match[str]]:
    return [match for match in (re.fullmatch(pattern, name) for name in names) if match]


def _place(name: str, layers: Mapping[str, Mapping[str, str]]) -> tuple[str, str]:
    """The engine's name of the layer that a tensor is for, and what it is: one of KINDS. ValueError without the name."""
    if len(name) > NAME_LENGTH:
        raise ValueError("has too long a name")
    for foreign, pattern in FOREIGN.items():
        if re.search(pattern, name):
            raise ValueError(f"is no part of a LoRA, but of a {foreign}, which is not supported")
    matches = [match for match in ENDING.finditer(name) if match.end() == len(name)]
    if not matches:
        raise ValueError("is no part of a LoRA for UNet or text encoder")
    layer = name[: matches[0].start()]
    while layer.startswith(WRAPPER):
        layer = layer.removeprefix(WRAPPER)
    prefix = next((prefix for prefix in PARTS if layer.startswith(prefix)), "")
    flat = layer.removeprefix(prefix).removeprefix("text_model.").replace(".", "_").removeprefix("text_model_")
    flat = flat.replace("_processor_", "_")
    for part in (PARTS[prefix],) if prefix else ("unet", "text"):
        if flat in layers[part]:
            return layers[part][flat], str(matches[0].lastgroup)
    raise ValueError(f"is of a layer that is not there: this model has no layer {layer[:120]!r}")


def _warn_about_settings(
    path: Path,
    tensors: Mapping[str, Tensor],
    adapters: Mapping[str, Adapter],
    found: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """PEFT's files hold no alphas: without their settings nobody knows them."""
    unknown = any(name.startswith(WRAPPER) for name in tensors) and not adapters
    if unknown and not all("alpha" in parts for parts in found.values()):
        warnings.warn(
            f"{path}: without the adapter_config.json that PEFT writes beside it; alpha is taken for the rank",
            stacklevel=6,
        )


def _change(layer: str, tensors: Mapping[str, Tensor], adapter: Adapter | None) -> Change:
    """A layer's tensors, checked and with their factor."""
    arrays = {}
    for kind, tensor in tensors.items():
        if kind != "alpha" and tensor.dtype not in ("F64", "F32", "F16", "BF16"):
            raise ValueError(f"{kind} has the type {tensor.dtype}, expected F32, F16 or BF16")
        arrays[kind] = tensor.float32()
    if missing := {"down", "up"} - arrays.keys():
        raise ValueError(f"{min(missing)} is missing")
    down, up, alpha = arrays["down"], arrays["up"], arrays.get("alpha")
    if "mid" in arrays:
        down = _with_middle(down, arrays["mid"])
    fits = down.ndim in (2, 4) and up.ndim in (2, 4) and up.shape[1:2] == (len(down),) and up.shape[2:] in ((), (1, 1))
    if not fits or not down.size or not up.size:
        raise ValueError(f"down {down.shape} and up {up.shape} do not fit each other")
    if alpha is not None and (alpha.size != 1 or not np.isfinite(alpha).all()):
        raise ValueError(f"alpha holds {alpha.flat[:2]} in the shape {alpha.shape}, expected one number")
    scale = 1.0 if alpha is None else float(alpha.item()) / len(down)
    if adapter is not None:
        stated = adapter.scale(layer.partition(".")[2], len(down))
        if alpha is not None and not np.isclose(scale, stated, rtol=1e-5):
            raise ValueError(f"its alpha makes the factor {scale:g}, but {adapter.where} {stated:g}")
        scale = stated
    return Change(down, up, scale, arrays.get("bias"))


def _with_middle(down: NDArray[np.float32], mid: NDArray[np.float32]) -> NDArray[np.float32]:
    """A 1x1 convolution and the k x k one after it as one of k x k: (rank, inputs, k, k)."""
    if down.ndim != 4 or down.shape[2:] != (1, 1) or mid.ndim != 4 or mid.shape[:2] != (len(down), len(down)):
        raise ValueError(f"down {down.shape} and mid {mid.shape} do not fit each other")
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(np.einsum("abhw,bi->aihw", mid, down[..., 0, 0]))


def _add(weight: Weight, change: Change, strength: float) -> Weight:
    """Computes W + strength * scale * up down in float32."""
    old = Tensor(weight["dtype"], tuple(weight["shape"]), weight["data"]).float32()
    down, up = (array.reshape(len(array), -1) for array in (change.down, change.up))
    shape = (len(up), *change.down.shape[1:])
    if _matrix(shape) != _matrix(old.shape):
        raise ValueError(f"its change has the shape {shape}, but the model's layer {old.shape}")
    with np.errstate(all="ignore"):  # see `_sum`
        difference = (up @ down).reshape(old.shape)
    return _sum(old, difference, change, strength)


def _add_bias(bias: Weight | None, change: Change, strength: float) -> Weight:
    """Adds the change of a bias to that of a layer, which must have one."""
    assert change.bias is not None
    if bias is None:
        raise ValueError("lora_B.bias: the model's layer has no bias to be changed")
    old = Tensor(bias["dtype"], tuple(bias["shape"]), bias["data"]).float32()
    if change.bias.shape != old.shape:
        raise ValueError(f"lora_B.bias has the shape {change.bias.shape}, but the layer's bias {old.shape}")
    return _sum(old, change.bias, change, strength)


def _sum(old: NDArray[np.float32], difference: NDArray[np.float32], change: Change, strength: float) -> Weight:
    with np.errstate(all="ignore"):  # becomes infinity or NaN, which is refused below
        new = old + np.float32(strength * change.scale) * difference
    if not np.isfinite(new).all():
        raise ValueError("the changed weights hold NaN or infinity")
    return {"dtype": "F32", "shape": new.shape, "data": new.data}


def _matrix(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Makes a matrix of a 1x1 convolution, which computes the same as a linear layer."""
    return shape[:2] if shape[2:] == (1, 1) else shape
