"""What tests/test_team.py and tests/test_processes.py run in processes of their own: one model, and what it computes."""

import ctypes
import hashlib

import numpy as np
import tiny

from styleid import _core

STEPS = 2


def model(dtype="float32", threads=4):
    """Wide enough that oneDNN divides its products among the threads."""
    config = tiny.config(text=True)
    config["unet"] |= {"channels": [64, 128]}
    config["vae"] |= {"channels": [32, 64]}
    return _core.Model(config, tiny.weights(config), dtype=dtype, threads=threads)


def digest(model, side=32, progress=None):
    """Of everything that an engine computes: a transfer, latents, a context."""
    result = hashlib.sha256()
    images = [np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8) for seed in (1, 2)]
    ones = np.ones((STEPS, 4), np.float32)
    arguments = images[0], images[1], tiny.CONTEXT, STEPS, "paper", (2, 3), ones, ones
    result.update(_core.transfer(model, *arguments, progress=progress))
    z = tiny.latents(height=side // 2, width=side // 2 + 2)
    result.update(model.predict_noise(z, 1, tiny.CONTEXT))
    result.update(model.encode_tokens(np.arange(7, dtype=np.int32)[np.newaxis]))
    return result.hexdigest()


class OpenMP:
    """GNU OpenMP as another library in the process uses it."""

    def __init__(self):
        self.library = ctypes.CDLL("libgomp.so.1")

    def set_dynamic(self, on):
        self.library.omp_set_dynamic(on)

    def set_levels(self, count):
        self.library.omp_set_max_active_levels(count)

    def settings(self):
        return [getattr(self.library, f"omp_get_{name}")() for name in ("dynamic", "max_threads", "max_active_levels")]

    def inside(self, call):
        """The result of call() in the first thread of a parallel region of two."""
        results = []

        @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
        def region(_):
            if self.library.omp_get_thread_num() == 0:
                results.append(call())

        self.library.GOMP_parallel(region, None, 2, 0)
        return results[0]
