"""The parts of benchmarks.gpu, in the order of their worth: `python -m benchmarks.gpu.parts NAME ANSWERS MODEL`. Each yields
(what, found) and may be cut off after any of them."""

import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import numpy as np

ROOT = Path(__file__).parents[2]
DTYPES = ("float32", "float16", "bfloat16")


class Part(NamedTuple):
    seconds: int  # of nine minutes
    run: Callable


def output_of(*command, **environment):
    """The last lines of what a command says, or why it cannot be run."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | environment)
    except OSError as error:
        return str(error)
    return (done.stdout + done.stderr).strip()


def torch_cuda():
    """PyTorch where it has a GPU, else None."""
    try:
        import torch
    except ImportError:
        return None
    return torch if torch.cuda.is_available() else None


def milliseconds(run, repeats=20):
    """Median and fastest of the calls, after three that warm up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(1e3 * (time.perf_counter() - start))
    return f"{statistics.median(times):.3f} ms, fastest {min(times):.3f}"


def relative(found, expected):
    found, expected = np.float64(found), np.float64(expected)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def load(folder, dtype, device="cuda", **options):
    import styleid

    return styleid.load_model(folder, dtype=dtype, device=device, **options)


def inputs(model, batch=1):
    side, channels = model.config["unet"]["sample_size"], model.config["unet"]["in_channels"]
    return np.random.default_rng(1).standard_normal((batch, channels, side, side), np.float32)


def image(model, seed=2):
    return np.random.default_rng(seed).integers(0, 256, (model.image_size, model.image_size, 3), np.uint8)


# ------------------------------------------------------------------------------------------------------------- the GPU


def machine(folder):
    from styleid import _cuda

    for line in _cuda.report():
        yield line.partition(":")[0], line.partition(":")[2].strip()
    yield (
        "nvidia-smi",
        output_of("nvidia-smi", "--query-gpu=name,driver_version,clocks.max.sm,power.limit", "--format=csv,noheader"),
    )
    yield "CPU", output_of("sh", "-c", "lscpu | grep -E 'Model name|^CPU\\(s\\)|amx' | cut -c1-200")
    for package in "styleid", "torch", "diffusers", "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cuda-nvrtc":
        try:
            yield package, version(package)
        except PackageNotFoundError:
            yield package, "not there"
    if torch := torch_cuda():
        yield from ceilings(torch)


def ceilings(torch):
    a = torch.empty(1 << 28, dtype=torch.float32, device="cuda")
    b = torch.empty_like(a)

    def copy():
        b.copy_(a)
        torch.cuda.synchronize()

    yield "copy of 1 GB", milliseconds(copy)
    x, y = (torch.randn(8192, 8192, dtype=torch.float16, device="cuda") for _ in range(2))

    def multiply():
        x @ y
        torch.cuda.synchronize()

    yield "product of 8192^3 in float16", milliseconds(multiply)


def kernels(folder):
    """The first load on a machine, which compiles, and the second."""
    with tempfile.TemporaryDirectory() as cache:
        os.environ["XDG_CACHE_HOME"] = cache
        for which in "first", "second":
            start = time.perf_counter()
            model = load(folder, "float16")
            model.predict_noise(inputs(model), 500)
            yield f"{which} load with one evaluation", f"{time.perf_counter() - start:.2f} s"
        yield "kernels on disk", sum(1 for _ in Path(cache).rglob("*.cubin"))


def operations(folder):
    """The table of tests/ops.py on this device, in three types."""
    from styleid import _cuda

    driver = _cuda.open_driver()
    folder = os.environ.get(_cuda.ENVIRONMENT)
    paths = [str(Path(folder, _cuda.DRIVER)) if folder else _cuda.DRIVER, *_cuda._candidates(driver)[0]]
    for dtype in DTYPES:
        text = output_of(sys.executable, "-W", "ignore", "tests/ops.py", "cuda", ",".join(paths), dtype)
        lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
        wrong = [f"{line['case']}: {line['error']}" for line in lines if line["error"]]
        yield (
            f"operations in {dtype}",
            f"{len(lines) - len(wrong)} of {len(lines)} right" + "".join(f"; {one}" for one in wrong[:20]),
        )
        if not lines:
            yield f"operations in {dtype} ended", text[-1000:]


