"""GGUF files, as stable-diffusion.cpp's users have them: named tensors, of which many are quantized in blocks.

The header is read here, with every number checked before it is used; what is in a block is the package gguf's own knowledge.
Quantized tensors become float32 when the file is read; others stay mapped, as safetensors' do. Format: GGUF's
specification, versions 2 and 3, little-endian (ggml/docs/gguf.md).
"""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from styleid.files.tensors import Tensor

MAGIC = b"GGUF"
VERSIONS = (2, 3)
NAME_LIMIT, RANK_LIMIT, ITEM_LIMIT = 1000, 8, 1 << 22  # bytes of a name, dimensions, and items of all lists together
STRING, ARRAY = 8, 9  # types of values in the metadata; the size in bytes of the others:
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
UINT32 = 4
ALIGNMENT_KEY, ALIGNMENT = b"general.alignment", 32
PLAIN = {
    0: "F32",
    1: "F16",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    30: "BF16",
}  # ggml's number of a type


class Entry(NamedTuple):
    """What the header says about a tensor."""

    shape: tuple[int, ...]
    kind: int
    offset: int  # from the beginning of the data


class _Header:
    """A mapped file, read from its beginning."""

    def __init__(self, content: memoryview) -> None:
        self.content, self.place, self.items = content, 0, 0

    def take(self, count: int) -> memoryview:
        if count > len(self.content) - self.place:
            raise ValueError("it ends within its header")
        self.place += count
        return self.content[self.place - count : self.place]

    def number(self, form: str) -> int:
        return int(struct.unpack(form, self.take(struct.calcsize(form)))[0])

    def text(self, limit: int) -> bytes:
        length = self.number("<Q")
        if length > limit:
            raise ValueError(f"a name of {length} bytes; at most {limit} are accepted")
        return bytes(self.take(length))

    def skip(self, kind: int, nested: bool = False) -> None:
        """Passes over a value of the metadata."""
        if kind in SIZES:
            self.take(SIZES[kind])
        elif kind == STRING:
            self.take(self.number("<Q"))
        elif kind == ARRAY and not nested:
            inner, count = self.number("<I"), self.number("<Q")
            if inner in SIZES:
                self.take(count * SIZES[inner])
                return
            self.items += count
            if self.items > ITEM_LIMIT:
                raise ValueError(f"lists of more than {ITEM_LIMIT} items in its metadata")
            for _ in range(count):
                self.skip(inner, nested=True)
        else:
            raise ValueError(f"a value of the unknown type {kind} in its metadata")


def read_gguf(path: Path) -> dict[str, Tensor]:
    """The tensors of a GGUF file. ValueError naming the file and the fault, also where the package gguf is missing."""
    try:
        with open(path, "rb") as file:
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        header = _Header(content)
        entries, alignment = _entries(header)
        begin = -(-header.place // alignment) * alignment
        return _tensors(entries, content[begin:])
    except (ValueError, struct.error) as error:
        raise ValueError(f"{path}: not usable as a GGUF file: {error}") from None


def _entries(header: _Header) -> tuple[dict[str, Entry], int]:
    """What the header says about the tensors, and the alignment of the data."""
    if header.take(4) != MAGIC:
        raise ValueError("it does not begin with GGUF")
    version = header.number("<I")
    if version not in VERSIONS:
        raise ValueError(f"version {version}, or big-endian; expected 2 or 3, little-endian")
    count, values = header.number("<Q"), header.number("<Q")
    alignment = ALIGNMENT
    for _ in range(values):
        key, kind = header.text(1 << 16), header.number("<I")
        if key == ALIGNMENT_KEY and kind == UINT32:
            alignment = header.number("<I")
        else:
            header.skip(kind)
    if not 1 <= alignment <= 1 << 20 or alignment & (alignment - 1):
        raise ValueError(f"an alignment of {alignment}")
    entries: dict[str, Entry] = {}
    for _ in range(count):
        name = header.text(NAME_LIMIT).decode("utf-8", "replace")
        if name in entries:
            raise ValueError(f"the tensor {name[:80]!r} comes twice")
        rank = header.number("<I")
        if rank > RANK_LIMIT:
            raise ValueError(f"the tensor {name[:80]!r} has {rank} dimensions")
        shape = tuple(header.number("<Q") for _ in range(rank))[::-1]  # ggml's first dimension is the innermost
        entries[name] = Entry(shape, header.number("<I"), header.number("<Q"))
    return entries, alignment


def _tensors(entries: dict[str, Entry], data: memoryview) -> dict[str, Tensor]:
    """The tensors themselves, which must lie in the file one after the other: shared bytes could become any amount of memory."""
    tensors, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda item: item[1].offset):
        try:
            block, size = _block(entry)
            numbers = math.prod(entry.shape)
            length = numbers // block * size
            if entry.offset < end or entry.offset + length > len(data):
                raise ValueError("it lies outside the file, or within another one")
            end = entry.offset + length
            tensors[name] = _tensor(entry, data[entry.offset : end])
        except ValueError as error:
            raise ValueError(f"tensor {name[:120]!r}: {error}") from None
    return {name: tensors[name] for name in entries}


def _block(entry: Entry) -> tuple[int, int]:
    """The numbers in a block of the type, and its bytes. ValueError where rows are not made of whole ones."""
    sizes = {int(kind): size for kind, size in _library().GGML_QUANT_SIZES.items()}
    if entry.kind not in sizes:
        raise ValueError(f"it has the unknown type {entry.kind}")
    block, size = sizes[entry.kind]
    if block > 1 and (not entry.shape or entry.shape[-1] % block):
        raise ValueError(f"its shape {entry.shape} is not made of blocks of {block}")
    return block, size


def _tensor(entry: Entry, data: memoryview) -> Tensor:
    if entry.kind in PLAIN:
        return Tensor(PLAIN[entry.kind], entry.shape, data)
    library = _library()
    kind = library.GGMLQuantizationType(entry.kind)
    if not data:
        raise ValueError(f"its shape {entry.shape} holds no numbers")
    rows = np.frombuffer(data, np.uint8).reshape(math.prod(entry.shape[:-1]), -1)
    try:
        with np.errstate(all="ignore"):  # infinite scales make infinite numbers, which are refused with the weights
            numbers = library.quants.dequantize(rows, kind)
    except NotImplementedError:
        raise ValueError(f"it has the type {kind.name}, which the package gguf does not dequantize") from None
    return Tensor("F32", entry.shape, np.ascontiguousarray(numbers, np.float32).data.cast("B"))


def _library() -> Any:
    """The package gguf, which takes a while to import and is needed for such files only."""
    try:
        import gguf
        import gguf.quants
    except ImportError:
        raise ValueError("reading it needs the package gguf: pip install 'styleid[gguf]'") from None
    return gguf
