"""NaN, infinity and numbers too large for a type: an error that says where, never a black image."""

import math

import numpy as np
import pytest
import tiny
from conftest import configuration, random_image, write_folder
from safetensors.numpy import load_file, save_file

import styleid
from styleid import ModelError, _core
from styleid.models.loading import load_model

F16 = np.float16


def bfloat16(value):
    """The bits of one that NumPy has no type for."""
    return int(np.float32(value).view(np.uint32)) >> 16


def weights_with(name, dtype, value):
    """The tiny model's, one of them stored in a type, with the last number replaced by a value."""
    config = tiny.config(text=True)
    weights = tiny.weights(config)
    array = weights[name]["data"].copy()
    if dtype == "F16":
        array = array.astype(F16)
    if dtype == "BF16":
        array, value = (array.view(np.uint32) >> 16).astype(np.uint16), bfloat16(value)
    with np.errstate(over="ignore"):
        array.flat[-1] = value
    return config, weights | {name: weights[name] | {"dtype": dtype, "data": array}}


# Of every way into the engine: products, convolutions of all kinds, norms, biases, tables.
NAMES = [
    "unet.conv_in.weight", "unet.conv_in.bias", "unet.time_embedding.linear_1.weight", "unet.time_embedding.linear_2.bias",
    "unet.down_blocks.0.attentions.0.norm.weight", "unet.up_blocks.0.upsamplers.0.conv.weight",
    "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_k.weight", "unet.up_blocks.1.resnets.0.norm1.bias",
    "unet.up_blocks.1.resnets.0.conv_shortcut.weight", "vae.quant_conv.weight", "vae.decoder.conv_out.bias",
    "vae.encoder.mid_block.attentions.0.to_q.weight", "text.embeddings.token_embedding.weight",
    "text.final_layer_norm.weight", "text.encoder.layers.1.mlp.fc2.bias",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_weights(name, dtype, value):
    with pytest.raises(ModelError, match=rf"^weight {name} holds -?{abs(value)}, expected finite numbers"):
        _core.Model(*weights_with(name, dtype, value))


@pytest.mark.parametrize("dtype, largest", [("F32", 3.4e38), ("F16", 65504), ("BF16", 3.38e38)])
def test_the_largest_numbers_are_numbers(dtype, largest):
    _core.Model(*weights_with("unet.conv_in.bias", dtype, largest))
    _core.Model(*weights_with("unet.down_blocks.0.attentions.0.proj_in.weight", dtype, -largest))


@pytest.mark.bfloat16
def test_too_large_for_bfloat16():
    """float32 has numbers between the largest of bfloat16 and its own."""
    name = "unet.down_blocks.0.attentions.0.proj_in.weight"
    with pytest.raises(ModelError, match=rf"{name} holds 3.4e\+38, which is too large for bfloat16: .*float32"):
        _core.Model(*weights_with(name, "F32", 3.4e38), dtype="bfloat16")
    _core.Model(*weights_with(name, "F32", 3.38e38), dtype="bfloat16")


def test_a_place_of_every_remainder():
    """Wherever the number is, in tensors of any length."""
    config, weights = tiny.config(), tiny.weights(tiny.config())
    name = "unet.mid_block.resnets.0.conv1.weight"
    for place in [0, 1, 3, 7, 8, 15, 16, 17, 4095, 4096, 8191, -1, -2, -9]:
        array = weights[name]["data"].copy()
        array.flat[place] = math.nan
        with pytest.raises(ModelError, match=name):
            _core.Model(config, weights | {name: weights[name] | {"data": array}})


def test_files_name_the_tensor(folder):
    path = folder / "vae/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["decoder.conv_out.weight"][0, 0, 0, 0] = math.inf
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"vae\.decoder\.conv_out\.weight holds inf"):
        styleid.load_model(folder, threads=1)


# ---- numbers that become too large ----


def scaled(factor, *names):
    """The tiny model with some weights multiplied."""
    config = tiny.config(text=True)
    weights = tiny.weights(config)
    for name in names:
        weights[name] = tiny.weight(np.float32(factor) * weights[name]["data"])
    return config, weights


DTYPES = ["float32", pytest.param("bfloat16", marks=pytest.mark.bfloat16)]
UNET = "unet.conv_in.weight", "unet.conv_out.weight"
ENCODER = "vae.encoder.conv_in.weight", "vae.encoder.conv_out.weight"
DECODER = "vae.decoder.conv_in.weight", "vae.decoder.conv_out.weight"


