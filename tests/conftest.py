"""What several test files use: a tiny random model, its folder, and images for it."""

import dataclasses
import json
import os
import shutil
import signal

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # threads that spin take the cores from other programs

# A shell that starts the tests in the background has Ctrl-C ignored; the tests that press it need Python's handler.
signal.signal(signal.SIGINT, signal.default_int_handler)

import native.cuda
import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file
from tqdm import tqdm

import styleid
from styleid import _core, _cuda

tqdm.monitor_interval = 0  # its thread would meet the errors of memory that tests of failing allocations make


def pytest_ignore_collect(collection_path, config):
    """Files whose tests all import PyTorch, which takes ten seconds, where those are left out."""
    if "not torch" in config.option.markexpr and collection_path.match("test_*.py"):
        return "\npytestmark = pytest.mark.torch\n" in collection_path.read_text() or None
    return None


# Files that take longest are the first, so that the end does not find one process at work and the others without.
LONGEST = (
    "test_training", "test_packaging", "test_full_size", "test_cluster", "test_ops", "test_cuda_kernels", "test_docs",
    "test_soak", "test_features", "test_cuda_device", "test_benchmarks", "test_notebooks",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: LONGEST.index(item.path.stem) if item.path.stem in LONGEST else len(LONGEST))


def pytest_runtest_setup(item):
    on_cpu = item.config.getoption("--device") == "cpu"
    if on_cpu and item.get_closest_marker("bfloat16") and _core.info()["isa"] in ("generic", "avx2"):
        pytest.skip("bfloat16 needs AVX-512")


def pytest_addoption(parser):
    parser.addoption(
        "--device",
        choices=["cpu", "cuda", "fake"],
        default="cpu",
        help="where models are that no test chooses a device for; fake: on the fakes of NVIDIA's libraries",
    )


def pytest_configure(config):
    device = config.getoption("--device")
    if device == "fake":
        os.environ.update(native.cuda.environment())
    if device != "cpu":
        use_gpu()


def use_gpu():
    """Models are on the first GPU unless a test says where."""
    _cuda.open_libraries()
    engine, load_model = _core.Model, styleid.load_model
    _core.Model = lambda *arguments, **options: engine(*arguments, **{"device": 0} | options)
    styleid.load_model = lambda *arguments, **options: load_model(*arguments, **{"device": "cuda"} | options)


CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def configuration():
    """Four levels of two decoder layers: 4 to 7 attend, of which the schedules inject 6 and 7. 16 x 16 pixels fit."""
    config = tiny.config()
    config["unet"] |= {"channels": [16] * 4, "heads": [2] * 4, "attention": [True, True, False, False]}
    return config


def write_folder(root, config):
    """A model of random weights as a diffusers folder."""
    unet, vae = config["unet"], config["vae"]
    down = [CROSS if attends else PLAIN for attends in unet["attention"]]
    files = {
        "unet/config.json": {
            "_class_name": "UNet2DConditionModel", "attention_head_dim": unet["heads"], "block_out_channels": unet["channels"],
            "cross_attention_dim": unet["context_size"], "down_block_types": down, "in_channels": unet["in_channels"],
            "layers_per_block": unet["layers_per_block"], "norm_num_groups": unet["groups"],
            "out_channels": unet["out_channels"], "sample_size": unet["sample_size"],
            "up_block_types": [block.replace("Down", "Up") for block in reversed(down)],
        },
        "vae/config.json": {
            "_class_name": "AutoencoderKL", "block_out_channels": vae["channels"],
            "down_block_types": ["DownEncoderBlock2D"] * len(vae["channels"]), "latent_channels": vae["latent_channels"],
            "layers_per_block": vae["layers_per_block"], "norm_num_groups": vae["groups"],
            "scaling_factor": vae["scaling_factor"], "up_block_types": ["UpDecoderBlock2D"] * len(vae["channels"]),
        },
        "scheduler/scheduler_config.json": {
            "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "prediction_type": unet["prediction"]
        },
        "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    }  # fmt: skip
    weights = {name: weight["data"] for name, weight in tiny.weights(config).items()}
    for name, values in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(json.dumps(values))
    for part in "unet", "vae":
        tensors = {name.removeprefix(f"{part}."): a for name, a in weights.items() if name.startswith(f"{part}.")}
        save_file(tensors, root / part / "diffusion_pytorch_model.safetensors")
    save_file({"empty_prompt": tiny.CONTEXT}, root / "context.safetensors")


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("tiny") / "model"
    write_folder(root, configuration())
    return root


@pytest.fixture
def folder(shared_folder, tmp_path):
    """A model folder that the test may spoil."""
    return shutil.copytree(shared_folder, tmp_path / "model")


@pytest.fixture(scope="session")
def model(shared_folder):
    return styleid.load_model(shared_folder, dtype="float32", threads=1)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """Like `model`, but for other noise levels: another fingerprint."""
    root = tmp_path_factory.mktemp("other") / "model"
    write_folder(root, configuration())
    scheduler = root / "scheduler/scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.013}))
    return styleid.load_model(root, dtype="float32", threads=1)


def told(**arguments):
    """The arguments of a function of the package, with those that are fields of its options gathered into `options`."""
    kinds = styleid.Text, styleid.Mix, styleid.Start, styleid.Storage, styleid.Hooks, styleid.Accuracy, styleid.Resize
    places = {field.name: (kind, field.name) for kind in kinds for field in dataclasses.fields(kind)}
    del places["layers"]
    own = {name: value for name, value in arguments.items() if name not in places}
    fields = {}
    for name in arguments.keys() & places.keys():
        kind, field = places[name]
        fields.setdefault(kind, {})[field] = arguments[name]
    return own | {"options": [kind(**given) for kind, given in fields.items()]} if fields else own


def random_image(seed=0, height=16, width=16):
    """(height, width, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
