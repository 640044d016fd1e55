"""Models and inversions in other processes: pickled, copied, and refused where that would be something else."""

import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

import formats
import numpy as np
import pytest
import tiny
from safetensors.numpy import save_file

import styleid
from styleid import ModelError

STEPS = 3
PROTOCOLS = range(2, pickle.HIGHEST_PROTOCOL + 1)


def image(seed=0):
    """(16, 16, 3) uint8."""
    return np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)


def same(one, other):
    """Inversions of the same numbers."""
    for name in "schedule", "keep", "prompt", "fingerprint", "layers", "size", "guidance", "feature_dtype", "recompute":
        assert getattr(one, name) == getattr(other, name)
    for name in "latents", "timesteps", "context", "predicted":
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    np.testing.assert_array_equal(one.key(1, 6), other.key(1, 6))


# ---- models ----


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_model(model, protocol):
    data = pickle.dumps(model, protocol)
    assert len(data) < 2000
    other = pickle.loads(data)
    assert (other.fingerprint, other.dtype, other.threads, other.tiling) == (
        model.fingerprint, model.dtype, model.threads, model.tiling,
    )  # fmt: skip
    assert pickle.loads(data) is other  # loaded once in a process
    latents = np.random.default_rng(0).standard_normal((1, 4, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(other.predict_noise(latents, 1), model.predict_noise(latents, 1))


def test_all_settings_of_a_model(tmp_path):
    folder = formats.write_diffusers(tmp_path / "model", formats.configuration("1.x"))
    layer = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file(
        {
            f"{layer}.lora_A.weight": np.ones((1, 64), np.float32),
            f"{layer}.lora_B.weight": np.ones((64, 1), np.float32),
        },
        tmp_path / "l.safetensors",
    )
    options = {"dtype": "float32", "threads": 1, "prediction": "v_prediction", "tiling": True, "vae": folder}
    model = styleid.load_model(folder, loras=[(tmp_path / "l.safetensors", np.float32(0.5))], **options)
    other = pickle.loads(pickle.dumps(model))
    assert (other.fingerprint, other.tiling, other.config["unet"]["prediction"]) == (
        model.fingerprint, "on", "v_prediction",
    )  # fmt: skip
    assert other.fingerprint != styleid.load_model(folder, **options).fingerprint


def test_vae(shared_folder):
    vae = styleid.load_vae(shared_folder, dtype="float32", threads=1)
    other = pickle.loads(pickle.dumps(vae))
    np.testing.assert_array_equal(other.encode(image()), vae.encode(image()))


def test_copies_of_a_model_are_the_model(model):
    assert copy.copy(model) is model and copy.deepcopy(model) is model
    assert copy.deepcopy({"model": [model]})["model"][0] is model


def test_a_relative_path_holds_elsewhere(shared_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(shared_folder.parent)
    data = pickle.dumps(styleid.load_model(shared_folder.name, dtype="float32", threads=1))
    monkeypatch.chdir(tmp_path)
    program = "import pickle, sys; print(pickle.load(sys.stdin.buffer).fingerprint)"
    environment = os.environ | {"PYTHONPATH": str(Path(styleid.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", program], input=data, capture_output=True, env=environment, cwd=tmp_path, check=True
    )
    assert done.stdout.decode().strip() == pickle.loads(data).fingerprint


def test_a_model_that_changed_meanwhile(folder):
    data = pickle.dumps(styleid.load_model(folder, dtype="float32", threads=1))
    styleid.models.origin._known.clear()
    path = folder / "scheduler/scheduler_config.json"
    path.write_text(path.read_text().replace("0.012", "0.013"))
    with pytest.raises(ModelError, match=f"{folder}: the model has changed"):
        pickle.loads(data)
    path.unlink()
    with pytest.raises(ModelError, match="scheduler_config.json: no such file"):
        pickle.loads(data)


def test_a_model_made_from_arrays():
    config = tiny.config()
    model = styleid.Model(config, tiny.weights(config), "float32", 1, context=tiny.CONTEXT)
    with pytest.raises(TypeError, match="was made from arrays: only what load_model"):
        pickle.dumps(model)
    assert copy.deepcopy(model) is model


# ---- inversions ----


@pytest.fixture(params=["memory", "disk", "recompute"])
def kind(request):
    return request.param


@pytest.fixture
def inversion(model, kind, tmp_path):
    made = styleid.invert(image(0), model, steps=STEPS)
    if kind == "disk":
        made.save(tmp_path / "inversion")
        return styleid.Inversion.load(tmp_path / "inversion", mapped=True)
    if kind == "recompute":
        return replace(made, recompute=True, features={"query": {}, "key": {}, "value": {}})
    return made


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_inversion(inversion, kind, model, protocol):
    if kind == "disk":  # it was loaded, so that it knows no model
        assert inversion.mapped and inversion.model is None
    other = pickle.loads(pickle.dumps(inversion, protocol))
    same(other, inversion)
    style = styleid.invert(image(1), model, steps=STEPS)
    np.testing.assert_array_equal(
        styleid.inject_styles(other, style, model), styleid.inject_styles(inversion, style, model)
    )


def test_deep_copy(inversion, kind):
    other = copy.deepcopy(inversion)
    same(other, inversion)
    assert other.model is inversion.model
    assert other.latents is not inversion.latents
    if kind == "disk":
        assert other.mapped  # copying gigabytes that nobody can change would be of no use
    if kind == "memory":
        other.features["key"][6][...] = 0
        assert inversion.features["key"][6].any()


def reconstruct(inversion):
    return inversion.reconstruct()


@pytest.mark.parametrize("method", ["spawn", "fork", "forkserver"])
def test_processes(model, method):
    """The worker loads the model that the inversion was made by, and gives its bytes."""
    inversion = styleid.invert(image(0), model, steps=STEPS, keep="none")
    with ProcessPoolExecutor(1, mp_context=get_context(method)) as pool:
        np.testing.assert_array_equal(pool.submit(reconstruct, inversion).result(120), inversion.reconstruct())


def test_cloudpickle(model):
    """What Dask and joblib use."""
    cloudpickle = pytest.importorskip("cloudpickle")
    inversion = styleid.invert(image(0), model, steps=STEPS, keep="none")
    same_latents = cloudpickle.loads(cloudpickle.dumps(inversion))
    np.testing.assert_array_equal(same_latents.latents, inversion.latents)
