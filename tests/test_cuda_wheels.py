"""What needs NVIDIA's wheels, but neither a GPU nor a driver: constants and prototypes against the real headers of CUDA 12 and
13, and cuDNN's own plans for every convolution of the models. `make test-cuda` fetches the wheels and runs this."""

import ctypes
import json
import os
import re
import subprocess
from pathlib import Path

import pytest
from native.cuda import CSRC, HERE

ROOT = Path(__file__).parents[1]
WHEELS = Path(os.environ.get("STYLEID_NVIDIA_WHEELS", ROOT / ".nvidia"))
NVIDIA_H = CSRC / "cuda" / "nvidia.h"
DEVICES = sorted((int(path.stem.removeprefix("sm_")), path) for path in (HERE / "devices").glob("sm_*.json"))
F32, BF16, F16 = range(3)

pytestmark = pytest.mark.slow


def wheels(major):
    folder = WHEELS / f"cu{major}"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: make test-cuda fetches it")
    return folder


def compile_c(*arguments):
    subprocess.run([*os.environ.get("CC", "cc").split(), *map(str, arguments)], check=True)


# ------------------------------------------------------------------------------------------------------ the headers


def include_flags(major, folder):
    """The real headers, and small ones in place of what nothing here needs: 16-bit types and the compiler's own words."""
    (folder / "cuda_fp16.h").write_text("#pragma once\n#include <cuComplex.h>\nstruct __half { short bits; };\n")
    (folder / "cuda_bf16.h").write_text("#pragma once\nstruct __nv_bfloat16 { short bits; };\n")
    for name in "fp8", "fp6", "fp4":
        (folder / f"cuda_{name}.h").write_text("#include <cuComplex.h>\n")
    words = (
        "__host__ __device__ __device_builtin__ __cudart_builtin__ __forceinline__ CUDARTAPI CUDARTAPI_CDECL CUDART_CB"
    )
    defines = [*(f"#define {word}" for word in words.split()), "#define __builtin_align__(n)", "#define __align__(n)"]
    (folder / "crt").mkdir()
    (folder / "crt/host_defines.h").write_text("\n".join([*defines, ""]))
    found = sorted({path.parent for path in wheels(major).rglob("include/*.h")})
    return [f"-I{folder}", *(f"-I{path}" for path in found)]


def declared_constants():
    text = re.sub(r"/\*.*?\*/", "", NVIDIA_H.read_text(), flags=re.S)
    return dict(re.findall(r"\b(C\w+|NVRTC_\w+) = (\d+)", text))


def declared_functions():
    return re.findall(r"\bX\([\w\s*]+?,\s*(\w+),\s*\(", NVIDIA_H.read_text())


@pytest.mark.parametrize("major", [12, 13])
def test_constants_and_prototypes_are_nvidias(major, tmp_path):
    """C++ compares: values, and of every function the sizes of the result and of each argument."""
    constants, functions = declared_constants(), declared_functions()
    assert len(constants) > 90 and len(functions) > 70
    lines = [
        "#include <cuda.h>", "#include <nvrtc.h>", "#include <cublasLt.h>", "#include <cudnn.h>", "#include <type_traits>",
        "namespace ours {", '#include "cuda/nvidia.h"', "}",
        "template <class T> constexpr unsigned long size() { if constexpr (std::is_void_v<T>) return 0; else return sizeof(T); }",
        "template <class... T> struct sizes {};",
        "template <unsigned long... N> struct numbers {};",
        "template <class R, class... A> numbers<size<R>(), sizeof(A)...> shape(R (*)(A...));",
        *(f'static_assert({value} == (long)({name}), "{name}");' for name, value in constants.items()),
        *(
            f'static_assert(std::is_same_v<decltype(shape(&::{name})), decltype(shape(ours::sid_nvidia{{}}.{name}))>, "{name}");'
            for name in functions
        ),
        *(
            f'static_assert(sizeof(ours::{name}) == sizeof(::{name}), "{name}");'
            for name in ("CUmemPoolProps", "CUDA_KERNEL_NODE_PARAMS", "cublasLtMatmulAlgo_t", "cublasLtMatmulHeuristicResult_t")
        ),
        "int main() {}",
    ]  # fmt: skip
    source = tmp_path / "abi.cpp"
    source.write_text("\n".join(lines))
    flags = include_flags(major, tmp_path)
    subprocess.run(["c++", "-std=c++17", "-fsyntax-only", "-w", *flags, f"-I{CSRC}", str(source)], check=True)


# -------------------------------------------------------------------------------------------------------- the plans


def convolution(n, size, into, out, *, kernel=3, stride=1, before=1, after=1, residual=0, relu=0):
    outside = (size + before + after - kernel) // stride + 1
    return (n, size, size, into, out, outside, outside, kernel, stride, before, after), residual, relu


def doubling(n, size, channels):
    """The 2x2 convolution that stands for a doubling and a 3x3 one."""
    return convolution(n, size, channels, 4 * channels, kernel=2)


# What ends the UNet and the decoders is float32, which cuDNN has no 16-bit engines for: the backend convolves there itself.
def unet_convolutions(channels, layers, size, n, latent=4):
    yield convolution(n, size, latent, channels[0])
    skips, width, side = [channels[0]], channels[0], size
    for level, out in enumerate(channels):
        for _ in range(layers):
            yield convolution(n, side, width, out)
            yield convolution(n, side, out, out, residual=1)
            width = out
            skips.append(out)
        if level + 1 < len(channels):
            yield convolution(n, side, out, out, stride=2)
            side = (side - 1) // 2 + 1
            skips.append(out)
    yield convolution(n, side, width, width)
    for level in reversed(range(len(channels))):
        for _ in range(layers + 1):
            yield convolution(n, side, width + skips.pop(), channels[level])
            yield convolution(n, side, channels[level], channels[level], residual=1)
            width = channels[level]
        if level:
            yield doubling(n, side, width)
            side *= 2


