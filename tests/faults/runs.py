"""The runs during which allocations fail, and the checks of their outcomes."""

import ctypes
import gc
import os
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import tiny

from styleid import _core

STEPS = 2
ONES = np.ones((STEPS, 4), np.float32)
IMAGE = tiny.random_image(16, 16)
TOKENS = np.arange(7, dtype=np.int32)[np.newaxis]


class Faults:
    """The counters of tests/faults/faults.c, put between styleid._core and the functions that it calls."""

    def __init__(self):
        folder = tempfile.mkdtemp()
        target = Path(folder) / "faults.so"
        source = Path(__file__).with_name("faults.c")
        compiler = os.environ.get("CC", "cc").split()
        flags = ["-std=c11", "-D_GNU_SOURCE", "-O1", "-fPIC", "-shared", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*compiler, *flags, source, "-o", target], check=True)
        self.library = ctypes.CDLL(str(target))
        self.library.faults_calls.restype = self.library.faults_living.restype = ctypes.c_long
        self.library.faults_site.restype = ctypes.c_void_p
        self.library.faults_site.argtypes = self.library.faults_arm.argtypes = [ctypes.c_long]
        program, onednn = ctypes.CDLL(None), self._onednn()

        @ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_char_p)
        def resolve(name):
            library = onednn if name.startswith(b"dnnl") else program
            return ctypes.cast(getattr(library, name.decode()), ctypes.c_void_p).value

        self.changed = self.library.faults_install(str(Path(_core.__file__).name).encode(), resolve)

    @staticmethod
    def _onednn():
        maps = Path("/proc/self/maps").read_text().splitlines()
        return ctypes.CDLL(next(line.split()[-1] for line in maps if "libdnnl.so" in line))

    def arm(self, number=-1):
        self.library.faults_arm(number)

    @property
    def calls(self):
        return self.library.faults_calls()

    @property
    def living(self):
        """The number of blocks and objects that the module has made and not ended."""
        gc.collect()
        return self.library.faults_living()

    def sites(self):
        """{place in the code: the numbers of the calls from there} since faults were armed."""
        places = {}
        for number in range(self.calls):
            places.setdefault(self.library.faults_site(number), []).append(number)
        return places


@cache
def faults():
    return Faults()


def build(dtype="float32"):
    config = tiny.config(text=True)
    return _core.Model(config, tiny.weights(config), dtype=dtype, threads=2)


def transfer(model, **options):
    return _core.transfer(model, IMAGE, IMAGE, tiny.CONTEXT, STEPS, "diffusers", (2, 3), ONES, ONES, **options)


def recompute(model):
    data = tiny.invert(model, steps=STEPS, keep=("none",))[0]
    again = {"latents": data["latents"], "context": tiny.CONTEXT, "feature_dtype": "float32"}
    arguments = tiny.sample_arguments(data) | {"content": again, "styles": [again], "steps": STEPS}
    return _core.inject_styles(model, **arguments | {"gamma": ONES, "temperature": ONES})


def pieces(model):
    """Runs everything else that the module does, including hooks, guidance, regions and a batch."""
    inversions = tiny.invert(
        model, latents=tiny.latents(2), keep=("both", "query"), steps=STEPS, refine=1, on_attention=lambda *_: None,
        negative=tiny.CONTEXT + 1, guidance=2.0,
    )  # fmt: skip
    arguments = tiny.sample_arguments(inversions[0]) | {"steps": STEPS, "gamma": ONES, "temperature": ONES}
    sampled = _core.sample(model, **arguments, negative=tiny.CONTEXT + 1, guidance=2.0, progress=lambda *_: None)
    images = model.decode(model.encode(IMAGE[np.newaxis]))
    context = model.encode_tokens(TOKENS)
    return np.concatenate(
        [np.ravel(a).astype(np.float64) for a in (sampled, images, context, model.log_variance(images))]
    )


RUNS = {"open": None, "transfer": transfer, "recompute": recompute, "pieces": pieces}


@cache
def expected(name):
    return RUNS[name](build())


def count(name):
    """The sites of a run, see Faults.sites()."""
    tools = faults()
    if name == "open":
        tools.arm()
        build()
    else:
        model = build()
        tools.arm()
        RUNS[name](model)
    return tools.sites()


def attempt(name, number):
    """Runs a new model and makes the call of that number fail.

    There has to be an error, or the right result where the call was not needed. Then the model's next run has to be right,
    and nothing may be left behind.
    """
    run = transfer if name == "open" else RUNS[name]
    wanted = expected("transfer" if name == "open" else name)
    tools = faults()
    tools.arm()
    before, model, result = tools.living, None, None
    if name != "open":
        model = build()
    tools.arm(number)
    try:
        if name == "open":
            model = build()
        else:
            result = run(model)
    except (MemoryError, RuntimeError) as error:
        assert str(error) or isinstance(error, MemoryError), f"{name}, call {number}: an error without a text"
    tools.arm()
    assert result is None or np.array_equal(result, wanted), f"{name}, call {number}: a wrong result"
    assert np.array_equal(run(model or build()), wanted), f"{name}, call {number}: a wrong result afterwards"
    del model, result
    left = tools.living - before
    assert left == 0, f"{name}, call {number}: {left} things were left behind"
