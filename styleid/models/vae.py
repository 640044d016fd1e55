"""VAEs alone: to load one, or to put one into a model in place of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from styleid.files.tensors import Tensor
from styleid.models.config import read_vae
from styleid.models.hub import NAME, fetch_vae
from styleid.models.ldm import VAE as LDM_PREFIX
from styleid.models.ldm import convert_vae
from styleid.models.weights import STEMS, read_component, read_weights

if TYPE_CHECKING:
    from styleid._core import VAEConfig

TAESD_FILES = ("taesd_encoder.safetensors", "taesd_encoder.pth")  # in the order of preference, each with its decoder
TAESD_TENSOR = re.compile(r"(\d+)\.((?:(?:conv\.\d+|skip)\.)?(?:weight|bias))")
TINY_TENSOR = re.compile(r"(encoder|decoder)\.layers\.(\d+)\..+")


class Contents(NamedTuple):
    """The configuration, and the tensors by diffusers' names."""

    config: VAEConfig
    tensors: dict[str, Tensor]


def read(source: str) -> Contents:
    """The VAE in a folder or file, or with that name on the hub. Raises a ValueError that names the file and the fault."""
    path = Path(source)
    if not path.exists() and NAME.fullmatch(source):
        path = fetch_vae(source)
    return _read_folder(path) if path.is_dir() else _read_file(path)


def _read_folder(folder: Path) -> Contents:
    for inner in folder, folder / "vae":
        if (inner / "config.json").is_file():
            return Contents(read_vae(inner / "config.json"), read_component(inner, STEMS["vae"]))
    for name in TAESD_FILES:
        if (folder / name).is_file():
            return _read_file(folder / name)
    raise ValueError(f"{folder}: neither config.json, nor vae/config.json, nor {TAESD_FILES[0]}")


def _read_file(path: Path) -> Contents:
    """Reads one file without a configuration; the names of its tensors tell which kind of VAE it is."""
    tensors = read_weights(path)[0]
    if tensors and all(map(TAESD_TENSOR.fullmatch, tensors)):
        return _tiny(_read_taesd_pair(path, tensors), path)
    if "encoder.layers.0.weight" in tensors:
        return _tiny(tensors, path)
    if "encoder.conv_in.weight" in tensors and "encoder.mid_block.resnets.0.conv1.weight" in tensors:
        raise ValueError(f"{path}: in diffusers' naming, which needs its config.json; give the folder of both")
    if any(name.removeprefix(LDM_PREFIX) == "encoder.conv_in.weight" for name in tensors):
        return Contents(*convert_vae(path, tensors))
    raise ValueError(f"{path}: not a VAE in a known naming (original, diffusers' or TAESD's)")


def _read_taesd_pair(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Reads TAESD's own files, which hold one half each; their names differ in "encoder" and "decoder"."""
    ours, theirs = ("encoder", "decoder") if "0.weight" in tensors else ("decoder", "encoder")
    other = path.with_name(path.name.replace(ours, theirs))
    if other == path or not other.is_file():
        raise ValueError(f"{path}: the {ours} of a TAESD, which needs its {theirs} beside it, in {other.name}")
    halves = {ours: tensors, theirs: read_weights(other)[0]}
    found: dict[str, Tensor] = {}
    for half, part in halves.items():
        for name, tensor in part.items():
            match = TAESD_TENSOR.fullmatch(name)
            if match is None:
                raise ValueError(f"{other}: unknown tensor {name[:120]!r}; expected the {theirs} of a TAESD")
            place = int(match[1]) - (half == "decoder")  # diffusers' list begins without the bound of the latents
            found[f"{half}.layers.{place}.{match[2]}"] = tensor
    return found


def _tiny(tensors: dict[str, Tensor], path: Path) -> Contents:
    """The configuration that the names and shapes of an AutoencoderTiny's tensors tell."""
    blocks = {half: _blocks(tensors, half) for half in ("encoder", "decoder")}
    first, last = tensors.get("encoder.layers.0.weight"), tensors.get("decoder.layers.0.weight")
    if first is None or last is None or len(first.shape) != 4 or len(last.shape) != 4:
        raise ValueError(f"{path}: the first convolutions of a TAESD are missing or of a wrong shape")
    levels = [len(counts) for counts in blocks.values()]
    if levels[0] != levels[1] or not 1 <= levels[0] <= 8:
        raise ValueError(
            f"{path}: a TAESD with {levels[0]} and {levels[1]} levels in its halves, expected 1 to 8 in both"
        )
    config: VAEConfig = {
        "kind": "tiny",
        "image_channels": 3,
        "latent_channels": last.shape[1],
        "channels": [first.shape[0]] * len(blocks["encoder"]),
        "encoder_blocks": blocks["encoder"],
        "decoder_blocks": blocks["decoder"],
        "scaling_factor": 1.0,
    }
    return Contents(config, tensors)


def _blocks(tensors: Mapping[str, Tensor], half: str) -> list[int]:
    """The number of blocks between one convolution and the next."""
    matches = [match for match in map(TINY_TENSOR.fullmatch, tensors) if match and match[1] == half]
    counts = [0]
    for place in sorted({int(match[2]) for match in matches})[1:]:
        if f"{half}.layers.{place}.conv.0.weight" in tensors:
            counts[-1] += 1
        else:
            counts.append(0)
    return counts[:-1]
