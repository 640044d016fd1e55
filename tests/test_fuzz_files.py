"""Damaged files: whatever their bytes are, a loader gives a result or an error that names the file; soon, and in bounds.

`make fuzz` and longer runs: STYLEID_FUZZ examples of each test.
"""

import io
import json
import os
import shutil
import struct
import time
import tracemalloc

import formats
import numpy as np
import pytest
import tiny
import torch
from conftest import configuration, write_folder
from safetensors.numpy import save

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

import styleid  # noqa: E402
from styleid import Inversion, ModelError  # noqa: E402
from styleid.lora import merge  # noqa: E402

thoroughly = settings(
    max_examples=int(os.environ.get("STYLEID_FUZZ", "100")), deadline=None, suppress_health_check=list(HealthCheck)
)
pytestmark = pytest.mark.filterwarnings("ignore")
SECONDS, MEGABYTES = 20, 200  # of one example: generous, for machines with much else to do
SPECIAL = [0, 1, 0x7F, 0x80, 0xFF]
LENGTHS = [0, 1, 2**31 - 1, 2**32 - 1, 2**48, 2**63 - 1, 2**64 - 1]
FAMILY = "1.x"
CONFIG = formats.configuration(FAMILY)


@st.composite
def mutations(draw, content, hot):
    """The content with some of its bytes changed; most often among the first and last `hot`, where the structure is."""
    data = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        edge = draw(st.integers(0, min(hot, len(data) - 1)))
        place = draw(st.sampled_from([edge, len(data) - 1 - edge, draw(st.integers(0, len(data) - 1))]))
        kind = draw(st.sampled_from(["byte", "bit", "length", "remove", "repeat", "cut", "insert"]))
        if kind == "byte":
            data[place] = draw(st.sampled_from(SPECIAL) | st.integers(0, 255))
        elif kind == "bit":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif kind == "length":
            data[place : place + 8] = struct.pack("<Q", draw(st.sampled_from(LENGTHS)))
        elif kind == "remove":
            del data[place : place + draw(st.integers(1, 40))]
        elif kind == "repeat":
            data[place:place] = data[place : place + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(max_size=10))
        else:
            del data[place:]
        data = data or bytearray(1)
    return bytes(data)


def survive(path, content, read):
    path.write_bytes(content)
    tracemalloc.start()
    start = time.monotonic()
    try:
        read(path)
    except ValueError as error:  # of which ModelError is one
        assert str(path.parents[1]) in str(error)
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert time.monotonic() - start < SECONDS and peak < MEGABYTES << 20


def load(path):
    try:
        styleid.load_model(path, dtype="float32", threads=1)
    except ModelError:
        raise
    except ValueError as error:
        raise AssertionError(f"not a ModelError: {error}") from error


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


def zipped(values):
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


ARRAYS = formats.ldm(CONFIG, FAMILY)
ORIGINAL = save(ARRAYS)
HEADER = int.from_bytes(ORIGINAL[:8], "little")
CHECKPOINT = zipped({"state_dict": {name: torch.from_numpy(np.array(array)) for name, array in ARRAYS.items()}})
# One small tensor: nearly all bytes are structure.
SMALL = zipped({"a": torch.arange(6.0).reshape(2, 3).T, "b": [1, ("c", None)]})
LAYER = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
WIDTH = CONFIG["unet"]["channels"][0]
LORA = save(
    {
        f"{LAYER}.lora_A.weight": np.ones((2, WIDTH), np.float32),
        f"{LAYER}.lora_B.weight": np.ones((WIDTH, 2), np.float32),
    }
)
WEIGHTS = tiny.weights(CONFIG)


@thoroughly
@given(mutations(ORIGINAL, HEADER))
def test_single_file(place, content):
    survive(place / "model.safetensors", content, load)


@thoroughly
@given(mutations(CHECKPOINT, 20_000))
def test_checkpoint(place, content):
    survive(place / "model.ckpt", content, load)


@thoroughly
@given(mutations(SMALL, len(SMALL)))
def test_structure_of_checkpoints(place, content):
    survive(place / "small.ckpt", content, load)


@thoroughly
@given(mutations(LORA, len(LORA)))
def test_lora(place, content):
    survive(place / "lora.safetensors", content, lambda path: merge(WEIGHTS, [(path, 1.0)]))


HEADER_ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I64", "F64", "F8_E4M3", "", None, 3]),
        "shape": st.lists(st.integers(-1, 4) | st.sampled_from(LENGTHS), max_size=5) | st.none(),
        "data_offsets": st.lists(st.integers(-1, 64) | st.sampled_from(LENGTHS), min_size=1, max_size=3),
    }
)


@thoroughly
@given(
    st.dictionaries(st.sampled_from([*ARRAYS][:20]) | st.text(max_size=5), HEADER_ENTRY, max_size=4), st.integers(0, 64)
)
def test_headers(place, header, size):
    text = json.dumps(header).encode()
    survive(place / "header.safetensors", len(text).to_bytes(8, "little") + text + bytes(size), load)


@pytest.fixture(scope="module")
def model_folder(place):
    write_folder(place / "folder", configuration())
    return place / "folder"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 5) | st.sampled_from(LENGTHS) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=6,
)


@thoroughly
@given(st.data())
def test_configurations(place, model_folder, data):
    """One value of one of the JSON files is replaced."""
    name = data.draw(st.sampled_from(["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]))
    original = (model_folder / name).read_text()
    values = json.loads(original)
    values[data.draw(st.sampled_from(sorted(values)))] = data.draw(JSON_VALUES)
    try:
        survive(model_folder / name, json.dumps(values).encode(), lambda _: load(model_folder))
    finally:
        (model_folder / name).write_text(original)


@thoroughly
@given(st.data())
def test_bytes_of_configurations(place, model_folder, data):
    name = data.draw(st.sampled_from(["unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"]))
    original = (model_folder / name).read_bytes()
    try:
        survive(model_folder / name, data.draw(mutations(original, len(original))), lambda _: load(model_folder))
    finally:
        (model_folder / name).write_bytes(original)


@thoroughly
@given(st.data())
def test_index_of_shards(place, model_folder, data):
    folder = place / "sharded"
    if not folder.exists():
        shutil.copytree(model_folder, folder)
        (folder / "unet/diffusion_pytorch_model.safetensors").rename(folder / "unet/a.safetensors")
    names = st.sampled_from(["a.safetensors", "../a.safetensors", "", ".", "\0", "/etc/passwd"]) | st.text(max_size=4)
    index = {"weight_map": data.draw(st.dictionaries(st.sampled_from(["conv_in.weight", "x"]), names) | JSON_VALUES)}
    path = folder / "unet/diffusion_pytorch_model.safetensors.index.json"
    survive(path, json.dumps(index).encode(), lambda _: load(folder))


@pytest.fixture(scope="module")
def inversion(place, model_folder):
    model = styleid.load_model(model_folder, dtype="float32", threads=1)
    image = np.zeros((16, 16, 3), np.uint8)
    styleid.invert(image, model, steps=2, schedule="diffusers").save(place / "inversion")
    return (place / "inversion").read_bytes()


@thoroughly
@given(st.data())
def test_inversions(place, inversion, data):
    header = int.from_bytes(inversion[:8], "little")
    survive(place / "damaged", data.draw(mutations(inversion, header)), Inversion.load)
