"""PyTorch checkpoints (.ckpt, .bin, .pt) as named raw buffers, without ever running what they say.

A checkpoint is a zip archive: `data.pkl`, a program for Python's unpickler that builds the dictionary of tensors, and
one member per storage. Unpickling can call any function; therefore the program is interpreted here by a machine that
knows the few instructions a dictionary of tensors takes, looks names up in the tables below, and calls nothing.
Formats: Python's Lib/pickletools.py; torch/serialization.py and torch/_utils.py.
"""

from __future__ import annotations

import io
import math
import mmap
import pickletools
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from styleid.files.tensors import Tensor

ZIP_MAGIC = b"PK\x03\x04"
DIRECTORY_LIMIT = 16 << 20  # bytes of the archive's list of members: 100,000 of them
PROGRAM_LIMIT = 4 << 20  # bytes of data.pkl; that of a whole training state has about 1 MB
LOCAL_HEADER = 30  # bytes, then the member's name and extra data, whose lengths are the last two numbers of it

STORAGES = {  # class -> safetensors' name of the type, bytes
    "torch FloatStorage": ("F32", 4),
    "torch HalfStorage": ("F16", 2),
    "torch BFloat16Storage": ("BF16", 2),
    "torch DoubleStorage": ("F64", 8),
    "torch LongStorage": ("I64", 8),
    "torch IntStorage": ("I32", 4),
    "torch ShortStorage": ("I16", 2),
    "torch CharStorage": ("I8", 1),
    "torch ByteStorage": ("U8", 1),
    "torch BoolStorage": ("BOOL", 1),
}
DICTIONARY, TENSOR, PARAMETER = (
    "collections OrderedDict",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_parameter",
)
# What training programs leave in their checkpoints beside the weights. Nothing is made of it.
BYSTANDERS = {
    "pytorch_lightning.callbacks.model_checkpoint ModelCheckpoint",
    "numpy.core.multiarray scalar",
    "numpy._core.multiarray scalar",
    "numpy dtype",
    "_codecs encode",
    "__builtin__ set",
}
LITERALS = {
    "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE", "BINSTRING",
    "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES",
}  # fmt: skip
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Name(NamedTuple):
    """A class or function of the tables above; only its name, never the thing itself."""

    name: str


class Bystander(NamedTuple):
    """An object that was not made."""

    name: str


class Storage(NamedTuple):
    """The numbers that tensors are views of."""

    dtype: str
    size: int
    data: memoryview


