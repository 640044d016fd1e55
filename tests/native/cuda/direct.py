"""The CUDA kernels on the CPU: their sources compiled by the system's C++ compiler, behind the functions of csrc/cuda that
launch them. Arrays are the device's memory: float32, float16, and uint16 for bfloat16; matrices may be slices of columns.
"""

import ctypes
import os
import subprocess
import tempfile
from ctypes import POINTER, Structure, c_char_p, c_double, c_float, c_int, c_size_t, c_void_p
from functools import cache, cached_property
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
CSRC = ROOT / "csrc"
KERNELS = CSRC / "cuda" / "kernels"
HOST_SOURCES = [
    *sorted(CSRC.joinpath("core").glob("*.c")),
    *(CSRC / "cuda" / f"{name}.c" for name in ("attention", "norm", "pointwise", "pack")),
    HERE / "direct.c",
]
F32, BF16, F16 = range(3)
DTYPES = {"float32": F32, "uint16": BF16, "float16": F16}
SIZES = {F32: np.float32, BF16: np.uint16, F16: np.float16}

_folder = tempfile.TemporaryDirectory(prefix="styleid-cuda-")


def compile_kernels(source, target, defines):
    """A file of kernels into a library that has them emulated."""
    flags = ["-O2", "-std=c++17", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    subprocess.run(
        [
            *os.environ.get("CXX", "c++").split(), *flags, "-DSID_EMULATED", *defines, f"-I{KERNELS}",
            "-include", str(HERE / "emu.h"), "-x", "c++", str(source), "-o", str(target),
        ],
        check=True,
    )  # fmt: skip


@cache
def kernel_library(file, dtype, architecture, options, mutant=None):
    """The path of csrc/cuda/kernels/FILE.cu, or of the text of a mutant of it, compiled for a dtype and an architecture."""
    name = f"{len(os.listdir(_folder.name))}-{file}"
    source, target = KERNELS / f"{file}.cu", Path(_folder.name, f"{name}.so")
    if mutant:
        source = Path(_folder.name, f"{name}.cu")
        source.write_text(mutant)
    compile_kernels(source, target, [f"-DSID_T={dtype}", f"-DSID_ARCH={architecture}", *options.split()])
    return str(target)


def surrounded(x):
    """The same numbers, dense and at an address of 256 bytes, between others that are NaNs of every type."""
    memory = np.full(x.nbytes + 1024, 0xFF, np.uint8)
    first = 256 + -memory[256:].ctypes.data % 256
    part = memory[first : first + x.nbytes].view(x.dtype).reshape(x.shape)
    part[...] = x
    return part


def untouched(x):
    """Whether the numbers around an array that surrounded() made, or a part of one, are as they were."""
    memory = x
    while memory.base is not None:
        memory = memory.base
    if memory.dtype != np.uint8 or memory.size < 1024:
        return True
    first = 256 + -memory[256:].ctypes.data % 256
    return (memory[:first] == 0xFF).all() and (memory[first + memory.size - 1024 :] == 0xFF).all()


def nans(shape, dtype):
    return surrounded(np.full(np.prod(shape) * np.dtype(dtype).itemsize, 0xFF, np.uint8).view(dtype).reshape(shape))


class Tensor(Structure):
    _fields_ = [
        ("data", c_void_p), ("dtype", c_int), *((name, c_size_t) for name in ("n", "h", "w", "c", "stride")),
    ]  # fmt: skip


class Planes(Structure):
    _fields_ = [("data", c_void_p), *((name, c_size_t) for name in ("n", "c", "h", "w"))]


class Curve(Structure):
    _fields_ = [("factor", c_float), ("offset", c_float), ("bound", c_float)]


class Window(Structure):
    _fields_ = [(name, c_size_t) for name in ("planes", "height", "width", "top", "left", "rows", "columns")]


class Post(Structure):
    _fields_ = [("activation", c_int), ("factor", POINTER(Tensor)), ("residual", POINTER(Tensor)), ("relu", c_int)]


class GroupNorm(Structure):
    _fields_ = [
        ("a", POINTER(Tensor)), ("b", POINTER(Tensor)), ("add", POINTER(Tensor)), ("scale", c_void_p),
        ("shift", c_void_p), ("groups", c_size_t), ("eps", c_float), ("silu", c_int),
    ]  # fmt: skip


class Keys(Structure):
    _fields_ = [("k", Tensor), ("v", Tensor), ("bias", c_float), ("query_bias", c_void_p), ("key_bias", c_void_p)]


class Attention(Structure):
    _fields_ = [
        ("q", POINTER(Tensor)), ("sources", POINTER(Keys)), ("source_count", c_size_t), ("heads", c_size_t),
        ("scale", c_float), ("causal", c_int),
    ]  # fmt: skip


class ConvShape(Structure):
    _fields_ = [
        *((name, c_size_t) for name in ("inputs", "outputs", "kernel", "stride", "pad_before", "pad_after")),
        ("upsample", c_int), ("no_bias", c_int), ("height", c_size_t), ("width", c_size_t),
    ]  # fmt: skip


class Weight(Structure):
    _fields_ = [
        ("name", c_char_p), ("dtype", c_int), ("rank", c_size_t), ("shape", c_size_t * 4), ("stride", c_size_t),
        ("data", c_void_p), ("taken", c_int),
    ]  # fmt: skip


FIND_LIBRARY = ctypes.CFUNCTYPE(c_size_t, c_char_p, c_char_p)


# The functions of direct.c, and their arguments after the backend.
ARGUMENTS = {
    **dict.fromkeys(("group_norm", "attention"), [c_void_p] * 2),
    **dict.fromkeys(("from_planes", "to_planes", "tile_take", "finish", "unfold", "pack_conv"), [c_void_p] * 3),
    "blend_rows": [c_void_p] * 4,
    "tile_add": [c_void_p] * 5,
    "conv_few": [c_void_p] * 6,
    "layer_norm": [*[c_void_p] * 4, c_float],
    "combine": [c_void_p, c_float, c_void_p, c_float, c_void_p],
    "mix": [c_void_p, c_void_p, c_size_t, c_void_p],
    "stack": [c_void_p, c_int, c_size_t, c_void_p],
    "give": [c_void_p],
}


@cache
def host_library():
    target = Path(_folder.name, "direct.so")
    flags = ["-std=c11", "-O1", "-g", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-D_GNU_SOURCE"]
    compiler = os.environ.get("CC", "cc").split()
    subprocess.run([*compiler, *flags, f"-I{CSRC}", *map(str, HOST_SOURCES), "-o", str(target), "-ldl"], check=True)
    library = ctypes.CDLL(str(target))
    library.direct_open.restype = c_void_p
    library.direct_open.argtypes = [c_int, c_int, FIND_LIBRARY]
    library.direct_error.restype = c_char_p
    library.direct_overflow.restype = POINTER(c_int)
    library.direct_overflow.argtypes = [c_void_p]
    for name, arguments in ARGUMENTS.items():
        getattr(library, "direct_" + name).argtypes = [c_void_p, *arguments]
    return library


def address(x):
    return None if x is None else x.ctypes.data


def tensor(x):
    """(n, h, w, c), or (rows, c) as one sample of one line."""
    if x is None:
        return None
    assert x.strides[-1] == x.itemsize or x.shape[-1] == 1
    steps = [step for step, size in zip(x.strides[-2::-1], x.shape[-2::-1], strict=True) if size > 1]
    stride = steps[0] // x.itemsize if steps else x.shape[-1]  # of the innermost dimension that has any
    shape = x.shape if x.ndim == 4 else (1, 1, *x.shape)
    return Tensor(address(x), DTYPES[x.dtype.name], *shape, stride)


def pointer(structure):
    return None if structure is None else ctypes.pointer(structure)


class Device:
    """A backend of own kernels alone. mutant: the name of a file of kernels and another text for it."""

    def __init__(self, dtype, architecture=80, mutant=(None, None)):
        self.dtype, self.architecture, self.mutant, self.paths = dtype, architecture, mutant, []
        self.find = FIND_LIBRARY(self.find_library)
        self.numpy = SIZES[dtype]

    @cached_property
    def library(self):
        return host_library()

    @cached_property
    def backend(self):
        return self.library.direct_open(self.dtype, self.architecture, self.find)

    def __repr__(self):
        return f"{('float32', 'bfloat16', 'float16')[self.dtype]}-sm{self.architecture}"

    def find_library(self, file, options):
        file = file.decode()
        mutant = self.mutant[1] if self.mutant[0] == file else None
        path = kernel_library(file, self.dtype, self.architecture, options.decode(), mutant)
        self.paths.append(ctypes.create_string_buffer(path.encode()))
        return ctypes.addressof(self.paths[-1])

    def call(self, name, *arguments, dst=None):
        """Raises what the C function reports; dst: what it writes, and nothing beside it."""
        pointers = [ctypes.addressof(x) if isinstance(x, Structure) else x for x in arguments]
        if getattr(self.library, "direct_" + name)(self.backend, *pointers):
            raise RuntimeError(self.library.direct_error().decode())
        assert dst is None or untouched(dst), "written beside the result"
        return dst

    def empty(self, shape, dtype=None):
        """NaNs between NaNs."""
        return nans(shape, SIZES[self.dtype if dtype is None else dtype])

    def group_norm(self, a, b, add, scale, shift, groups, eps, silu, dst=None):
        if dst is None:
            dst = nans((*a.shape[:3], a.shape[3] + (0 if b is None else b.shape[3])), a.dtype)
        add = None if add is None else tensor(add[:, None, None])
        norm = GroupNorm(
            *(pointer(tensor(x)) for x in (a, b)), pointer(add), address(scale), address(shift), groups, eps, silu
        )
        return self.call("group_norm", tensor(dst), norm, dst=dst)

    def layer_norm(self, x, scale, shift, eps, dst=None):
        dst = nans(x.shape, x.dtype) if dst is None else dst
        return self.call("layer_norm", tensor(dst), tensor(x), address(scale), address(shift), eps, dst=dst)

    def attention(self, q, sources, heads, scale, causal=False, dst=None):
        """q (n, 1, queries, channels); sources: (k, v, options) with the options bias, query_bias, key_bias."""
        dst = nans(q.shape, q.dtype) if dst is None else dst
        keys = (Keys * len(sources))(
            *(
                Keys(tensor(k), tensor(v), o.get("bias", 0), address(o.get("query_bias")), address(o.get("key_bias")))
                for k, v, o in sources
            )
        )
        return self.call(
            "attention", tensor(dst), Attention(pointer(tensor(q)), keys, len(keys), heads, scale, causal), dst=dst
        )

    def combine(self, dst, a, x, b, y):
        return self.call("combine", tensor(dst), a, tensor(x), b, tensor(y), dst=dst)

    def blend_rows(self, dst, a, x, y):
        return self.call("blend_rows", tensor(dst), address(a), tensor(x), tensor(y), dst=dst)

    def finish(self, dst, src, activation=0, factor=None, residual=None, relu=False):
        return self.call(
            "finish",
            tensor(dst),
            tensor(src),
            Post(activation, pointer(tensor(factor)), pointer(tensor(residual)), relu),
            dst=dst,
        )

    def from_planes(self, planes, dst, curve):
        return self.call("from_planes", tensor(dst), Planes(address(planes), *planes.shape), Curve(*curve), dst=dst)

    def to_planes(self, x, curve):
        n, h, w, c = x.shape
        planes = nans((n, c, h, w), np.float32)
        return self.call("to_planes", Planes(address(planes), *planes.shape), tensor(x), Curve(*curve), dst=planes)

    def mix(self, z, p, coefficients):
        """Whether a result is not finite."""
        flag = self.library.direct_overflow(self.backend)
        flag[0] = 0
        numbers = (c_double * 4)(*coefficients)
        self.call("mix", address(z), address(p), z.size, ctypes.addressof(numbers), dst=z)
        return bool(flag[0])

    def tile(self, name, *arrays, window):
        self.call(name, *map(address, arrays[:2]), Window(*window), *map(address, arrays[2:]))

    def conv_few(self, dst, src, weights, bias, shape, residual=None, relu=False):
        post = Post(0, None, pointer(tensor(residual)), relu)
        return self.call(
            "conv_few", tensor(dst), tensor(src), ConvShape(*shape), address(weights), address(bias), post, dst=dst
        )

    def unfold(self, dst, y, bias):
        return self.call("unfold", tensor(dst), address(y), address(bias), dst=dst)

    def taken(self, block, dtype, count):
        """The numbers of a block, which is given back."""
        numbers = np.ctypeslib.as_array(
            ctypes.cast(block, POINTER(ctypes.c_uint8)), (count * np.dtype(dtype).itemsize,)
        )
        numbers = numbers.view(dtype).copy()
        self.library.direct_give(self.backend, block)
        return numbers

    def stack(self, dtype, weights):
        block, keep = c_void_p(), [weight(w) for w in weights]
        pointers = (c_void_p * len(keep))(*map(ctypes.addressof, keep))
        self.call("stack", ctypes.addressof(block), dtype, len(keep), ctypes.addressof(pointers))
        return self.taken(block, SIZES[dtype], sum(w.size for w in weights))

    def pack_conv(self, w, shape):
        block, shape = c_void_p(), ConvShape(*shape)
        self.call("pack_conv", ctypes.addressof(block), shape, weight(w))
        return self.taken(block, self.numpy, w.size * 16 // 9 if shape.upsample else w.size)


def weight(x):
    """As stored; rows may be strided, what is in them is dense."""
    shape = (c_size_t * 4)(*x.shape)
    return Weight(b"w", DTYPES[x.dtype.name], x.ndim, shape, x.strides[0] // x.itemsize, address(x), 0)