def vae_convolutions(channels, layers, size, latent=4):
    """Encoder and decoder at `size` pixels a side."""
    side, width = size, channels[0]
    yield convolution(1, side, 3, width)
    for level, out in enumerate(channels):
        for _ in range(layers):
            yield convolution(1, side, width, out)
            yield convolution(1, side, out, out, residual=1)
            width = out
        if level + 1 < len(channels):
            yield convolution(1, side, out, out, stride=2, before=0)
            side //= 2
    if 2 * latent > 8:  # as few as eight are not cuDNN's
        yield convolution(1, side, width, 2 * latent)
    yield convolution(1, side, latent, width)
    for level in reversed(range(len(channels))):
        for _ in range(layers + 1):
            yield convolution(1, side, width, channels[level])
            width = channels[level]
        if level:
            yield doubling(1, side, width)
            side *= 2


def taesd_convolutions(size, width=64):
    yield convolution(1, size, 3, width)
    yield convolution(1, size // 8, 4, width, relu=1)
    for side in size, size // 2, size // 4, size // 8:
        yield convolution(1, side, width, width, relu=1)
        yield convolution(1, side, width, width, residual=1, relu=1)
        yield convolution(1, side, width, width, stride=2)
        yield doubling(1, side, width)


def default_model(part):
    return json.loads((ROOT / "styleid/data/default-model" / part / "config.json").read_text())


def models():
    own, own_vae = default_model("unet"), default_model("vae")
    native = own["sample_size"]
    side = native * 2 ** (len(own_vae["block_out_channels"]) - 1)
    return {
        "SD 1.x": [c for n in (1, 2) for c in unet_convolutions((320, 640, 1280, 1280), 2, 64, n)],
        "SD 2.x": [*unet_convolutions((320, 640, 1280, 1280), 2, 96, 2)],
        "their VAE": [*vae_convolutions((128, 256, 512, 512), 2, 512)],
        "TAESD": [*taesd_convolutions(512)],
        "the default model": [
            *unet_convolutions(own["block_out_channels"], own["layers_per_block"], native, 2, own["in_channels"]),
            *vae_convolutions(
                own_vae["block_out_channels"], own_vae["layers_per_block"], side, own_vae["latent_channels"]
            ),
        ],
        "odd widths": [
            convolution(1, 16, 3, 9),
            convolution(1, 7, 5, 24, stride=2),
            convolution(2, 5, 24, 24, residual=1),
            *(convolution(1, 8, into, out) for into in (1, 3, 4, 7, 12, 24) for out in (9, 12, 20, 64)),
            *(doubling(1, 4, channels) for channels in (3, 7, 12)),
        ],
    }


@pytest.fixture(scope="module")
def cudnn(tmp_path_factory):
    """cuDNN beside a driver that has no device, and our planning, as a library."""
    library = next(wheels(13).rglob("libcudnn.so.9"))
    folder = tmp_path_factory.mktemp("plans")
    compile_c("-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", HERE / "stub_cuda.c", "-o", folder / "libcuda.so.1")
    sources = [HERE / "plans.c", CSRC / "cuda/plan.c", CSRC / "core/err.c"]
    compile_c(
        "-std=c11", "-O1", "-D_GNU_SOURCE", "-shared", "-fPIC", f"-I{CSRC}", *sources, "-ldl", "-o", folder / "plans.so"
    )
    ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    plans = ctypes.CDLL(str(folder / "plans.so"))
    plans.plans_error.restype = ctypes.c_char_p
    plans.plans_workspace.restype = ctypes.c_long
    plans.version = plans.plans_open(str(library).encode())
    assert plans.version, plans.plans_error()
    return plans


def alignment(numbers, dtype):
    n, h, w, into, out, oh, ow = numbers[:7]
    bits = (h * w * into * (2 if dtype else 4)) | (oh * ow * out * (2 if dtype else 4)) | 16
    return bits & -bits


@pytest.mark.parametrize("architecture, path", DEVICES)
@pytest.mark.parametrize("dtype", [F32, BF16, F16], ids=["float32", "bfloat16", "float16"])
def test_every_convolution_has_a_plan(cudnn, architecture, path, dtype):
    """One that is compiled already and deterministic, with little workspace."""
    if dtype == BF16 and architecture < 80:
        pytest.skip("bfloat16 is refused before sm_80")
    properties = json.loads(path.read_text()) | {"cudnnVersion": cudnn.version}
    assert cudnn.plans_device(json.dumps(properties).encode()) == 0, cudnn.plans_error()
    largest = 0
    for name, convolutions in models().items():
        for numbers, residual, relu in dict.fromkeys(convolutions):
            values = (ctypes.c_int64 * 15)(*numbers, alignment(numbers, dtype), dtype, residual, relu)
            workspace = cudnn.plans_workspace(values)
            assert workspace >= 0, f"{name}: {numbers}: {cudnn.plans_error().decode()}"
            largest = max(largest, workspace)
    assert largest <= 256 << 20
    print(f"largest workspace: {largest / 2**20:.1f} MiB")