class _Frugal(io.FileIO):
    """A file that is never read in large pieces, whatever an archive says about the length of its parts."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_LIMIT:
            raise ValueError(f"its list of members has {size} bytes; at most {DIRECTORY_LIMIT} are accepted")
        return super().read(DIRECTORY_LIMIT if size is None or size < 0 else size)


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint's `state_dict`, or of the checkpoint itself. ValueError naming file and fault."""
    try:
        with _Frugal(path) as file, zipfile.ZipFile(file) as archive:
            members = _members(archive, memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
        return _state(_Machine(members).run())
    except (ValueError, OSError, zipfile.BadZipFile, NotImplementedError, struct.error) as error:
        raise ValueError(f"{path}: not a sound PyTorch checkpoint (a zip archive): {error}") from None


def _members(archive: zipfile.ZipFile, content: memoryview) -> dict[str, memoryview]:
    """The archive's members without their common folder; all stored as they are, so that nothing can inflate."""
    members: dict[str, memoryview] = {}
    for info in archive.infolist():
        name = info.filename.partition("/")[2]
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size or info.flag_bits & 1:
            raise ValueError(f"the member {info.filename[:80]!r} is compressed or encrypted, which PyTorch never does")
        if name in members:
            raise ValueError(f"the member {info.filename[:80]!r} comes twice")
        header = content[info.header_offset : info.header_offset + LOCAL_HEADER]
        begin = info.header_offset + LOCAL_HEADER + sum(struct.unpack_from("<HH", header, 26))
        if begin + info.file_size > len(content):
            raise ValueError(f"the member {info.filename[:80]!r} lies outside the file")
        members[name] = content[begin : begin + info.file_size]
    if members.get("byteorder", b"little") != b"little":
        raise ValueError("its numbers are big-endian")
    return members


def _state(result: Any) -> dict[str, Tensor]:
    if isinstance(result, dict) and isinstance(result.get("state_dict"), dict):
        result = result["state_dict"]
    if not isinstance(result, dict):
        raise ValueError("expected a dictionary of tensors")  # noqa: TRY004  the file's fault
    return {name: item for name, item in result.items() if isinstance(name, str) and isinstance(item, Tensor)}


class _Machine:
    """The stack machine of Python's pickles, restricted to data."""

    def __init__(self, members: dict[str, memoryview]) -> None:
        self.members = members
        self.stack: list[Any] = []
        self.marks: list[int] = []  # heights of the stack
        self.memo: dict[int, Any] = {}
        # What may still be copied out of the file: honest tensors share nothing, so all together are no larger.
        self.budget = sum(member.nbytes for member in members.values())

    def run(self) -> Any:
        """Returns what the program leaves on the stack. Raises a ValueError that names an instruction or name that is not
        data."""
        program = self.members.get("data.pkl", memoryview(b""))
        if not 0 < program.nbytes <= PROGRAM_LIMIT:
            raise ValueError(f"data.pkl has {program.nbytes} bytes; expected 1 to {PROGRAM_LIMIT}")
        for opcode, argument, position in pickletools.genops(bytes(program)):
            if opcode.name == "STOP":
                return self.stack.pop() if self.stack else None
            try:
                self.step(opcode.name, argument)
            except (IndexError, KeyError, TypeError, AttributeError):
                raise ValueError(f"data.pkl: damaged at byte {position} ({opcode.name})") from None
        raise ValueError("data.pkl ends early")

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        if name in LITERALS:
            stack.append(argument)
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name in EMPTY:
            stack.append(EMPTY[name]())
        elif name in TUPLES:
            stack.append(tuple(self.take(len(stack) - TUPLES[name])))
        elif name in ("PROTO", "FRAME"):
            pass
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self.take(self.marks.pop())))
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self.memo[len(self.memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("APPEND", "APPENDS"):
            items = self.take(len(stack) - 1 if name == "APPEND" else self.marks.pop())
            stack[-1].extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self.take(len(stack) - 2 if name == "SETITEM" else self.marks.pop())
            _update(stack[-1], items[::2], items[1::2])
        elif name == "GLOBAL":
            stack.append(_name(argument))
        elif name == "STACK_GLOBAL":
            stack.append(_name(" ".join(self.take(len(stack) - 2))))
        elif name == "BINPERSID":
            stack.append(self.storage(stack.pop()))
        elif name in ("REDUCE", "NEWOBJ"):
            function, arguments = self.take(len(stack) - 2)
            stack.append(self.build(function.name, arguments))
        elif name == "BUILD":
            self.take(len(stack) - 1)  # attributes, such as the versions in an OrderedDict's _metadata
        else:
            raise ValueError(f"data.pkl holds the instruction {name}, which no dictionary of tensors needs")

    def take(self, height: int) -> list[Any]:
        """Everything above a height of the stack."""
        if not 0 <= height <= len(self.stack):
            raise IndexError
        items = self.stack[height:]
        del self.stack[height:]
        return items

    def storage(self, reference: tuple[Any, ...]) -> Storage:
        """("storage", class, number of the member, device, length) -> the member."""
        _, kind, key, _, length = reference
        dtype, size = STORAGES[kind.name]
        data = self.members["data/" + key]
        if type(length) is not int or data.nbytes != length * size:
            raise ValueError(f"the storage {key[:80]!r} has not the length that data.pkl says")
        return Storage(dtype, size, data)

    def build(self, name: str, arguments: tuple[Any, ...]) -> Any:
        """What the call of a known name would give."""
        if name == DICTIONARY and not arguments:
            return {}
        if name == TENSOR:
            return self.tensor(*arguments[:4])
        if name == PARAMETER:
            return arguments[0]
        if name in BYSTANDERS:
            return Bystander(name)
        raise ValueError(f"data.pkl calls {name} in a way that no dictionary of tensors needs")

    def tensor(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> Tensor:
        """A view of a storage, checked; copied only if its numbers lie in another order."""
        fits = len(shape) == len(strides) <= 8 and all(type(n) is int for n in (offset, *shape, *strides))
        if not fits or not all(0 <= n < 1 << 48 for n in (offset, *shape, *strides)):
            raise ValueError("data.pkl: a tensor with an impossible shape")
        count = math.prod(shape)
        end = offset + 1 + sum((n - 1) * stride for n, stride in zip(shape, strides, strict=True)) if count else offset
        if max(end, offset + count) * storage.size > storage.data.nbytes:
            raise ValueError(f"data.pkl: a tensor of the shape {tuple(shape)} lies outside its storage")
        data = storage.data[offset * storage.size :]
        axes = enumerate(zip(shape, strides, strict=True))
        if not count or all(n == 1 or stride == math.prod(shape[i + 1 :]) for i, (n, stride) in axes):
            return Tensor(storage.dtype, tuple(shape), data[: count * storage.size])
        self.budget -= count * storage.size
        if self.budget < 0:
            raise ValueError("data.pkl: its tensors are larger than the file")
        numbers = np.frombuffer(data, f"<u{storage.size}")
        view = np.lib.stride_tricks.as_strided(numbers, shape, [s * storage.size for s in strides], writeable=False)
        return Tensor(storage.dtype, tuple(shape), np.ascontiguousarray(view).data.cast("B"))


def _name(name: str) -> Name:
    if name not in {*STORAGES, *BYSTANDERS, DICTIONARY, TENSOR, PARAMETER}:
        raise ValueError(f"data.pkl asks for {name[:120]!r}, which no dictionary of tensors needs; nothing was run")
    return Name(name)


def _update(dictionary: Any, keys: list[Any], values: list[Any]) -> None:
    """Sets items with simple keys only: the hash of a tuple of the same tuple twice, and so on, would take forever."""
    if not all(isinstance(key, (str, int, float, Name, type(None))) for key in keys):
        raise ValueError("data.pkl: a dictionary with keys that are neither texts nor numbers")
    dictionary.update(zip(keys, values, strict=True))
