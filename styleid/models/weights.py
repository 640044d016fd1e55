"""A model's weights in a diffusers folder: which files hold them, and the names the engine knows them by."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast

from styleid.files.checkpoint import ZIP_MAGIC, read_checkpoint
from styleid.files.disk import read_json
from styleid.files.gguf import MAGIC as GGUF_MAGIC
from styleid.files.gguf import read_gguf
from styleid.files.tensors import USUAL, Tensor, read_tensors

if TYPE_CHECKING:
    from styleid._core import Weight

STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}  # by folder
VARIANTS = ("", ".fp16", ".bf16")  # of file names, in the order of preference
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def weight_files(stem: str) -> Iterator[tuple[str, str]]:
    """The names of files that may hold a part's weights, and of the index if it is in shards; the best first."""
    for name in f"{stem}.safetensors", f"{'pytorch_model' if stem == 'model' else stem}.bin":
        for variant in VARIANTS:
            yield name.replace(".", f"{variant}.", 1), f"{name}.index{variant}.json"


def read_component(folder: Path, stem: str) -> dict[str, Tensor]:
    """All tensors of one part of a model, from one of the files of `weight_files`.

    ValueError naming the file and the fault.
    """
    for single, index in weight_files(stem):
        if (folder / single).is_file():
            return read_weights(folder / single)[0]
        if (folder / index).is_file():
            return _read_shards(folder / index)
    raise ValueError(f"{folder}: neither {stem}.safetensors, nor an fp16, bf16 or .bin variant, nor an index of shards")


def read_weights(path: Path, dtypes: Collection[str] = USUAL) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, a PyTorch checkpoint or a GGUF file, whatever its name ends with.

    dtypes: those that a safetensors file may hold
    ValueError naming the file and the fault.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        magic = file.read(len(ZIP_MAGIC))
    if magic == ZIP_MAGIC:
        return read_checkpoint(path), {}
    return (read_gguf(path), {}) if magic == GGUF_MAGIC else read_tensors(path, dtypes)


def _read_shards(index: Path) -> dict[str, Tensor]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index}: `weight_map` must be an object of tensor names and file names")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(weight_map.values())):
        found = read_weights(_shard_path(index, shard))[0]
        if both := tensors.keys() & found.keys():
            raise ValueError(f"{index}: tensor {min(both)!r} is in two shards")
        tensors |= found
    if missing := weight_map.keys() - tensors.keys():
        raise ValueError(f"{index}: tensor {min(missing)!r} is in none of the shards")
    return tensors


def _shard_path(index: Path, shard: str) -> Path:
    """The path of a shard, which must be a file of the index's own folder."""
    path = index.parent / shard
    if Path(shard).name != shard or not shard.isprintable() or len(shard.encode()) > 255:
        raise ValueError(f"{index}: the shard {shard!r} is not a plain file name")
    folder = index.parent.resolve()
    # The hub's cache keeps files as links from snapshots/<revision>/<part>/ into its own blobs/.
    cache = folder.parents[2] / "blobs" if len(folder.parents) > 2 and folder.parents[1].name == "snapshots" else folder
    if path.resolve().parent not in (folder, cache):
        raise ValueError(f"{index}: the shard {shard!r} is a link that leaves the folder")
    return path


def engine_weights(
    unet: Mapping[str, Tensor], vae: Mapping[str, Tensor], text: Mapping[str, Tensor] | None
) -> dict[str, Weight]:
    """The weights by the engine's names: `unet.`, `vae.` or `text.` before the usual one."""
    weights = {f"unet.{name}": tensor for name, tensor in unet.items()}
    for name, tensor in vae.items():
        add_tensor(weights, *_modern_vae(name, tensor))
    for name, tensor in (text or {}).items():
        name = name.removeprefix("text_model.")
        if name not in ("embeddings.position_ids", "text_projection.weight"):  # a constant; not used by diffusion
            add_tensor(weights, f"text.{name}", tensor)
    return {name: _weight(name, tensor) for name, tensor in weights.items()}


def add_tensor(weights: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    """Adds a tensor; raises ValueError if its name is taken."""
    if name in weights:
        raise ValueError(f"weight {name!r} is there under two names")
    weights[name] = tensor


def _modern_vae(name: str, tensor: Tensor) -> tuple[str, Tensor]:
    """Renames the tensors of files that store the VAE's attention under other names, and its matrices as 1x1 convolutions."""
    match = re.fullmatch(r"((?:en|de)coder\.mid_block\.attentions\.0)\.(.+)\.(weight|bias)", name)
    if match:
        block, part, kind = match.groups()
        name = f"{block}.{OLD_ATTENTION.get(part, part)}.{kind}"
        if len(tensor.shape) == 4 and tensor.shape[2:] == (1, 1):
            tensor = tensor._replace(shape=tensor.shape[:2])
    return f"vae.{name}", tensor


def _weight(name: str, tensor: Tensor) -> Weight:
    if tensor.dtype not in ("F32", "F16", "BF16"):
        raise ValueError(f"weight {name!r} has the type {tensor.dtype}, expected F32, F16 or BF16")
    dtype = cast(Literal["F32", "F16", "BF16"], tensor.dtype)
    return {"dtype": dtype, "shape": tensor.shape, "data": tensor.data}
