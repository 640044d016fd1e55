"""The programs that are compared, each in a process of its own: `python -m benchmarks.workers NAME DTYPE FOLDER THREADS CLOCK`.

A worker answers every line of standard input, a JSON list of a task's name and its arguments, with a JSON line:
{"seconds": ..., "megabytes": the process's peak during the task, "version": the program's}. The first task is "load". CLOCK: a function of the module time."""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.sd import CONTEXT, SIDE

clock = time.perf_counter


def noise(*shape):
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


class Styleid:
    def __init__(self, dtype, folder, threads):
        self.arguments = {"source": folder, "dtype": dtype, "threads": threads}

    def load(self):
        """With the first evaluation."""
        import styleid

        self.styleid, self.version = styleid, styleid.__version__
        self.model = styleid.load_model(**self.arguments)
        self.channels = self.model.config["unet"]["in_channels"]
        self.evaluate()

    def evaluate(self, side=SIDE, batch=1):
        self.model.predict_noise(noise(batch, self.channels, side, side), 500)

    def image(self, seed):
        side = self.model.image_size
        return np.random.default_rng(seed).random((side, side, 3), dtype=np.float32)

    def injected(self):
        """The mean over the sampling of a short transfer whose inversions are there already."""
        if not hasattr(self, "inversion"):
            self.inversion = self.styleid.invert(self.image(2), self.model, steps=3)
        ends = []
        self.styleid.inject_styles(
            self.inversion, self.inversion, self.model, progress=lambda step, total: ends.append(clock())
        )
        return float(np.mean(np.diff(ends)))

    def encode(self):
        self.model.encode(self.image(2))

    def decode(self):
        self.model.decode(noise(1, 4, SIDE, SIDE))

    def invert(self, steps):
        self.styleid.invert(self.image(2), self.model, steps=steps)

    def transfer(self, steps, given=()):
        """given: whose inversions are there already, "style" and "content"."""

        def inversion(name):
            seed, keep = {"content": (2, "query"), "style": (3, "keys")}[name]
            return self.styleid.invert(self.image(seed), self.model, steps=steps, keep=keep)

        there = {name: inversion(name) for name in given}
        start = clock()
        both = [there[name] if name in there else inversion(name) for name in ("content", "style")]
        self.styleid.inject_styles(*both, self.model)
        return clock() - start


class PyTorch:
    def __init__(self, dtype, folder, threads):
        self.name, self.folder, self.threads = dtype, folder, threads

    def load(self):
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel

        torch.set_num_threads(self.threads)
        torch.set_grad_enabled(False)
        self.torch, self.dtype, self.version = torch, getattr(torch, self.name), torch.__version__
        form = {"dtype": self.dtype, "memory_format": torch.channels_last}
        self.network = UNet2DConditionModel.from_pretrained(self.folder / "unet").to(**form).eval()
        self.vae = AutoencoderKL.from_pretrained(self.folder / "vae").to(**form).eval()
        self.evaluate()

    def tensor(self, *shape):
        return self.torch.from_numpy(noise(*shape)).to(self.dtype)

    def evaluate(self, side=SIDE, batch=1):
        self.network(self.tensor(batch, 4, side, side), 500, self.tensor(batch, *CONTEXT))

    def encode(self):
        self.vae.encode(self.tensor(1, 3, 8 * SIDE, 8 * SIDE))

    def decode(self):
        self.vae.decode(self.tensor(1, 4, SIDE, SIDE))


class OpenVINO:
    """Of static shapes, which it is fastest with: one evaluation, VAE encode and decode."""

    def __init__(self, dtype, folder, threads):
        self.folder = folder
        self.options = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
        }

    def load(self):
        import openvino

        self.openvino, self.version = openvino, openvino.__version__
        self.requests = {}
        self.evaluate()

    def convert(self, stored, name, inputs):
        """Through diffusers' network, once per folder."""
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel

        kind, part = (UNet2DConditionModel, "unet") if name == "evaluate" else (AutoencoderKL, "vae")
        functions = {
            "evaluate": lambda net, x, timestep, context: net(x, timestep, context, return_dict=False)[0],
            "encode": lambda net, x: net.encode(x, return_dict=False)[0].mode(),
            "decode": lambda net, x: net.decode(x, return_dict=False)[0],
        }

        class Network(torch.nn.Module):
            def __init__(self, folder):
                super().__init__()
                self.network = kind.from_pretrained(folder / part).float().eval()

            def forward(self, *x):
                return functions[name](self.network, *x)

        with torch.no_grad():
            examples = tuple(torch.from_numpy(x) for x in inputs)
            shapes = [self.openvino.PartialShape(x.shape) for x in inputs]
            network = self.openvino.convert_model(Network(self.folder), example_input=examples, input=shapes)
            self.openvino.save_model(network, stored)

    def infer(self, name, *inputs):
        stored = self.folder / f"{name}.xml"
        if not stored.exists():
            self.convert(stored, name, inputs)
        if name not in self.requests:
            compiled = self.openvino.Core().compile_model(stored, "CPU", self.options)
            self.requests[name] = compiled.create_infer_request()
        self.requests[name].infer(list(inputs))

    def evaluate(self):
        self.infer("evaluate", noise(1, 4, SIDE, SIDE), np.array([500]), noise(1, *CONTEXT))

    def encode(self):
        self.infer("encode", noise(1, 3, 8 * SIDE, 8 * SIDE))

    def decode(self):
        self.infer("decode", noise(1, 4, SIDE, SIDE))


PROGRAMS = {"styleid": Styleid, "PyTorch": PyTorch, "OpenVINO": OpenVINO}


def forget_peak():
    """From here on the peak counts anew (Linux: proc(5), clear_refs)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak():
    """Megabytes, of a million bytes each."""
    status = Path("/proc/self/status").read_text()
    line = next((line for line in status.splitlines() if line.startswith("VmHWM")), None)
    kibibytes = int(line.split()[1]) if line else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes * 1024 // 10**6


def main(name, dtype, folder, threads, clock_name):
    global clock
    clock = getattr(time, clock_name)
    program = PROGRAMS[name](dtype, Path(folder), int(threads))
    for line in sys.stdin:
        task, arguments = json.loads(line)
        forget_peak()
        start = clock()
        measured = getattr(program, task)(**arguments)
        seconds = measured or clock() - start
        print(json.dumps({"seconds": seconds, "megabytes": peak(), "version": program.version}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
