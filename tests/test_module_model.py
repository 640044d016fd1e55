"""What the C module refuses to build a model from, and a model's properties."""

import numpy as np
import pytest
import tiny
from tiny import filled

from styleid import _core

NAN = float("nan")


@pytest.fixture(scope="module")
def model():
    return tiny.model()


@pytest.fixture(scope="module")
def text_model():
    return tiny.model(text=True)


def build(configuration=None, weights=None, **options):
    configuration = configuration or tiny.config()
    return _core.Model(configuration, weights or tiny.weights(tiny.config()), **options)


def reconfigured(part, **changes):
    configuration = tiny.config(text=True)
    configuration[part] = configuration[part] | changes
    return configuration


@pytest.mark.parametrize("part", ["unet", "vae", "text"])
def test_missing_configuration_entries(part):
    for key in tiny.config(text=True)[part]:
        configuration = tiny.config(text=True)
        del configuration[part][key]
        with pytest.raises(ValueError, match=f"config.{part}: '{key}' is missing"):
            build(configuration)
    configuration = tiny.config()
    del configuration[part]
    with pytest.raises(ValueError, match=f"config: '{part}' is missing"):
        build(configuration)


@pytest.mark.parametrize(
    "configuration, error, message",
    [
        ([1], TypeError, "config: expected a dict, got list"),
        (tiny.config() | {"unet": 1}, TypeError, "config.unet: expected a dict, got int"),
        (tiny.config() | {"text": 1}, TypeError, "config.text: expected a dict, got int"),
        (tiny.config() | {"alphas": [1.0]}, TypeError, "config.alphas: expected float64 .*got list"),
        (tiny.config() | {"alphas": tiny.ALPHAS[1:]}, ValueError, r"config.alphas: .*got float64 of shape \(999,\)"),
        (tiny.config() | {"alphas": tiny.ALPHAS[::-1]}, _core.ModelError, "alphas"),
        (tiny.config() | {"alphas": filled(tiny.ALPHAS, NAN)}, _core.ModelError, "alphas"),
        (reconfigured("unet", channels=16), TypeError, "config.unet.channels: expected a list, got int"),
        (reconfigured("unet", channels=[]), ValueError, "config.unet.channels: .*got 0"),
        (reconfigured("unet", channels=[16] * 9), ValueError, "config.unet.channels: .*got 9"),
        (reconfigured("unet", heads=[2]), ValueError, "config.unet.heads: .*got 1"),
        (reconfigured("unet", channels=[16, "32"]), TypeError, "config.unet.channels: expected an integer, got str"),
        (reconfigured("unet", channels=[16, -32]), ValueError, "config.unet.channels: .*got -32"),
        (reconfigured("unet", channels=[16, 2**62]), ValueError, "config.unet.channels: .*got 46116"),
        (reconfigured("unet", channels=[16, 0]), _core.ModelError, "level"),
        (reconfigured("unet", heads=[0, 4]), _core.ModelError, "heads"),
        (reconfigured("unet", heads=[3, 4]), _core.ModelError, "heads"),
        (reconfigured("unet", groups=0), _core.ModelError, "groups"),
        (reconfigured("unet", groups=5), _core.ModelError, "groups"),
        (reconfigured("unet", layers_per_block=0), _core.ModelError, "layers_per_block"),
        (reconfigured("unet", in_channels=9), _core.ModelError, "channels"),
        (reconfigured("unet", eps="1"), TypeError, "config.unet.eps: expected a number, got str"),
        (reconfigured("unet", eps=NAN), ValueError, "config.unet.eps: expected a finite number, got nan"),
        (reconfigured("unet", eps=0), _core.ModelError, "eps"),
        (reconfigured("unet", linear_projection=None), TypeError, "config.unet.linear_projection: expected a bool"),
        (reconfigured("unet", prediction="sample"), ValueError, "config.unet.prediction: expected one of .*'sample'"),
        (reconfigured("vae", scaling_factor=0), _core.ModelError, "scaling_factor"),
        (reconfigured("vae", image_channels=4), _core.ModelError, "image_channels"),
        (reconfigured("vae", latent_channels=8), _core.ModelError, "latent channels"),
        (reconfigured("text", activation="relu"), ValueError, "config.text.activation: expected one of"),
        (reconfigured("text", heads=5), _core.ModelError, "heads"),
        (reconfigured("text", channels=32), _core.ModelError, "channels"),
    ],
)
def test_bad_configuration(configuration, error, message):
    with pytest.raises(error, match=message):
        _core.Model(configuration, tiny.weights(tiny.config(text=True)))


@pytest.mark.parametrize(
    "options, error, message",
    [
        ({"dtype": "int8"}, ValueError, r"dtype: expected one of \['float32', 'bfloat16', 'float16'\], got 'int8'"),
        ({"dtype": "float16"}, ValueError, "dtype: float16 is computed on GPUs only"),
        ({"dtype": np.float32}, TypeError, "dtype: expected one of"),
        ({"threads": 0}, ValueError, "threads: expected an integer from 1 to 1024, got 0"),
        ({"threads": 2**40}, ValueError, "threads: "),
        ({"threads": "2"}, TypeError, "threads: expected an integer, got str"),
        ({"device": "cpu"}, TypeError, "str"),
    ],
)
def test_bad_model_options(options, error, message):
    with pytest.raises(error, match=message):
        build(**options)


NAME = "unet.conv_in.weight"  # (16, 4, 3, 3)
DATA = np.zeros((16, 4, 3, 3), np.float32)