def advice(dtype):
    return "" if dtype == "float32" else r'.*bfloat16; try dtype="float32"'


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_step_is_named(dtype):
    """One whose numbers grow until they are none."""
    model = _core.Model(*scaled(1e20, "unet.conv_norm_out.weight", "unet.conv_out.weight"), dtype=dtype)
    with pytest.raises(ValueError, match="^step 1 of 3: the latents hold NaN or infinity" + advice(dtype)):
        tiny.invert(model)
    good = tiny.invert(_core.Model(*scaled(1)))[0]
    for call, arguments in (
        (_core.sample, tiny.sample_arguments(good)),
        (_core.inject_styles, tiny.sample_arguments(good)),
        (_core.transfer, tiny.transfer_arguments()),
    ):
        with pytest.raises(ValueError, match="^step 1 of 3: the latents hold NaN or infinity" + advice(dtype)):
            call(model, **arguments)


@pytest.mark.parametrize("dtype", DTYPES)
def test_each_stage_is_named(dtype):
    encoder, decoder = (_core.Model(*scaled(1e38, *names), dtype=dtype) for names in (ENCODER, DECODER))
    unet = _core.Model(*scaled(1e38, *UNET), dtype=dtype)
    with pytest.raises(ValueError, match="^encoding: the latents hold NaN or infinity" + advice(dtype)):
        encoder.encode(tiny.random_image(16, 16)[np.newaxis])
    with pytest.raises(ValueError, match="^encoding"):
        _core.transfer(encoder, **tiny.transfer_arguments())
    z = np.full((1, 4, 4, 4), 1e3, np.float32)
    for call in decoder.decode, decoder.decode_float:
        with pytest.raises(ValueError, match="^decoding: the image's values hold NaN or infinity" + advice(dtype)):
            call(z)
    with pytest.raises(ValueError, match="^decoding"):
        _core.transfer(decoder, **tiny.transfer_arguments())
    with pytest.raises(ValueError, match="^timestep 7: the UNet's numbers hold NaN or infinity" + advice(dtype)):
        unet.predict_noise(tiny.latents(), 7, tiny.CONTEXT)


def test_through_the_package(tmp_path):
    config = configuration()
    write_folder(tmp_path / "m", config)
    path = tmp_path / "m/unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    for name in "conv_norm_out.weight", "conv_out.weight":
        tensors[name] *= np.float32(1e20)
    save_file(tensors, path)
    model = load_model(tmp_path / "m", dtype="float32", threads=1)
    with pytest.raises(ValueError, match="step 1 of 4: the latents hold NaN or infinity"):
        styleid.transfer(random_image(0), random_image(1), model, steps=4)


# ---- what comes from outside ----


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_hook_that_spoils_the_latents(model, value):
    def spoil(step, steps, latents):
        if step == 2:
            latents.flat[5] = value

    content, style = (styleid.invert(random_image(seed), model, steps=4) for seed in (0, 1))
    with pytest.raises(ValueError, match="^on_step: at step 2 it left NaN or infinity in the latents"):
        styleid.inject_styles(content, style, model, options=styleid.Hooks(on_step=spoil))


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_inputs(value):
    model = tiny.model()
    z, context = tiny.filled(tiny.latents(), value), tiny.filled(tiny.CONTEXT, value)
    data = tiny.invert(model)[0]
    for name, call in {
        "latents": lambda: model.predict_noise(z, 1, tiny.CONTEXT),
        "context": lambda: model.predict_noise(tiny.latents(), 1, context),
        "latent": lambda: _core.sample(model, **tiny.sample_arguments(data) | {"latent": z}),
        "gamma": lambda: _core.sample(
            model, **tiny.sample_arguments(data) | {"gamma": tiny.filled(tiny.STRENGTHS, value)}
        ),
        "content": lambda: _core.adain(z, tiny.latents()),
    }.items():
        with pytest.raises(ValueError, match=f"^{name}"):
            call()


def test_features_that_are_no_numbers():
    """A style's values, say of a file that another program wrote: found in the latents that they lead to."""
    model = tiny.model()
    data = tiny.invert(model)[0]
    data["value"][3] = tiny.filled(data["value"][3], math.nan)
    with pytest.raises(ValueError, match="^step 1 of 3: the latents hold NaN or infinity"):
        _core.inject_styles(model, **tiny.sample_arguments(data))


def test_contents_without_deviation():
    """AdaIN divides by it."""
    model = tiny.model()
    data = tiny.invert(model)[0]
    latent = _core.adain(np.ones_like(tiny.latents()), tiny.latents())
    with pytest.raises(ValueError, match="^latent: expected finite numbers"):
        _core.inject_styles(model, **tiny.sample_arguments(data) | {"latent": latent})
