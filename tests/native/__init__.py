"""Compiles the CPU kernels with the system's compiler into a library of their own and calls them on NumPy arrays.

Arrays of float32 are float32 to the kernels, and arrays of uint16 are bfloat16. Matrices may be slices of columns.
"""

import ctypes
from ctypes import POINTER, byref, c_char_p, c_float, c_int, c_size_t, c_void_p
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from . import building

SOURCES = [
    *(
        building.CSRC / "cpu" / f"{name}.c"
        for name in ("attention", "avx2", "avx512", "avx512_bf16", "amx", "generic", "kernels", "cpuid")
    ),
    Path(__file__).with_name("shim.c"),
]

F32, BF16, F16 = range(3)
GENERIC, AVX2, AVX512, AVX512_BF16, AMX = range(5)
NAMES = ("generic", "avx2", "avx512", "avx512_bf16", "amx")


def to_bfloat16(x):
    bits = np.asarray(x, dtype=np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bfloat16(x):
    return (np.asarray(x).astype(np.uint32) << 16).view(np.float32)


def floats(x):
    return from_bfloat16(x) if x.dtype == np.uint16 else x


# ------------------------------------------------------------------------------------------------- structures of the C side


class _Tensor(ctypes.Structure):
    _fields_ = [("data", c_void_p), ("dtype", c_int), *((name, c_size_t) for name in ("n", "h", "w", "c", "stride"))]


class _Keys(ctypes.Structure):
    _fields_ = [
        ("k", _Tensor),
        ("v", _Tensor),
        ("bias", c_float),
        ("query_bias", c_void_p),
        ("key_bias", c_void_p),
    ]


class _Attention(ctypes.Structure):
    _fields_ = [
        ("q", POINTER(_Tensor)),
        ("sources", POINTER(_Keys)),
        ("source_count", c_size_t),
        ("heads", c_size_t),
        ("scale", c_float),
        ("causal", c_int),
    ]


class _Matmul(ctypes.Structure):
    _fields_ = [
        *((name, c_size_t) for name in ("rows", "in_", "out")),
        *((name, c_void_p) for name in ("dst", "src", "weights", "bias", "factor", "residual")),
        *((name, c_size_t) for name in ("dst_stride", "src_stride", "factor_stride", "residual_stride")),
        ("activation", c_int),
    ]


_MIRRORED = (_Tensor, _Keys, _Attention, _Matmul)  # in the shim's order

_ARGUMENTS = {
    "size": [c_int],
    "attention": [c_int, POINTER(_Tensor), POINTER(_Attention), c_int],
    "group_norm": [c_int, c_void_p, *[POINTER(_Tensor)] * 3, *[c_void_p] * 2, c_size_t, c_float, c_int, c_int],
    "winograd_input": [c_int, c_void_p, c_void_p, c_int, *[c_size_t] * 6, c_int],
    "winograd_output": [c_int, c_void_p, c_int, *[c_void_p] * 3, *[c_size_t] * 6, c_int, c_int],
    "matmul": [c_int, POINTER(_Matmul), c_size_t, c_int],
    "convert": [c_int, c_void_p, c_int, c_void_p, c_int, c_size_t, c_int],
}


@cache
def library(emulate_amx):
    """The kernels and the shim. With emulate_amx, plain C takes the place of AMX's tile instructions."""
    loaded = building.build("kernels", SOURCES, emulate_amx)
    for name, arguments in _ARGUMENTS.items():
        getattr(loaded, "shim_" + name).argtypes = arguments
    loaded.shim_size.restype = c_size_t
    for i, mirrored in enumerate(_MIRRORED):
        assert ctypes.sizeof(mirrored) == loaded.shim_size(i), mirrored.__name__
    loaded.shim_isa_name.restype = c_char_p
    return loaded


def best_level():
    return library(False).shim_isa()


def _address(x):
    return None if x is None else x.ctypes.data


def _dtype(x):
    return {"float32": F32, "uint16": BF16, "float16": F16}[x.dtype.name]


def _stride(x):
    assert x.strides[-1] == x.itemsize or x.shape[-1] == 1
    return x.strides[-2] // x.itemsize if x.shape[-2] > 1 else x.shape[-1]


def _tensor(x):
    """The tensor of an array of up to four dimensions."""
    if x is None:
        return None
    shape = (1,) * (4 - x.ndim) + x.shape
    return _Tensor(_address(x), _dtype(x), *shape, _stride(x) if x.ndim > 1 else x.shape[0])


@dataclass
class Source:
    """Keys and values (tokens, channels) of a problem."""

    k: np.ndarray
    v: np.ndarray
    bias: float = 0.0
    query_bias: np.ndarray | None = None
    key_bias: np.ndarray | None = None


@dataclass
class Problem:
    """Attention of the queries q (queries, channels) over the sources."""

    q: np.ndarray
    sources: list[Source]
    heads: int
    scale: float
    dst: np.ndarray | None = None


class Kernels:
    """The kernels of one level."""

    def __init__(self, level, emulate_amx=False):
        self.level, self.library = level, library(emulate_amx)

    def __repr__(self):
        return NAMES[self.level]

    def prepare(self, problems):
        """The arguments of attention_prepared(), which is timed alone. Missing destinations are filled in."""
        prepared = []
        for problem in problems:
            if problem.dst is None:
                problem.dst = np.empty(problem.q.shape, problem.q.dtype)
            q, dst = _tensor(problem.q), _tensor(problem.dst)
            keys = [
                _Keys(_tensor(x.k), _tensor(x.v), x.bias, _address(x.query_bias), _address(x.key_bias))
                for x in problem.sources
            ]
            sources = (_Keys * len(keys))(*keys)
            attention = _Attention(ctypes.pointer(q), sources, len(keys), problem.heads, problem.scale, 0)
            attention.problem = problem  # keeps its arrays alive
            prepared.append((dst, attention))
        return prepared

    def attention_prepared(self, prepared, threads=2):
        for dst, attention in prepared:
            done = self.library.shim_attention(self.level, byref(dst), byref(attention), threads)
            assert done, "the scratch was overrun"

    def group_norm(self, a, b, channel_add, scale, shift, groups, eps, silu, threads=2, dst=None):
        if dst is None:
            dst = np.empty((*a.shape[:3], a.shape[3] + (0 if b is None else b.shape[3])), a.dtype)
        assert self.library.shim_group_norm(
            self.level,
            _address(dst),
            *map(_tensor, (a, b, None if channel_add is None else channel_add[:, None, None])),
            *map(_address, (scale, shift)),
            groups,
            eps,
            silu,
            threads,
        ), "the scratch was overrun"
        return dst

    def winograd_input(self, src, first, count, output, threads=2):
        _, h, w, c = src.shape
        v = np.empty(((output + 2) ** 2, count, c), np.float32 if output == 4 else np.uint16)
        self.library.shim_winograd_input(
            self.level, _address(v), _address(src), _dtype(src), h, w, first, count, output, c, threads
        )
        return v

    def winograd_output(self, dst, m, bias, residual, relu, first, output, threads=2):
        _, h, w, c = dst.shape
        self.library.shim_winograd_output(
            self.level, _address(dst), _dtype(dst), _address(m), _address(bias),
            None if residual is None else _address(residual), h, w, first, m.shape[1], output, c, relu, threads,
        )  # fmt: skip

    def matmul(self, products, threads=2):
        """Computes the dst of products; False if the level has no such kernel. Each product is a dictionary of the
        structure's members, with the weights as panels. The matrices may be slices of columns."""
        structures = (_Matmul * len(products))()
        for p, s in zip(products, structures, strict=True):
            s.rows, s.in_, s.out = *p["src"].shape, p["dst"].shape[1]
            s.activation, s.weights, s.bias = p.get("activation", 0), _address(p["weights"]), _address(p.get("bias"))
            for name in "dst", "src", "factor", "residual":
                if p.get(name) is not None:
                    setattr(s, name, _address(p[name]))
                    setattr(s, name + "_stride", _stride(p[name]))
        return bool(self.library.shim_matmul(self.level, structures, len(products), threads))

    def convert(self, x, dtype, threads=2):
        dst = np.empty(x.shape, dtype)
        self.library.shim_convert(self.level, _address(dst), _dtype(dst), _address(x), _dtype(x), x.size, threads)
        return dst