def networks(folder):
    """Whole networks against this engine's float32 on the CPU, and, where PyTorch has a GPU, what its own types lose."""
    cpu = load(folder, "float32", "cpu")
    latents = inputs(cpu)
    expected, latent = cpu.predict_noise(latents, 500), cpu.encode(image(cpu))
    for dtype in DTYPES:
        gpu = load(folder, dtype)
        found = gpu.predict_noise(latents, 500)
        yield f"UNet in {dtype}, relative error", f"{relative(found, expected):.2e}"
        yield f"UNet in {dtype}, same bytes again", bool(np.array_equal(found, gpu.predict_noise(latents, 500)))
        yield f"VAE encode in {dtype}, relative error", f"{relative(gpu.encode(image(cpu)), latent):.2e}"
        if torch := torch_cuda():
            network, context = peer(torch, folder, "unet", dtype), peer_context(torch, folder, dtype, 1)
            noise = network(on_gpu(torch, latents, dtype), 500, context).sample
            yield f"PyTorch's UNet in {dtype}", f"{relative(noise.float().cpu().numpy(), expected):.2e}"


def peer(torch, folder, part, dtype):
    """PyTorch's network of a part of the model's folder, channels last."""
    import diffusers

    torch.set_grad_enabled(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = dtype != "float32"
    form = {"dtype": getattr(torch, dtype), "device": "cuda", "memory_format": torch.channels_last}
    network = {"unet": diffusers.UNet2DConditionModel, "vae": diffusers.AutoencoderKL}[part]
    return network.from_pretrained(Path(folder, part)).to(**form).eval()


def peer_context(torch, folder, dtype, batch):
    from safetensors.torch import load_file

    context = load_file(Path(folder, "context.safetensors"))["empty_prompt"]
    return context.to("cuda", getattr(torch, dtype)).expand(batch, -1, -1)


def on_gpu(torch, array, dtype):
    return torch.from_numpy(array).to("cuda", getattr(torch, dtype)).contiguous(memory_format=torch.channels_last)


def recorded(torch, run):
    """A function that replays the run's kernels as one CUDA graph, and returns the result of the run."""
    from training.graphs import Recorded

    return Recorded(run, torch.device("cuda"))


def peer_evaluations(torch, folder, latents):
    """The ways in which PyTorch evaluates the UNet in float16, each with the latents on the GPU and the noise left there."""
    network, context = peer(torch, folder, "unet", "float16"), peer_context(torch, folder, "float16", len(latents))
    x = on_gpu(torch, latents, "float16")
    timestep = torch.tensor([500], device="cuda")  # a plain number would be copied there, which a recording may not

    def eager():
        return network(x, timestep, context).sample

    yield "eager", eager
    yield "as a CUDA graph", recorded(torch, eager)
    compiled = torch.compile(network, mode="reduce-overhead")
    yield "torch.compile", lambda: compiled(x, timestep, context).sample


def peer_decodings(torch, folder, latents):
    """The same of decoding one image."""
    network, x = peer(torch, folder, "vae", "float16"), on_gpu(torch, latents, "float16")

    def eager():
        return network.decode(x).sample

    yield "eager", eager
    yield "as a CUDA graph", recorded(torch, eager)


def unet(folder):
    """One evaluation, latents from and to the host; plain, recorded; PyTorch eager, recorded and compiled."""
    for graphs in "0", "1":
        os.environ["STYLEID_CUDA_GRAPHS"] = graphs
        model = load(folder, "float16")
        for batch in 1, 2:
            latents = inputs(model, batch)
            name = f"{'recorded' if graphs == '1' else 'plain'}, batch of {batch}"
            yield name, milliseconds(lambda model=model, latents=latents: model.predict_noise(latents, 500))
    if not (torch := torch_cuda()):
        return
    for batch in 1, 2:
        for name, run in peer_evaluations(torch, folder, inputs(model, batch)):
            yield f"PyTorch {name}, batch of {batch}", milliseconds(lambda run=run: run().float().cpu())


def vae(folder):
    """Decoding one latent, from and to the host; PyTorch eager and recorded."""
    model = load(folder, "float16")
    latents = inputs(model)
    yield "decode", milliseconds(lambda: model.decode(latents))
    if torch := torch_cuda():
        for name, run in peer_decodings(torch, folder, latents):
            yield f"PyTorch {name}", milliseconds(lambda run=run: run().float().cpu())


def transfers(folder):
    """50 steps, warm; peak memory; the image beside float32's."""
    import styleid
    from styleid import _core

    results = {}
    for dtype in "float16", "float32":
        start = time.perf_counter()
        model = load(folder, dtype)
        yield f"load in {dtype}", f"{time.perf_counter() - start:.2f} s"
        before = _core.cuda_free_memory(0)
        for run in ("first", "second") if dtype == "float16" else ("only",):
            start = time.perf_counter()
            results[dtype] = styleid.transfer(image(model, 2), image(model, 3), model)
            yield f"transfer of 50 steps in {dtype}, {run}", f"{time.perf_counter() - start:.3f} s"
        yield f"memory in {dtype}", f"{(before - _core.cuda_free_memory(0) + model.memory) / 1e9:.2f} GB"
        del model
    difference = np.float64(results["float16"]) - results["float32"]
    yield (
        "PSNR of float16's image from float32's",
        f"{10 * np.log10(255**2 / max(np.mean(difference**2), 1e-9)):.1f} dB",
    )


def sanitizer(folder):
    """compute-sanitizer on the table of operations in float16."""
    from styleid import _cuda

    tool = shutil.which("compute-sanitizer")
    if tool is None:
        yield "compute-sanitizer", "not there"
        return
    paths = ",".join([_cuda.DRIVER, *_cuda._candidates(_cuda.open_driver())[0]])
    for check in "memcheck", "racecheck":
        command = [tool, "--tool", check, sys.executable, "tests/ops.py", "cuda", paths, "float16"]
        yield check, output_of(*command)[-300:]


# ------------------------------------------------------------------------------------------------------------- the CPU


def level():
    from styleid import _core

    return _core.info()["isas"][-1]


def cpu_machine(folder):
    from styleid import _core

    yield "CPU", output_of("sh", "-c", "lscpu | grep -E 'Model name|^CPU\\(s\\)|amx' | cut -c1-300")
    yield "engine", str(_core.info())
    yield "Python", platform.python_version()


def cpu_correct(folder):
    """Every operation on every level, and the networks against PyTorch at the highest."""
    for files in ["tests/test_ops.py"], ["tests/test_parity_unet.py", "tests/test_parity_vae.py"]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
        yield " ".join(files), output_of(*command, STYLEID_ISA=level()).splitlines()[-1]


def cpu_speed(folder):
    yield "kernels", output_of(sys.executable, "-m", "benchmarks.kernels", "--threads", str(os.cpu_count()))
    yield "networks", output_of(sys.executable, "-m", "benchmarks", "unet", "vae", "-o", "build/benchmarks")


GPU = {
    "machine": Part(15, machine),
    "kernels": Part(50, kernels),
    "operations": Part(100, operations),
    "networks": Part(90, networks),
    "unet": Part(140, unet),
    "vae": Part(40, vae),
    "transfers": Part(50, transfers),
    "sanitizer": Part(55, sanitizer),
}
CPU = {"cpu-machine": Part(15, cpu_machine), "cpu-correct": Part(240, cpu_correct), "cpu-speed": Part(285, cpu_speed)}


def main(name, answers, model):
    from benchmarks import sd

    part = (GPU | CPU)[name]
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(model) if model else Path(temporary)
        if not model and part.run in (kernels, networks, unet, vae, transfers):
            sd.write_folder(folder)
        for what, found in part.run(folder):
            rows.append({"what": what, "found": found})
            print(what, found, sep=": ", flush=True)
            Path(answers).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:4])