@pytest.mark.parametrize(
    "weight, error, message",
    [
        (None, TypeError, "weights: expected dictionaries by name"),
        (DATA, TypeError, "weights: expected dictionaries by name"),
        ({}, _core.ModelError, "expected dtype 'F32', 'F16' or 'BF16', got None"),
        ({"dtype": "F64", "shape": [16, 4, 3, 3], "data": DATA}, _core.ModelError, "got 'F64'"),
        ({"dtype": 4, "shape": [16, 4, 3, 3], "data": DATA}, _core.ModelError, "got 4"),
        ({"dtype": "F32", "data": DATA}, _core.ModelError, "expected a shape of 1 to 4 positive sizes, got None"),
        ({"dtype": "F32", "shape": 576, "data": DATA}, _core.ModelError, "expected a shape .*got 576"),
        ({"dtype": "F32", "shape": [], "data": DATA}, _core.ModelError, r"expected a shape .*got \[\]"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3, 1], "data": DATA}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, -3], "data": DATA}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, 0], "data": b""}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3.0], "data": DATA}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [2**32, 2**32, 1, 1], "data": b""}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [2**62 + 1, 4, 1, 1], "data": bytes(16)}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [10**30], "data": b""}, _core.ModelError, "expected a shape"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3]}, TypeError, "expected data to be a contiguous buffer, got none"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3], "data": [1.0]}, TypeError, "contiguous buffer, got list"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3], "data": DATA.T}, TypeError, "contiguous buffer, got numpy.ndarray"),
        ({"dtype": "F32", "shape": [16, 4, 3, 3], "data": DATA[1:]}, _core.ModelError, "2304 bytes, its data are 2160"),
        ({"dtype": "F16", "shape": [16, 4, 3, 3], "data": DATA}, _core.ModelError, "1152 bytes, its data are 2304"),
        ({"dtype": "F32", "shape": [16, 36], "data": DATA}, _core.ModelError, "conv_in.weight"),
        ({"dtype": "F32", "shape": [4, 16, 3, 3], "data": DATA}, _core.ModelError, "conv_in.weight"),
    ],
)
def test_bad_weight(weight, error, message):
    with pytest.raises(error, match=message):
        build(weights=tiny.weights(tiny.config()) | {NAME: weight})


def test_missing_and_unknown_weights():
    good = tiny.weights(tiny.config())
    for name in (NAME, "vae.quant_conv.bias", "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn1.to_v.weight"):
        with pytest.raises(_core.ModelError, match=name):
            build(weights={key: value for key, value in good.items() if key != name})
    with pytest.raises(_core.ModelError, match="unet.extra.weight"):
        build(weights=good | {"unet.extra.weight": tiny.weight(DATA)})
    with pytest.raises(_core.ModelError, match="null character"):
        build(weights=good | {"unet.extra\0.weight": tiny.weight(DATA)})
    with pytest.raises(_core.ModelError, match="ÄÄÄ"):
        build(weights=good | {"Ä" * 1000: tiny.weight(DATA)})
    with pytest.raises(TypeError, match="weights: expected dictionaries by name"):
        build(weights=good | {1: tiny.weight(DATA)})


@pytest.mark.parametrize("weights", [1, [1], "x", None])
def test_weights_are_a_mapping(weights):
    with pytest.raises(TypeError, match="weights: expected a mapping"):
        _core.Model(tiny.config(), weights)


@pytest.mark.parametrize("source", [bytes, bytearray, memoryview, lambda a: memoryview(b"-" + bytes(a))[1:]])
def test_weights_from_any_buffer(model, source):
    weights = {
        name: weight | {"data": source(weight["data"].tobytes())}
        for name, weight in tiny.weights(tiny.config()).items()
    }
    other = build(weights=weights)
    del weights
    expected = model.predict_noise(tiny.latents(), 1, tiny.CONTEXT)
    np.testing.assert_array_equal(other.predict_noise(tiny.latents(), 1, tiny.CONTEXT), expected)


def test_model_properties(model):
    assert (model.dtype, model.threads, model.attention_layers) == ("float32", 1, (2, 3))
    assert model.scratch(2, 8, 8) > model.scratch(1, 4, 4) > 0
    assert model.vae_scratch(16, 16) > model.vae_scratch(8, 8) > 0
    with pytest.raises(AttributeError):
        model.dtype = "bfloat16"
    with pytest.raises(TypeError):
        _core.Model.extra = 1
    with pytest.raises(TypeError):
        type("Other", (_core.Model,), {})
    assert issubclass(_core.ModelError, ValueError) and _core.ModelError.__module__ == "styleid._core"


def test_memory_of_a_new_model():
    """Running other sizes may add weights in further layouts."""
    assert tiny.model(text=True).memory > tiny.model().memory > 0


@pytest.mark.bfloat16
def test_bfloat16_model():
    model = build(dtype="bfloat16", threads=2)
    assert (model.dtype, model.threads) == ("bfloat16", 2)


def test_constants():
    info = _core.info()
    assert info["isas"] == list(_core.ISAS[: len(info["isas"])]) and info["isa"] in info["isas"]
    assert _core.DTYPES == ("float32", "bfloat16", "float16")
    assert _core.SCHEDULES == ("paper", "diffusers", "corrected")
    assert _core.TRAIN_STEPS == len(_core.timesteps(1000)) == 1000
    assert _core.timesteps(1000)[-2:].tolist() == [999, 999]


def test_schedule(model):
    plan = _core.schedule(model, "paper", 50)
    assert plan["timesteps"].tolist() == list(range(1, 1000, 20))
    assert plan["sampling"].tolist() == plan["starts"].tolist() == list(range(48, -1, -1))
    assert plan["truncate"] is True and plan["adain_epsilon"] == 0
    assert _core.schedule(model, "diffusers", 20)["truncate"] is False
