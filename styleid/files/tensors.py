"""safetensors files as named raw buffers: memory-mapped, so that a model is never in memory twice.

The safetensors library checks a file; it hands out no bfloat16 to NumPy, therefore the data are found by the offsets
of the header that was checked. A file of bytes is mapped rather than read: loading is about four times as fast,
and a tensor that turns out to be unwanted costs nothing. The price: a file that another program *shortens* during
the load takes this process down with it (files replaced by renaming, as all well-behaved programs do, are harmless).
"""

import errno
import json
import math
import mmap
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from styleid.files.disk import parse_json, write_whole

HEADER_LIMIT = 16 << 20  # bytes; the header of a whole Stable Diffusion model has about 0.2 MB
NUMPY = {  # what safetensors' types are in NumPy, which has no bfloat16: its bits are uint16
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "<i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "<u1", "BOOL": "?", "BF16": "<u2",
}  # fmt: skip
ITEM_SIZE = {dtype: np.dtype(name).itemsize for dtype, name in NUMPY.items()}
USUAL = ("F32", "F16", "BF16", "I32", "I64")  # what the files of models and inversions hold
FOREIGN = {  # first bytes of what people rename to .safetensors, or git leaves in its place
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint?)",
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"version ": "a Git LFS pointer; the file itself was not downloaded",
}


class Tensor(NamedTuple):
    """A stored tensor: safetensors' name of its type, its shape and its bytes in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def array(self) -> NDArray[Any]:
        """The same memory as an array, read-only where it is mapped; of BF16 the bits."""
        return np.frombuffer(self.data, NUMPY[self.dtype]).reshape(self.shape)

    def float32(self) -> NDArray[np.float32]:
        """A copy as float32."""
        if self.dtype == "BF16":
            return from_bfloat16(self.array())
        with np.errstate(over="ignore"):  # what is beyond float32 becomes infinity, which whoever uses it refuses
            return self.array().astype(np.float32)


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """The numbers whose bfloat16 bits are given; exact."""
    return (bits.astype(np.uint32) << 16).view(np.float32)


def read_tensors(path: Path, dtypes: Collection[str] = USUAL) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors, of any of these types, and the metadata of a safetensors file. ValueError naming the file and the fault."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file")
    with open(path, "rb") as file:
        start, header = _read_header(file, path)
        try:
            with safe_open(path, framework="numpy"):
                pass  # opening checks the whole header: offsets without gap or overlap, sizes, the file's length
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{path}: not a sound safetensors file: {error}") from None
        content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    metadata = header.pop("__metadata__", None) or {}
    for name, entry in header.items():
        if entry["dtype"] not in dtypes:
            raise ValueError(
                f"{path}: tensor {name[:80]!r} has the type {entry['dtype']}, expected {', '.join(sorted(dtypes))}"
            )
    return {name: _tensor(name, entry, content, start, path) for name, entry in header.items()}, metadata


def _read_header(file: BinaryIO, path: Path) -> tuple[int, dict[str, Any]]:
    """Where the data start, and the header."""
    size = os.fstat(file.fileno()).st_size
    first = file.read(8)
    length = int.from_bytes(first, "little")
    if len(first) < 8 or length > size - 8:
        kind = next((kind for magic, kind in FOREIGN.items() if first.startswith(magic)), "something else or truncated")
        raise ValueError(f"{path}: not a safetensors file but {kind} ({size} bytes); nothing of it was used")
    if length > HEADER_LIMIT:
        raise ValueError(f"{path}: a header of {length} bytes; at most {HEADER_LIMIT} are accepted")
    return 8 + length, parse_json(file.read(length), path)


def _tensor(name: str, entry: Any, content: memoryview, start: int, path: Path) -> Tensor:
    """One entry of a checked header. Its size is checked here once more: the library may have seen another file of
    this name, and nothing below looks at sizes again."""
    dtype, shape = entry["dtype"], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if end - begin != math.prod(shape) * ITEM_SIZE[dtype] or not 0 <= begin <= end <= len(content) - start:
        raise ValueError(f"{path}: tensor {name[:80]!r} lies outside the file or has a wrong size")
    return Tensor(dtype, shape, content[start + begin : start + end])


def mapping_of(buffer: object) -> mmap.mmap | None:
    """The mapped file that a buffer or an array lies in."""
    owner: Any = buffer
    while owner is not None and not isinstance(owner, mmap.mmap):
        owner = owner.obj if isinstance(owner, memoryview) else getattr(owner, "base", None)
    return owner


def release(buffer: object) -> None:
    """Takes the pages of a mapped file out of this process's memory; a later access reads them from the file again. Other
    memory is left alone."""
    mapping = mapping_of(buffer)
    if mapping is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


@contextmanager
def releasing(buffers: Iterable[object]) -> Iterator[None]:
    """While this block runs, pages that were read of mapped files are given back again and again, so that what is made from
    them, such as packed weights, is not in memory beside them."""
    mappings = {id(mapping): mapping for buffer in buffers if (mapping := mapping_of(buffer)) is not None}
    done = threading.Event()

    def release_often() -> None:
        while not done.wait(0.02):  # seconds, in which about 20 MB are read
            for mapping in mappings.values():
                mapping.madvise(mmap.MADV_DONTNEED)

    thread = threading.Thread(target=release_often, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file, whole or not at all, without another copy of the data."""
    shapes = {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}
    with write_whole(path) as file:
        file.write(_start_of_file(shapes, metadata))
        for tensor in tensors.values():
            file.write(tensor.data)


