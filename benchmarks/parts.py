"""What is measured: each part is a list of sections, each section becomes a table."""

import sys
from dataclasses import dataclass, field

from styleid import _core

THREADS = 2
STEPS = 50
DTYPES = ("bfloat16", "float32")


@dataclass
class Row:
    """A task of the workers, or a command whose whole run is timed."""

    label: str
    task: str = ""
    arguments: dict = field(default_factory=dict)
    command: list = field(default_factory=list)


@dataclass
class Section:
    title: str
    rows: list[Row]
    programs: tuple[str, ...] = ("styleid", "PyTorch", "OpenVINO")  # those of them that can do it
    threads: int = THREADS
    level: str = ""  # an instruction set that styleid is held to
    fresh: bool = False  # a new process for each run
    clock: str = "perf_counter"
    most: int = 99  # counted runs at most: of what takes minutes
    dtypes: tuple[str, ...] = DTYPES  # those of them that it is for


EVALUATION = Row("one UNet evaluation", "evaluate")


def unet(steps):
    rows = [EVALUATION, Row("a batch of two", "evaluate", {"batch": 2}), Row("one with injection", "injected")]
    return [Section("UNet, 512x512", rows)]


def vae(steps):
    return [Section("VAE, 512x512", [Row("encode", "encode"), Row("decode", "decode")])]


def load(steps):
    return [Section("Loading", [Row("from the start of the load to the first result", "load")], fresh=True)]


def default(steps):
    command = [
        sys.executable,
        "-m",
        "styleid",
        "transfer",
        "styleid/data/demo/content.jpg",
        "styleid/data/demo/style.jpg",
    ]
    command += ["--size", "256", "--steps", str(STEPS), "-o"]
    row = Row(f"one transfer at 256x256, {STEPS} steps", command=command)
    return [Section("The default model, from import to file", [row], ("styleid",))]


def growth(steps):
    """How time and memory grow."""
    sizes = [Row(f"latent {side}x{side}", "evaluate", {"side": side}) for side in (32, 48, 64, 96, 128)]
    batches = [Row(f"batch of {n}", "evaluate", {"batch": n}) for n in (1, 2, 3, 4)]
    inversions = [Row(f"inversion of {n} steps", "invert", {"steps": n}) for n in (2, 4, 8)]
    peers = ("styleid", "PyTorch")
    return [
        Section("Growth with the size", sizes, peers, most=3),
        Section("Growth with the batch, 512x512", batches, peers, most=3),
        Section("Growth with the steps, 512x512", inversions, ("styleid",), most=3),
        Section("One thread", [EVALUATION], peers, threads=1, most=3),
        Section("Two threads", [EVALUATION], peers, most=3),
    ]


def transfer(steps):
    rows = [
        Row("whole", "transfer", {"steps": steps}),
        Row("the style's inversion given", "transfer", {"steps": steps, "given": ["style"]}),
        Row("both inversions given", "transfer", {"steps": steps, "given": ["style", "content"]}),
    ]
    return [Section(f"A transfer at 512x512, {steps} steps", rows, ("styleid",), fresh=True, most=1)]


def levels(steps):
    """The instruction sets below the machine's own."""
    below = _core.ISAS[: _core.ISAS.index(_core.info()["isa"])]
    rows = [EVALUATION, Row("VAE decode", "decode")]
    return [
        Section(
            f"Held to {level}", rows, ("styleid",), level=level, most=2,
            dtypes=DTYPES if "avx512" in level else ("float32",),
        )
        for level in reversed(below)
    ]  # fmt: skip


PARTS = {function.__name__: function for function in (unet, vae, load, default, growth, transfer, levels)}
USUAL = ("unet", "vae", "load", "default")  # the others take long
