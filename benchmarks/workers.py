"""The programs that are compared, each in a process of its own: `python -m benchmarks.workers NAME DTYPE FOLDER`.

A worker loads its model, prints one JSON line with what it is, and then answers every line of standard input, a task's
name, with a JSON line: {"seconds": ..., "megabytes": the process's peak so far}."""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from benchmarks.sd import CONTEXT, LATENT

THREADS = 2


def noise(*shape):
    return np.random.default_rng(1).standard_normal(shape, dtype=np.float32)


class Styleid:
    def __init__(self, dtype, folder):
        import styleid

        self.model = styleid.load_model(folder, dtype=dtype, threads=THREADS)
        self.styleid = styleid
        self.version = styleid.__version__
        self.picture = np.random.default_rng(2).random((512, 512, 3), dtype=np.float32)

    def unet(self):
        self.model.predict_noise(noise(1, *LATENT), 500)

    def unet_batch_2(self):
        self.model.predict_noise(noise(2, *LATENT), 500)

    def vae_encode(self):
        self.model.encode(self.picture)

    def vae_decode(self):
        self.model.decode(noise(1, *LATENT))

    def unet_injected(self):
        """The mean over the sampling of a short transfer whose inversions are there already."""
        if not hasattr(self, "inversion"):
            self.inversion = self.styleid.invert(self.picture, self.model, steps=3)
        evaluations = []
        self.styleid.inject_styles(
            self.inversion, self.inversion, self.model, progress=lambda step, total: evaluations.append(time.perf_counter())
        )
        return float(np.mean(np.diff(evaluations)))


class PyTorch:
    def __init__(self, dtype, folder):
        import torch
        from diffusers import AutoencoderKL, UNet2DConditionModel

        torch.set_num_threads(THREADS)
        torch.set_grad_enabled(False)
        self.torch, self.dtype, self.version = torch, getattr(torch, dtype), torch.__version__
        form = {"dtype": self.dtype, "memory_format": torch.channels_last}
        self.network = UNet2DConditionModel.from_pretrained(folder / "unet").to(**form).eval()
        self.vae = AutoencoderKL.from_pretrained(folder / "vae").to(**form).eval()

    def tensor(self, *shape):
        return self.torch.from_numpy(noise(*shape)).to(self.dtype)

    def unet(self, n=1):
        self.network(self.tensor(n, *LATENT), 500, self.tensor(n, *CONTEXT))

    def unet_batch_2(self):
        self.unet(2)

    def vae_encode(self):
        self.vae.encode(self.tensor(1, 3, 512, 512))

    def vae_decode(self):
        self.vae.decode(self.tensor(1, *LATENT))


class OpenVINO:
    def __init__(self, dtype, folder):
        import openvino
        import torch
        from diffusers import UNet2DConditionModel

        class Network(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = UNet2DConditionModel.from_pretrained(folder / "unet").float().eval()

            def forward(self, latents, timestep, context):
                return self.network(latents, timestep, context, return_dict=False)[0]

        self.inputs = [noise(1, *LATENT), np.array([500]), noise(1, *CONTEXT)]
        stored = folder / "unet.xml"
        if not stored.exists():
            with torch.no_grad():
                examples = tuple(torch.from_numpy(x) for x in self.inputs)
                shapes = [openvino.PartialShape(x.shape) for x in self.inputs]
                openvino.save_model(openvino.convert_model(Network(), example_input=examples, input=shapes), stored)
        options = {
            "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[dtype],
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": THREADS,
        }
        self.request = openvino.Core().compile_model(stored, "CPU", options).create_infer_request()
        self.version = openvino.__version__

    def unet(self):
        self.request.infer(self.inputs)


PROGRAMS = {"styleid": Styleid, "PyTorch": PyTorch, "OpenVINO": OpenVINO}


def say(**facts):
    facts["megabytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(json.dumps(facts), flush=True)


def main(name, dtype, folder):
    start = time.perf_counter()
    program = PROGRAMS[name](dtype, Path(folder))
    say(version=program.version, seconds=time.perf_counter() - start)
    for line in sys.stdin:
        start = time.perf_counter()
        measured = getattr(program, line.strip())()
        say(seconds=measured or time.perf_counter() - start)


if __name__ == "__main__":
    main(*sys.argv[1:])