def _start_of_file(shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The header and its length; the tensors follow in this order."""

    def entries() -> Iterator[tuple[str, object]]:
        yield "__metadata__", dict(metadata)
        begin = 0
        for name, (dtype, shape) in shapes.items():
            end = begin + math.prod(shape) * ITEM_SIZE[dtype]
            yield name, {"dtype": dtype, "shape": shape, "data_offsets": (begin, end)}
            begin = end

    header = json.dumps(dict(entries())).encode()
    header += b" " * (-len(header) % 8)  # the format's padding: data start aligned
    return len(header).to_bytes(8, "little") + header


class TensorStream:
    """A safetensors file that is written piece by piece: each tensor in its own order, in turn with the others.

    Args:
        file: an empty one, open for reading and writing
        shapes: type and shape of each tensor
        metadata: values of the lengths that they have in the end
    """

    def __init__(
        self, file: BinaryIO, shapes: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]
    ) -> None:
        self._file, self._shapes = file, shapes
        self._header_size = end = len(_start_of_file(shapes, metadata))
        self._places: dict[str, tuple[int, int]] = {}  # where the tensor lies
        for name, (dtype, shape) in shapes.items():
            begin, end = end, end + math.prod(shape) * ITEM_SIZE[dtype]
            self._places[name] = begin, end
        self._next = {name: begin for name, (begin, _) in self._places.items()}
        _reserve(file, end)

    def write(self, name: str, data: memoryview) -> None:
        """The tensor's next bytes."""
        if data.nbytes > self._places[name][1] - self._next[name]:
            raise ValueError(f"{name}: more bytes than its shape {self._shapes[name][1]} takes")
        self._file.seek(self._next[name])
        self._file.write(data)
        self._next[name] += data.nbytes

    def finish(self, metadata: Mapping[str, str]) -> dict[str, Tensor]:
        """Writes the header, last, so that only a whole file has one. Returns the tensors, mapped."""
        header = _start_of_file(self._shapes, metadata)
        missing = [name for name, (_, end) in self._places.items() if self._next[name] != end]
        if missing or len(header) != self._header_size:
            raise ValueError(f"tensors {missing} are not complete, or the metadata have grown")
        self._file.seek(0)
        self._file.write(header)
        self._file.flush()
        content = memoryview(mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ))
        return {name: Tensor(*self._shapes[name], content[slice(*place)]) for name, place in self._places.items()}


def _reserve(file: BinaryIO, size: int) -> None:
    """Takes the disk space, so that a full disk shows before work starts. Where a file system cannot do that, it shows when
    the file is written."""
    try:
        os.posix_fallocate(file.fileno(), 0, size)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT):
            reason = f"{error.strerror} for {size / 1e6:.0f} MB of features"
            raise OSError(error.errno, reason, file.name if isinstance(file.name, str) else None) from None
